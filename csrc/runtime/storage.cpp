#include "runtime/storage.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace strata {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kMapFrom = size_t{1} << 20;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

// Large buffers come straight from the system: zero pages cost nothing until they are touched, and
// what is freed goes back at once.
AlignedBytes::AlignedBytes(size_t bytes, bool zero, size_t align) : size_(bytes) {
  if (bytes >= kMapFrom) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);   // fewer TLB misses; a system without them says no
#endif
    data_ = static_cast<uint8_t*>(p);
    return;
  }
  data_ = static_cast<uint8_t*>(std::aligned_alloc(align, round_up(bytes ? bytes : 1, align)));
  if (data_ == nullptr) throw std::bad_alloc();
  if (zero) std::memset(data_, 0, bytes);
}

AlignedBytes::~AlignedBytes() {
  if (size_ >= kMapFrom) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

PackedWeight::PackedWeight(Format f, int64_t rows, int64_t width)
    : format(f), n(rows), k(width), bytes(packed_bytes(f, rows, width), false) {}

KvStore::KvStore(KvType type, const std::vector<Shape>& layers, int64_t blocks)
    : type_(type), blocks_(blocks) {
  for (const Shape& s : layers) {
    layers_.push_back({s.kv_heads, s.head_dim, kv_head_bytes(type, s.head_dim), nullptr});
    block_stride_ += s.kv_heads * layers_.back().head_bytes;
  }
  buffer_ = std::make_unique<AlignedBytes>(static_cast<size_t>(nbytes()), true);
  uint8_t* data = buffer_->data();
  for (Layer& layer : layers_) {
    layer.data = data;
    data += layer.kv_heads * layer.head_bytes;
  }
}

RopeTable::RopeTable(std::vector<float> inv_freq, float mscale)
    : inv_freq_(std::move(inv_freq)), mscale_(mscale) {}

void RopeTable::ensure(int64_t positions) {
  if (positions <= positions_) return;
  // Grown in strides, so that a decode does not reallocate at every token.
  const int64_t target = (positions + 255) / 256 * 256;
  cos_.resize(static_cast<size_t>(target * half()));
  sin_.resize(static_cast<size_t>(target * half()));
  for (int64_t p = positions_; p < target; ++p) {
    for (int64_t i = 0; i < half(); ++i) {
      // The angle is rounded to float as the reference does; cos and sin of it are exact.
      const double angle = static_cast<float>(p) * inv_freq_[static_cast<size_t>(i)];
      cos_[static_cast<size_t>(p * half() + i)] = static_cast<float>(std::cos(angle)) * mscale_;
      sin_[static_cast<size_t>(p * half() + i)] = static_cast<float>(std::sin(angle)) * mscale_;
    }
  }
  positions_ = target;
}

Arena::Arena(size_t bytes, int threads, size_t scratch_floats)
    : threads_(threads),
      stride_(round_up(scratch_floats, kAlign / sizeof(float))),
      bytes_(bytes, false),
      scratch_(stride_ * static_cast<size_t>(threads) * sizeof(float), false) {}

float* Arena::partials(size_t floats) {
  const size_t bytes = floats * sizeof(float);
  if (!partials_ || partials_->size() < bytes) {
    partials_.reset();
    partials_ = std::make_unique<AlignedBytes>(partials_room(floats), false);
  }
  return reinterpret_cast<float*>(partials_->data());
}

}  // namespace strata
