// Memory that the runtime holds: packed weights, state of sequences, the arena of a step, RoPE tables.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/step_kernels.h"

namespace strata {

class KvTier;

// Aligned (by default to a cache line), uninitialised or zeroed bytes with one owner.
class AlignedBytes {
 public:
  AlignedBytes(size_t bytes, bool zero, size_t align = 64);
  ~AlignedBytes();
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives back what lies behind the first so many bytes, in whole pages, where it came straight from
  // the system.
  void shrink(size_t bytes);

  // From this size on buffers begin at a multiple of it and are made of huge pages where the system
  // has them.
  static constexpr size_t kHugePage = size_t{2} << 20;

 private:
  uint8_t* data_;
  size_t size_;
};

// An [n, k] weight in kernel-ready form.
struct PackedWeight {
  PackedWeight(Format format, int64_t n, int64_t k);
  Format format;
  int64_t n, k;
  AlignedBytes bytes;
};

// What layers keep of sequences, in groups with a pool of blocks each. A block of a paged group holds
// its positions of every layer of the group, one after the other, so that it is copied, written and
// read as one; a block of a recurrent group is a slot, which holds one sequence's state of every
// layer. All are zero at first: attention may multiply a slot that was never written by an exact
// zero. Memory is touched where a block is used.
class StateStore {
 public:
  // What a layer keeps: keys and values of a position (kv.k_dim > 0), so many floats of a sequence,
  // or neither, where it reads another layer's.
  struct Kept {
    int64_t kv_heads;
    KvShape kv;
    int64_t floats;
    KvTypes types;
    bool bounded = false;   // bounds of the keys of its blocks are kept, in memory
    bool chosen = false;    // rows see some of its blocks alone
  };
  struct Layer {
    Kept kept;
    int64_t group;        // -1: keeps nothing
    int64_t head_bytes;   // of one KV head in a block
    uint8_t* data;        // in block 0
    int64_t bounds_at = 0;   // in the bounds of a block
  };
  struct Group {
    std::vector<int64_t> layers;
    int64_t window;       // 0: all positions are kept
    int64_t beginning;    // positions that are kept beside the window
    bool recurrent;
    int64_t blocks;
    int64_t slots = 0;          // blocks in memory where the others are in a file; 0: all are
    int64_t block_stride = 0;   // bytes
    std::unique_ptr<AlignedBytes> buffer = nullptr;
    int64_t bounds_stride = 0;   // bytes of the bounds of a block
    std::unique_ptr<AlignedBytes> bounds = nullptr;
    int64_t block_bytes() const { return block_stride + bounds_stride; }
  };
  // The file is made in `directory`, where a group has slots.
  StateStore(const std::vector<Kept>& layers, std::vector<Group> groups,
             const std::string& directory);
  ~StateStore();
  StateStore(const StateStore&) = delete;
  StateStore& operator=(const StateStore&) = delete;
  // Tells stores of a process apart.
  uint64_t id() const { return id_; }
  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Group& group(int64_t g) const { return groups_[static_cast<size_t>(g)]; }
  const Group& group_of(const Layer& layer) const { return group(layer.group); }
  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  bool recurrent() const { return !groups_.empty() && groups_.back().recurrent; }
  int64_t nbytes() const;
  // std::out_of_range for a group or a block that is not there.
  void check_block(int64_t group, int64_t block) const;
  void copy(int64_t group, int64_t source, int64_t target);
  void read(int64_t group, int64_t block, uint8_t* out);
  void write(int64_t group, int64_t block, const uint8_t* data);

  // The bounds of the keys of a layer that has them, of all blocks.
  KeyBounds bounds(const Layer& layer) const;
  uint16_t* bounds(const Layer& layer, int64_t block, int64_t head) const;
  // A layer's part of a block; one that a step writes, where not all are in memory.
  uint8_t* part(const Layer& layer, int64_t block) const;
  // Where the blocks of the group with slots are; null where no group has any.
  KvTier* tier() const { return tier_.get(); }
  int64_t tier_group() const { return tier_group_; }
  // Bytes of memory that a group takes in so many slots (0: all its blocks are in memory), with the
  // ring buffer.
  static int64_t ring_bytes(const std::vector<int64_t>& layer_bytes);

 private:
  uint64_t id_;
  std::vector<Layer> layers_;
  std::vector<Group> groups_;
  std::unique_ptr<KvTier> tier_;   // before the buffers it looks into
  int64_t tier_group_ = -1;
};

// cos and sin of the positions of a step, times mscale, for all layers that have them. What lies
// further than `limit` counts as that position; 0: none does.
class RopeTable {
 public:
  RopeTable(std::vector<float> inv_freq, float mscale, int64_t limit);
  void prepare(const int32_t* positions, int64_t rows);  // not while others read the table
  int64_t half() const { return static_cast<int64_t>(inv_freq_.size()); }
  const float* cos(int64_t row) const { return cos_.data() + row * half(); }
  const float* sin(int64_t row) const { return sin_.data() + row * half(); }

 private:
  std::vector<float> inv_freq_;
  float mscale_;
  int64_t limit_;
  std::vector<int32_t> positions_;
  std::vector<float> cos_, sin_;
};

// Activations of a step and a scratch for each thread.
class Arena {
 public:
  Arena(size_t bytes, int threads, size_t scratch_floats);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* data() { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  float* scratch(int thread) {
    return reinterpret_cast<float*>(scratch_.data()) + static_cast<size_t>(thread) * stride_;
  }
  // Partial results of split attention, shared by all layers; not while a phase runs that uses it.
  float* partials(size_t floats);
  // Bits of the blocks that rows see, shared by all layers, with what choosing them takes.
  uint8_t* choice(size_t bytes);
  // Bytes that asking for so many comes to: with room to grow.
  static size_t partials_room(size_t floats) { return floats * sizeof(float) * 3 / 2; }
  int threads() const { return threads_; }
  size_t scratch_floats() const { return stride_; }
  int64_t nbytes() const {
    return static_cast<int64_t>(bytes_.size() + scratch_.size() +
                                (partials_ ? partials_->size() : 0) + (choice_ ? choice_->size() : 0));
  }

 private:
  int threads_;
  size_t stride_;
  AlignedBytes bytes_, scratch_;
  std::unique_ptr<AlignedBytes> partials_, choice_;
};

}  // namespace strata
