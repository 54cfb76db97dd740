// Memory that the runtime holds: packed weights, KV blocks, the arena of a step, RoPE tables.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/step_kernels.h"

namespace strata {

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

// KV blocks; a block holds its positions of every layer, one after the other, so that it is copied,
// written and read as one. All are zero at first: attention may multiply a slot that was never
// written by an exact zero. Memory is touched where a block is used.
class KvStore {
 public:
  struct Layer {
    int64_t kv_heads, head_dim, head_bytes;
    uint8_t* data;   // in block 0
  };
  struct Shape {
    int64_t kv_heads, head_dim;
  };
  KvStore(KvType type, const std::vector<Shape>& layers, int64_t blocks);
  KvStore(const KvStore&) = delete;
  KvStore& operator=(const KvStore&) = delete;
  KvType type() const { return type_; }
  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t blocks() const { return blocks_; }
  int64_t block_stride() const { return block_stride_; }   // bytes
  int64_t nbytes() const { return blocks_ * block_stride_; }
  uint8_t* block(int64_t i) { return buffer_->data() + i * block_stride_; }

 private:
  KvType type_;
  int64_t blocks_, block_stride_ = 0;
  std::vector<Layer> layers_;
  std::unique_ptr<AlignedBytes> buffer_;
};

// cos and sin of every position seen so far, times mscale.
class RopeTable {
 public:
  RopeTable(std::vector<float> inv_freq, float mscale);
  void ensure(int64_t positions);  // not while a step runs that reads the table
  int64_t half() const { return static_cast<int64_t>(inv_freq_.size()); }
  const float* cos(int64_t position) const { return cos_.data() + position * half(); }
  const float* sin(int64_t position) const { return sin_.data() + position * half(); }

 private:
  std::vector<float> inv_freq_;
  float mscale_;
  int64_t positions_ = 0;
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
  // Bytes that asking for so many comes to: with room to grow.
  static size_t partials_room(size_t floats) { return floats * sizeof(float) * 3 / 2; }
  int threads() const { return threads_; }
  size_t scratch_floats() const { return stride_; }
  int64_t nbytes() const {
    return static_cast<int64_t>(bytes_.size() + scratch_.size() +
                                (partials_ ? partials_->size() : 0));
  }

 private:
  int threads_;
  size_t stride_;
  AlignedBytes bytes_, scratch_;
  std::unique_ptr<AlignedBytes> partials_;
};

}  // namespace strata
