// Keys and values of which memory holds some blocks and a file the others.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/kv_file.h"
#include "runtime/read_queue.h"

namespace strata {

struct StepView;

// The blocks of a group of layers that keep all positions. Memory has *slots*, each with room for a
// block of all layers, and a ring of *places* through which a layer's part of the other blocks passes
// while that layer attends. Blocks that a step writes have slots while it runs; those of a step that
// were there first stay (a sweep goes through all of them in turn, so that any that stay save as
// much), and those that no step sees any more give way first. What gives way is written to the file.
//
// Where a block lies changes in `begin` alone. Between that and the end of the step blocks may be
// read, written and copied by another thread, but for those that the step writes.
class KvTier {
 public:
  // A layer's part of a block lies `bytes` long in `data` of slot 0.
  struct Layer {
    uint8_t* data;
    int64_t bytes;
  };
  // Slots lie `slot_bytes` apart; `ring` has places of `place_bytes`. With `chosen` layers attend over
  // some blocks alone, which each says when it does: reads go ahead within a layer.
  KvTier(std::vector<Layer> layers, int64_t slot_bytes, int64_t blocks, int64_t slots,
         uint8_t* ring, int64_t place_bytes, const std::string& directory, bool chosen);
  ~KvTier();
  KvTier(const KvTier&) = delete;
  KvTier& operator=(const KvTier&) = delete;

  // A layer's part of a block in the file, for direct reads.
  static int64_t piece(int64_t bytes) {
    return (bytes + KvFile::kAlign - 1) / KvFile::kAlign * KvFile::kAlign;
  }
  // Bytes of a place: a split of any layer at least.
  static int64_t place_bytes(const std::vector<int64_t>& layer_bytes);
  // How many the ring has: small ones are more, since a disk wants enough bytes asked for at once.
  static int places(int64_t place_bytes);

  // A step begins: what it writes gets slots, and the first reads are asked for. `group` is the
  // number of this group's tables, `calls` are those of its layers that attend in a sweep, in their
  // order, -1 for others. ReadError.
  void begin(const StepView& step, int64_t group, std::vector<int> calls,
             std::shared_ptr<Readers> readers);

  // Splits [split0, split1) of a span, whose cold blocks fit a place.
  struct Run {
    int64_t index, count, block, at;   // in the span's table; in the file; in the place
  };
  struct Item {
    size_t span;
    int64_t split0, split1;
    bool first;                        // of its span
    std::vector<Run> cold;
  };
  const std::vector<Item>& items() const { return items_; }
  // Where the blocks of a span lie, in units of kUnit bytes from a layer's `data`; those of an item
  // that has cold ones while it is held.
  const int32_t* table(size_t span) const { return table_.data() + table_of_[span]; }
  static constexpr int64_t kUnit = 64;

  // A layer attends: call number `call`. Its items with cold blocks are taken in their order. Of each
  // row of the step `chosen` has `words` times 64 bits for the blocks it sees, where these are chosen.
  void attend(int call, const StepView& step, const uint64_t* chosen, int64_t words);
  // Waits for the cold blocks of an item. ReadError.
  void acquire(const Item& item, const Check& check);
  // The item acquired last was used.
  void release();
  // Forgets what is asked for.
  void drop();

  // A block's slot, where it has one; -1 otherwise.
  int64_t slot(int64_t block) const { return slot_of_[static_cast<size_t>(block)]; }
  void copy(int64_t source, int64_t target);
  void read(int64_t block, uint8_t* out);
  // Of a block that no step uses; several threads may, each another block.
  void write(int64_t block, const uint8_t* data);

  struct Counts {
    ReadCounters read;
    std::atomic<int64_t> written{0};
  };
  const Counts& counts() const { return counts_; }

 private:
  struct Slot {
    int64_t block = -1;
    bool dirty = false, pinned = false;
    uint64_t used = 0, arrived = 0;
  };
  class Place;
  class Fetch;

  uint8_t* memory(const Layer& layer, int64_t slot) const { return layer.data + slot * slot_bytes_; }
  int64_t offset(size_t layer, int64_t block) const;
  void write_piece(size_t layer, int64_t block, const uint8_t* from);
  void read_piece(size_t layer, int64_t block, uint8_t* to, uint8_t* aligned);
  void give_slots(const std::vector<int64_t>& written, const std::vector<bool>& whole);
  void evict(Slot& slot);
  void make_items(const StepView& step, const uint64_t* chosen, int64_t words);
  void read_ahead();

  const std::vector<Layer> layers_;
  const int64_t slot_bytes_, place_bytes_;
  const bool chosen_;
  std::vector<int64_t> offsets_;     // of each layer in the file
  KvFile file_;
  AlignedBytes staging_;             // a piece
  Counts counts_;

  std::mutex lock_;                  // of all that follows, but while a step runs
  std::vector<int32_t> slot_of_;
  std::vector<uint8_t> on_disk_;
  std::vector<Slot> slots_;
  uint64_t now_ = 0;

  std::vector<Item> items_;
  std::vector<size_t> cold_items_;
  std::vector<int32_t> blocks_, table_;   // of spans, one after the other: numbers, and places
  std::vector<size_t> table_of_;
  std::vector<int> calls_;
  std::shared_ptr<Readers> readers_;
  std::vector<std::unique_ptr<Place>> places_;
  std::vector<Place*> free_;
  std::deque<Place*> pending_;       // in the order of their use
  Place* held_ = nullptr;
  size_t next_call_ = 0, next_cold_ = 0;
};

}  // namespace strata
