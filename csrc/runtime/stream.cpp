#include "runtime/stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace strata {
namespace {

std::vector<int> counts(const std::vector<Track>& tracks) {
  std::vector<int> out;
  for (const Track& track : tracks) out.push_back(static_cast<int>(track.size()));
  return out;
}

}  // namespace

int64_t Stream::scratch_bytes(const std::vector<Track>& tracks) {
  int64_t most = 0;
  for (const Track& track : tracks) {
    for (const Tile& tile : track) most = std::max(most, tile_scratch_bytes(tile));
  }
  return most;
}

Stream::Stream(std::vector<Track> tracks, int64_t ring_bytes, std::shared_ptr<Readers> readers)
    : tracks_(std::move(tracks)),
      readers_(std::move(readers)),
      order_(counts(tracks_)),
      ring_(ring_bytes, readers_->counters) {
  if (scratch_bytes(tracks_) > readers_->scratch_each) {
    throw std::invalid_argument("stream: readers with too little scratch");
  }
  for (const Track& track : tracks_) {
    for (const Tile& tile : track) {
      if (tile_bytes(tile) > ring_bytes) {
        throw std::invalid_argument("stream: a tile does not fit the ring buffer");
      }
      for (const TileRange& r : tile) {
        if (std::find(files_.begin(), files_.end(), r.place->file) == files_.end()) {
          files_.push_back(r.place->file);
        }
      }
    }
  }
  try {
    read_ahead();
  } catch (...) {
    readers_->queue.drop();   // before what it reads into is gone
    throw;
  }
}

void Stream::read_ahead() {
  try {
    for (;;) {
      const TileId id = order_.next();
      const Track& track = tracks_[static_cast<size_t>(id.track)];
      CachedTile* const tile = ring_.admit(id, track[static_cast<size_t>(id.tile)]);
      if (tile == nullptr) return;
      order_.advance();
      readers_->queue.submit(tile);
    }
  } catch (...) {
    // A tile may have its place and never be read.
    order_.lose();
    throw;
  }
}

void Stream::begin_sweep(std::vector<int> order) {
  const bool serves = order_.begin(std::move(order));
  if (!serves || readers_->queue.failed()) {
    readers_->queue.drop();
    held_ = nullptr;
    ring_.clear();
    order_.rewind();
  }
  read_ahead();
}

const std::vector<PanelView>& Stream::acquire(int track, int tile, const Check& check) {
  if (held_ != nullptr) throw std::logic_error("stream: the tile before was not released");
  CachedTile* const found = ring_.acquire({track, tile});
  if (found == nullptr) {
    throw std::logic_error("stream: tiles are taken in the order of the sweep");
  }
  readers_->queue.wait(*found, check);
  held_ = found;
  return found->views();
}

void Stream::release() {
  used_bytes_ += held_->file_bytes();
  ring_.release(std::exchange(held_, nullptr));
  order_.used();
  read_ahead();
}

void Stream::check_files() const {
  for (const auto& file : files_) file->check_unchanged();
}

}  // namespace strata
