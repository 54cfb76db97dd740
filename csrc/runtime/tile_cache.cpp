#include "runtime/tile_cache.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/fail_points.h"

namespace strata {

int64_t tile_bytes(const Tile& tile) {
  int64_t bytes = 0;
  for (const TileRange& r : tile) bytes += r.place->slot_bytes(r.panel0, r.panel1);
  return bytes;
}

int64_t tile_scratch_bytes(const Tile& tile) {
  int64_t most = 0;
  for (const TileRange& r : tile) most = std::max(most, r.place->scratch_bytes());
  return most;
}

CachedTile::CachedTile(TileId id, const Tile& tile, uint8_t* memory, ReadCounters& counters)
    : id_(id), tile_(tile), counters_(counters) {
  for (const TileRange& r : tile) {
    slots_.push_back(memory);
    views_.push_back({r.part, r.panel0, r.panel1, memory});
    memory += r.place->slot_bytes(r.panel0, r.panel1);
  }
}

int64_t CachedTile::file_bytes() const {
  int64_t bytes = 0;
  for (const TileRange& r : tile_) bytes += r.place->file_bytes(r.panel0, r.panel1);
  return bytes;
}

int64_t CachedTile::bytes(size_t read) const {
  const TileRange& r = tile_[read];
  return r.place->file_bytes(r.panel0, r.panel1);
}

void CachedTile::read(size_t read, uint8_t* scratch) {
  const TileRange& r = tile_[read];
  PanelView& view = views_[read];
  view.base = r.place->read_rows(r.panel0, r.panel1, slots_[read], scratch, counters_);
  view.place = r.place.get();
}

RingBuffer::RingBuffer(int64_t bytes, ReadCounters& counters)
    : memory_(static_cast<size_t>(bytes), false, WeightFile::kBufferAlign), counters_(counters) {}

// Room for a tile behind the last one, or at the beginning.
bool RingBuffer::fits(int64_t bytes, int64_t* begin) const {
  if (entries_.empty()) {
    *begin = 0;
    return bytes <= nbytes();
  }
  const Entry& first = entries_.front();
  const Entry& last = entries_.back();
  if (last.begin >= first.begin) {
    *begin = last.end;
    if (last.end + bytes <= nbytes()) return true;
    *begin = 0;
    return bytes <= first.begin;
  }
  *begin = last.end;
  return last.end + bytes <= first.begin;
}

CachedTile* RingBuffer::admit(TileId id, const Tile& tile) {
  int64_t begin = 0;
  const int64_t bytes = tile_bytes(tile);
  if (!fits(bytes, &begin)) return nullptr;
  about_to_allocate(sizeof(CachedTile));
  auto cached = std::make_unique<CachedTile>(id, tile, memory_.data() + begin, counters_);
  entries_.push_back({begin, begin + bytes, std::move(cached)});
  return entries_.back().tile.get();
}

CachedTile* RingBuffer::acquire(TileId id) {
  if (entries_.empty()) return nullptr;
  CachedTile* const first = entries_.front().tile.get();
  return first->id() == id ? first : nullptr;
}

void RingBuffer::release(CachedTile* tile) {
  if (entries_.empty() || entries_.front().tile.get() != tile) {
    throw std::logic_error("stream: tiles are released in the order of their use");
  }
  entries_.pop_front();
}

}  // namespace strata
