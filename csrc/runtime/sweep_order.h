// In which order tiles are used, and so read: sweep after sweep, known ahead.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/tile_cache.h"

namespace strata {

// Tracks of tiles, those of one Segment each, in the order of a sweep. Reading goes ahead of use:
// past the end of the sweep that runs comes a sweep of all tracks.
class SweepOrder {
 public:
  // `tiles` of each track.
  explicit SweepOrder(std::vector<int> tiles);

  // The tile that is to be read next, and that it will be.
  TileId next() const { return {track(), tile_}; }
  void advance();

  // Begins a sweep of these tracks. False if what was read ahead is of no use to it: the sweep
  // before was broken off, or this one is not what was expected.
  bool begin(std::vector<int> order);
  // A tile of the sweep that runs was used.
  void used() { --left_; }
  // What was read ahead is of no use to the sweep that comes next.
  void lose() { left_ = 1; }
  // Reading is to begin where the sweep that runs does.
  void rewind();

 private:
  const std::vector<int>& reading() const { return reading_sweep_ == sweep_ ? order_ : every_; }
  int track() const { return reading()[position_]; }

  const std::vector<int> tiles_;
  std::vector<int> order_, every_;    // tracks of the sweep that runs; of those that are expected
  int64_t left_ = 0;                  // tiles of the sweep that runs which were not used yet
  int64_t sweep_ = 0;                 // the one that runs; none does at 0
  int64_t reading_sweep_ = 1;         // where reading has come to: a sweep, a place in its order
  size_t position_ = 0;               // and a tile of that track
  int tile_ = 0;
};

}  // namespace strata
