// Weights that are not resident: read ahead of the sweep into a ring, in the order of their use.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/executor.h"
#include "runtime/weight_reader.h"

namespace strata {

// Panels [panel0, panel1) of part number `part` of a product.
struct TileRange {
  WeightPlacePtr place;
  int part;
  int64_t panel0, panel1;
};
// What one phase of a product works on, and what goes through the ring as one.
using Tile = std::vector<TileRange>;
// The tiles of one Segment in the order of their use.
using Track = std::vector<Tile>;

// Threads read tiles ahead, in order, into a ring of fixed size, and the one caller takes and
// releases them in the same order. Past the end of a sweep comes the beginning of the next one.
// No more than three quarters of the ring are on their way at a time: disks give what they were
// asked for together at about the same time, and then the next reads need room at once.
class Stream {
 public:
  Stream(std::vector<Track> tracks, int64_t ring_bytes, int threads);
  ~Stream();
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
  int64_t ring_bytes() const { return static_cast<int64_t>(ring_.size()); }
  // Bytes that a thread needs beside the ring.
  static int64_t scratch_bytes(const std::vector<Track>& tracks);
  // Bytes of ring that a tile takes.
  static int64_t ring_bytes(const Tile& tile);

  const ReadCounters& counters() const { return counters_; }
  // Bytes of the file whose tiles were used and released.
  int64_t used_bytes() const;
  struct Times {
    double waited_s;    // the caller waited for a tile
    double full_s;      // no thread had anything to do, because the ring was full
    double fetching_s;  // some thread read
  };
  Times times() const;

 private:
  using Clock = std::chrono::steady_clock;
  // A tile in the ring, on its way there or ready.
  struct Entry {
    int64_t sweep;
    int track, tile;
    int64_t begin, end;               // in the ring
    std::vector<PanelView> views;
    std::vector<uint8_t*> places;     // of each range, which is one read
    int64_t file_bytes = 0;
    size_t claimed = 0, done = 0;
    std::exception_ptr failure;
  };

  Entry* next_read();
  bool place_next();
  bool fits(int64_t bytes, int64_t* begin) const;
  const std::vector<int>& reading_order() const {
    return reading_sweep_ == sweep_ ? order_ : every_;
  }
  void advance();
  void rewind(std::unique_lock<std::mutex>& hold);
  void work(int thread);
  int64_t read_bytes(const Entry& entry, size_t range) const;
  void read_one(Entry& entry, size_t range, uint8_t* scratch);

  const std::vector<Track> tracks_;
  const int threads_;
  const int64_t scratch_each_;
  AlignedBytes scratch_;
  std::vector<std::shared_ptr<const WeightFile>> files_;
  AlignedBytes ring_;
  ReadCounters counters_;

  mutable std::mutex lock_;
  std::condition_variable ready_;     // a tile is complete, or a thread has ended
  std::condition_variable wanted_;    // there is something to read, or all shall end
  std::deque<std::unique_ptr<Entry>> entries_;
  std::vector<int> order_, every_;    // tracks of the sweep that runs; of those that are expected
  int64_t sweep_ = 0;                 // the one that runs; none does at 0
  int64_t reading_sweep_ = 1;         // where reading has come to: a sweep, a place in its order
  size_t position_ = 0;               // and a tile of that track
  int tile_ = 0;
  bool paused_ = false, stop_ = false, held_ = false;
  std::exception_ptr failure_;        // no memory for the next piece, until the next sweep
  int busy_ = 0, alive_ = 0, idle_ = 0;
  int64_t under_way_ = 0;             // bytes that are being read
  Clock::time_point idle_since_;
  BusyClock fetching_;
  int64_t used_bytes_ = 0;
  double waited_s_ = 0, full_s_ = 0;
  std::vector<std::thread> team_;
};

}  // namespace strata
