// Tiles in memory: what streams is read into them, and used from there.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "runtime/executor.h"
#include "runtime/read_queue.h"
#include "runtime/weight_place.h"

namespace strata {

// Panels [panel0, panel1) of part number `part` of a product.
struct TileRange {
  WeightPlacePtr place;
  int part;
  int64_t panel0, panel1;
};
// What one phase of a product works on, and what is read, kept and given up as one.
using Tile = std::vector<TileRange>;

// Its number in its track, and that of the track.
struct TileId {
  int track, tile;
  bool operator==(const TileId&) const = default;
};

// Bytes of memory that a tile takes, and of scratch that a thread needs which reads it.
int64_t tile_bytes(const Tile& tile);
int64_t tile_scratch_bytes(const Tile& tile);

// A tile that has its place in memory: on its way there or ready. Each of its ranges is one read.
class CachedTile final : public ReadBatch {
 public:
  // `memory` is aligned to WeightFile::kBufferAlign and holds `tile_bytes(tile)`.
  CachedTile(TileId id, const Tile& tile, uint8_t* memory, ReadCounters& counters);

  TileId id() const { return id_; }
  // What products read; as far as it has been read.
  const std::vector<PanelView>& views() const { return views_; }
  int64_t file_bytes() const;

  size_t reads() const override { return tile_.size(); }
  int64_t bytes(size_t read) const override;
  void read(size_t read, uint8_t* scratch) override;

 private:
  const TileId id_;
  const Tile& tile_;
  ReadCounters& counters_;
  std::vector<PanelView> views_;
  std::vector<uint8_t*> slots_;   // of each range
};

// Memory for tiles. Who streams admits a tile, has it read, acquires it for a product and releases
// it; which tiles give way for another one to be admitted is up to the cache. For one thread.
class TileCache {
 public:
  virtual ~TileCache() = default;
  // A place for a tile that is to be read; nullptr while none can give way.
  virtual CachedTile* admit(TileId id, const Tile& tile) = 0;
  // A tile that was admitted: it stays until it is released. nullptr for one that is not here.
  virtual CachedTile* acquire(TileId id) = 0;
  virtual void release(CachedTile* tile) = 0;
  // Forgets all tiles, of which none is being read or in use.
  virtual void clear() = 0;
  virtual int64_t nbytes() const = 0;
};

// For tiles that come round in a known order: each lies behind the one admitted before it, all are
// acquired in that order, and gives way when it is released.
class RingBuffer final : public TileCache {
 public:
  RingBuffer(int64_t bytes, ReadCounters& counters);
  CachedTile* admit(TileId id, const Tile& tile) override;
  CachedTile* acquire(TileId id) override;
  void release(CachedTile* tile) override;
  void clear() override { entries_.clear(); }
  int64_t nbytes() const override { return static_cast<int64_t>(memory_.size()); }

 private:
  struct Entry {
    int64_t begin, end;
    std::unique_ptr<CachedTile> tile;
  };
  bool fits(int64_t bytes, int64_t* begin) const;

  AlignedBytes memory_;
  ReadCounters& counters_;
  std::deque<Entry> entries_;
};

}  // namespace strata
