// Weights that are not resident: read ahead of the sweep, in the order of their use.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/read_queue.h"
#include "runtime/sweep_order.h"
#include "runtime/tile_cache.h"

namespace strata {

// The tiles of one Segment in the order of their use.
using Track = std::vector<Tile>;

// Goes ahead through the order of tiles as far as the ring buffer admits them, has them read, and
// hands them to its one caller. `most_under_way` of the ring buffer are on their way at a time: disks
// give what they were asked for together at about the same time, and then the next reads need room
// at once.
class Stream {
 public:
  Stream(std::vector<Track> tracks, int64_t ring_bytes, std::shared_ptr<Readers> readers);
  ~Stream() { readers_->queue.drop(); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The tracks that the sweep will use, in order. What was read ahead for them stays.
  void begin_sweep(std::vector<int> order);

  // Waits until a tile is there; `check` is called now and then and may throw. The view is valid
  // until `release`. ReadError if the tile could not be read.
  const std::vector<PanelView>& acquire(int track, int tile, const Check& check);
  // Gives the place of the tile acquired last to another one.
  void release();
  // ReadError if one of the files is no longer what it was.
  void check_files() const;

  const std::vector<Track>& tracks() const { return tracks_; }
  int64_t ring_bytes() const { return ring_.nbytes(); }
  static int64_t most_under_way(int64_t ring_bytes) { return ring_bytes / 4 * 3; }
  // Bytes that a thread needs beside the ring buffer.
  static int64_t scratch_bytes(const std::vector<Track>& tracks);

  // The following may be asked for by any thread.
  // Bytes of the file whose tiles were used and released.
  int64_t used_bytes() const { return used_bytes_.load(); }

 private:
  void read_ahead();

  const std::vector<Track> tracks_;
  std::vector<std::shared_ptr<const WeightFile>> files_;
  const std::shared_ptr<Readers> readers_;
  SweepOrder order_;
  RingBuffer ring_;
  CachedTile* held_ = nullptr;
  std::atomic<int64_t> used_bytes_{0};
};

}  // namespace strata
