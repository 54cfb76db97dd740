#include "runtime/stream.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/fail_points.h"

namespace strata {
namespace {

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

int64_t Stream::ring_bytes(const Tile& tile) {
  int64_t bytes = 0;
  for (const TileRange& r : tile) bytes += r.place->slot_bytes(r.panel0, r.panel1);
  return bytes;
}

int64_t Stream::scratch_bytes(const std::vector<Track>& tracks) {
  int64_t most = 0;
  for (const Track& track : tracks) {
    for (const Tile& tile : track) {
      for (const TileRange& r : tile) most = std::max(most, r.place->scratch_bytes());
    }
  }
  return most;
}

Stream::Stream(std::vector<Track> tracks, int64_t ring_bytes, int threads)
    : tracks_(std::move(tracks)),
      threads_(threads),
      scratch_each_(scratch_bytes(tracks_)),
      scratch_(static_cast<size_t>(scratch_each_ * threads), false, WeightFile::kBufferAlign),
      ring_(static_cast<size_t>(ring_bytes), false, WeightFile::kBufferAlign) {
  for (const Track& track : tracks_) {
    for (const Tile& tile : track) {
      if (Stream::ring_bytes(tile) > ring_bytes) {
        throw std::invalid_argument("stream: a tile does not fit the ring");
      }
      for (const TileRange& r : tile) {
        if (std::find(files_.begin(), files_.end(), r.place->file) == files_.end()) {
          files_.push_back(r.place->file);
        }
      }
    }
    every_.push_back(static_cast<int>(every_.size()));
  }
  idle_since_ = Clock::now();
  alive_ = threads_;
  try {
    for (int i = 0; i < threads_; ++i) start_thread(team_, [this, i] { work(i); });
  } catch (...) {
    // Fewer threads do as well, but for none.
    std::lock_guard<std::mutex> hold(lock_);
    alive_ -= threads_ - static_cast<int>(team_.size());
    if (team_.empty()) throw;
  }
}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> hold(lock_);
    stop_ = true;
  }
  wanted_.notify_all();
  for (std::thread& t : team_) t.join();
}

// Room for a tile behind the last one, or at the ring's beginning.
bool Stream::fits(int64_t bytes, int64_t* begin) const {
  const int64_t size = static_cast<int64_t>(ring_.size());
  if (entries_.empty()) {
    *begin = 0;
    return bytes <= size;
  }
  const Entry& first = *entries_.front();
  const Entry& last = *entries_.back();
  if (last.begin >= first.begin) {
    *begin = last.end;
    if (last.end + bytes <= size) return true;
    *begin = 0;
    return bytes <= first.begin;
  }
  *begin = last.end;
  return last.end + bytes <= first.begin;
}

// Moves the place of reading to the next tile; a sweep is followed by one of all tracks.
void Stream::advance() {
  const auto track = static_cast<size_t>(reading_order()[position_]);
  if (++tile_ < static_cast<int>(tracks_[track].size())) return;
  tile_ = 0;
  if (++position_ < reading_order().size()) return;
  position_ = 0;
  ++reading_sweep_;
}

// Takes the next tile into the ring; false when there is no room.
bool Stream::place_next() {
  const int track = reading_order()[position_];
  const Tile& tile = tracks_[static_cast<size_t>(track)][static_cast<size_t>(tile_)];
  int64_t begin = 0;
  const int64_t bytes = ring_bytes(tile);
  if (!fits(bytes, &begin)) return false;
  about_to_allocate(sizeof(Entry));
  auto entry = std::make_unique<Entry>();
  entry->sweep = reading_sweep_;
  entry->track = track;
  entry->tile = tile_;
  entry->begin = begin;
  entry->end = begin + bytes;
  int64_t at = begin;
  for (const TileRange& r : tile) {
    uint8_t* place = ring_.data() + at;
    entry->places.push_back(place);
    entry->views.push_back({r.part, r.panel0, r.panel1, place});
    at += r.place->slot_bytes(r.panel0, r.panel1);
    entry->file_bytes += r.place->file_bytes(r.panel0, r.panel1);
  }
  entries_.push_back(std::move(entry));
  advance();
  return true;
}

// A tile of which something is to be read now; nullptr when there is no room, or enough under way.
Stream::Entry* Stream::next_read() {
  if (paused_ || failure_) return nullptr;
  const auto open = [](const auto& e) { return e->claimed < e->places.size() && !e->failure; };
  auto found = std::find_if(entries_.begin(), entries_.end(), open);
  if (found == entries_.end()) {
    try {
      if (!place_next()) return nullptr;
    } catch (const std::bad_alloc&) {
      // Whoever waits for the piece is told; the thread lives on.
      failure_ = std::current_exception();
      ready_.notify_all();
      return nullptr;
    }
    found = std::prev(entries_.end());
  }
  Entry& entry = **found;
  const int64_t most = static_cast<int64_t>(ring_.size()) / 4 * 3;
  const bool few = under_way_ == 0 || under_way_ + read_bytes(entry, entry.claimed) <= most;
  return few ? &entry : nullptr;
}

int64_t Stream::read_bytes(const Entry& entry, size_t range) const {
  const TileRange& r = tracks_[static_cast<size_t>(entry.track)]
                               [static_cast<size_t>(entry.tile)][range];
  return r.place->file_bytes(r.panel0, r.panel1);
}

void Stream::read_one(Entry& entry, size_t range, uint8_t* scratch) {
  const TileRange& r = tracks_[static_cast<size_t>(entry.track)]
                               [static_cast<size_t>(entry.tile)][range];
  PanelView& view = entry.views[range];
  view.base = r.place->read_rows(r.panel0, r.panel1, entry.places[range], scratch, counters_);
  if (r.place->packs()) view.place = r.place.get();
  else view.base -= r.panel0 * r.place->panel_bytes();
}

void Stream::work(int thread) {
  uint8_t* const scratch = scratch_.data() + thread * scratch_each_;
  std::unique_lock<std::mutex> hold(lock_);
  while (!stop_) {
    Entry* const entry = next_read();
    if (entry == nullptr) {
      if (++idle_ == alive_) idle_since_ = Clock::now();
      wanted_.wait(hold);
      if (idle_-- == alive_) full_s_ += seconds(Clock::now() - idle_since_);
      continue;
    }
    const size_t range = entry->claimed++;
    const int64_t bytes = read_bytes(*entry, range);
    ++busy_;
    under_way_ += bytes;
    // Whoever takes something up wakes the next one, as long as there is more.
    if (idle_ > 0 && next_read() != nullptr) wanted_.notify_one();
    hold.unlock();
    fetching_.enter();
    std::exception_ptr failure;
    bool dies = false;
    try {
      read_one(*entry, range, scratch);
    } catch (const ReadError&) {
      failure = std::current_exception();
    } catch (const std::exception& e) {
      failure = std::make_exception_ptr(ReadError(
          std::string("a thread that read weights ended: ") + e.what() + "; load the model again"));
      dies = true;
    }
    fetching_.leave();
    hold.lock();
    --busy_;
    under_way_ -= bytes;
    if (failure) entry->failure = failure;
    ++entry->done;
    // Also those who wait for the ring to come to rest are told.
    if (failure || entry->done == entry->places.size() || paused_) ready_.notify_all();
    if (dies) break;
  }
  --alive_;
  ready_.notify_all();
  wanted_.notify_all();
}

// Forgets what was read ahead and reads the sweep that runs from its beginning.
void Stream::rewind(std::unique_lock<std::mutex>& hold) {
  paused_ = true;
  ready_.wait(hold, [&] { return busy_ == 0; });
  entries_.clear();
  held_ = false;
  reading_sweep_ = sweep_;
  position_ = 0;
  tile_ = 0;
  paused_ = false;
}

void Stream::begin_sweep(std::vector<int> order) {
  std::unique_lock<std::mutex> hold(lock_);
  failure_ = nullptr;
  // What was read ahead serves unless the sweep before was broken off, a read failed, or this
  // sweep is not the one that was expected.
  bool serves = reading_sweep_ > sweep_;
  for (const auto& e : entries_) serves = serves && e->sweep > sweep_ && !e->failure;
  ++sweep_;
  if (reading_sweep_ > sweep_) {
    serves = serves && order == every_;
  } else if (serves) {
    const auto read = every_.begin() + static_cast<int64_t>(position_) + 1;
    serves = order.size() > position_ && std::equal(every_.begin(), read, order.begin());
  }
  order_ = std::move(order);
  if (!serves) rewind(hold);
  wanted_.notify_all();
}

const std::vector<PanelView>& Stream::acquire(int track, int tile, const Check& check) {
  std::unique_lock<std::mutex> hold(lock_);
  if (held_) throw std::logic_error("stream: the tile before was not released");
  const Clock::time_point start = Clock::now();
  for (;;) {
    if (!entries_.empty()) {
      const Entry& e = *entries_.front();
      if (e.track != track || e.tile != tile) {
        throw std::logic_error("stream: tiles are taken in the order of the sweep");
      }
      if (e.failure) std::rethrow_exception(e.failure);
      if (e.done == e.places.size()) break;
    } else if (failure_) {
      std::rethrow_exception(failure_);
    }
    if (alive_ == 0) {
      throw ReadError("no thread that reads weights is left; load the model again");
    }
    if (ready_.wait_for(hold, kCheckEvery) == std::cv_status::timeout) {
      hold.unlock();
      check();
      hold.lock();
    }
  }
  waited_s_ += seconds(Clock::now() - start);
  held_ = true;
  return entries_.front()->views;
}

void Stream::release() {
  {
    std::lock_guard<std::mutex> hold(lock_);
    used_bytes_ += entries_.front()->file_bytes;
    entries_.pop_front();
    held_ = false;
  }
  wanted_.notify_one();
}

void Stream::check_files() const {
  for (const auto& file : files_) file->check_unchanged();
}

int64_t Stream::used_bytes() const {
  std::lock_guard<std::mutex> hold(lock_);
  return used_bytes_;
}

Stream::Times Stream::times() const {
  std::lock_guard<std::mutex> hold(lock_);
  double full = full_s_;
  if (alive_ > 0 && idle_ == alive_) full += seconds(Clock::now() - idle_since_);
  return {waited_s_, full, fetching_.seconds()};
}

}  // namespace strata
