#include "runtime/storage.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "runtime/fail_points.h"
#include "runtime/kv_tier.h"

namespace strata {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kMapFrom = size_t{128} << 10;
constexpr size_t kHuge = AlignedBytes::kHugePage;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Zero pages that begin where a huge page can, if there is room for one.
void* map(size_t bytes) {
  const size_t spare = bytes >= kHuge ? kHuge : 0;
  void* p = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw AllocationError(bytes);
  if (spare == 0) return p;
  const auto at = reinterpret_cast<size_t>(p);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = round_up(at, kHuge), end = round_up(begin + bytes, page);
  if (begin > at) munmap(p, begin - at);
  if (at + bytes + spare > end) munmap(reinterpret_cast<void*>(end), at + bytes + spare - end);
  return reinterpret_cast<void*>(begin);
}

}  // namespace

// Large buffers come straight from the system: zero pages cost nothing until they are touched, and
// what is freed goes back at once.
AlignedBytes::AlignedBytes(size_t bytes, bool zero, size_t align) : size_(bytes) {
  about_to_allocate(bytes);
  if (bytes >= kMapFrom) {
    data_ = static_cast<uint8_t*>(map(bytes));
#ifdef MADV_HUGEPAGE
    // Fewer TLB misses, and direct reads into whole pieces of memory instead of hundreds of small
    // ones (the disk gives several times as much). A system without them says no.
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    return;
  }
  data_ = static_cast<uint8_t*>(std::aligned_alloc(align, round_up(bytes ? bytes : 1, align)));
  if (data_ == nullptr) throw AllocationError(bytes);
  if (zero) std::memset(data_, 0, bytes);
}

AlignedBytes::~AlignedBytes() {
  if (size_ >= kMapFrom) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

void AlignedBytes::shrink(size_t bytes) {
  if (size_ < kMapFrom || bytes >= size_) return;
  // What is smaller than this is freed otherwise.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t kept = round_up(bytes < kMapFrom ? kMapFrom : bytes, page);
  const size_t end = round_up(size_, page);
  if (kept >= end) return;
  munmap(data_ + kept, end - kept);
  size_ = kept;
}

PackedWeight::PackedWeight(Format f, int64_t rows, int64_t width)
    : format(f), n(rows), k(width), bytes(packed_bytes(f, rows, width), false) {}

StateStore::~StateStore() = default;

int64_t StateStore::ring_bytes(const std::vector<int64_t>& layer_bytes) {
  const int64_t place = KvTier::place_bytes(layer_bytes);
  return KvTier::places(place) * place + KvFile::kAlign;
}

StateStore::StateStore(const std::vector<Kept>& layers, std::vector<Group> groups,
                       const std::string& directory)
    : groups_(std::move(groups)) {
  static std::atomic<uint64_t> next{1};
  id_ = next.fetch_add(1);
  for (const Kept& kept : layers) {
    const int64_t head = kept.kv.k_dim > 0 ? kv_head_bytes(kept.types, kept.kv) : 0;
    layers_.push_back({kept, -1, head, nullptr});
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const auto bytes = [&](const Layer& layer) -> int64_t {
      if (!group.recurrent) return layer.kept.kv_heads * layer.head_bytes;
      return static_cast<int64_t>(
          round_up(static_cast<size_t>(layer.kept.floats) * sizeof(float), kAlign));
    };
    for (int64_t i : group.layers) group.block_stride += bytes(layer(i));
    int64_t size = group.blocks * group.block_stride;
    std::vector<int64_t> parts;
    if (group.slots > 0) {
      for (int64_t i : group.layers) parts.push_back(bytes(layer(i)));
      size = group.slots * group.block_stride + ring_bytes(parts);
    }
    group.buffer = std::make_unique<AlignedBytes>(static_cast<size_t>(size), true);
    for (int64_t i : group.layers) {
      Layer& layer = layers_[static_cast<size_t>(i)];
      layer.bounds_at = group.bounds_stride;
      if (!layer.kept.bounded) continue;
      group.bounds_stride += layer.kept.kv_heads * kv_bounds_bytes(layer.kept.kv.k_dim);
    }
    if (group.bounds_stride > 0) {
      group.bounds = std::make_unique<AlignedBytes>(
          static_cast<size_t>(group.blocks * group.bounds_stride), true);
    }
    uint8_t* data = group.buffer->data();
    for (int64_t i : group.layers) {
      Layer& layer = layers_[static_cast<size_t>(i)];
      layer.group = static_cast<int64_t>(g);
      layer.data = data;
      data += bytes(layer);
    }
    if (group.slots == 0) continue;
    std::vector<KvTier::Layer> made;
    bool chosen = false;
    for (int64_t i : group.layers) {
      made.push_back({layer(i).data, bytes(layer(i))});
      chosen = chosen || layer(i).kept.bounded || layer(i).kept.chosen;
    }
    uint8_t* ring = group.buffer->data() + group.slots * group.block_stride;
    ring += (KvFile::kAlign - reinterpret_cast<uintptr_t>(ring) % KvFile::kAlign) % KvFile::kAlign;
    tier_ = std::make_unique<KvTier>(std::move(made), group.block_stride, group.blocks, group.slots,
                                     ring, KvTier::place_bytes(parts), directory,
                                     chosen);
    tier_group_ = static_cast<int64_t>(g);
  }
}

int64_t StateStore::nbytes() const {
  int64_t sum = 0;
  for (const Group& group : groups_) {
    sum += static_cast<int64_t>(group.buffer->size());
    if (group.bounds) sum += static_cast<int64_t>(group.bounds->size());
  }
  return sum;
}

void StateStore::check_block(int64_t group, int64_t block) const {
  if (group < 0 || group >= groups() || block < 0 || block >= this->group(group).blocks) {
    throw std::out_of_range("there is no block " + std::to_string(block) + " of group " +
                            std::to_string(group));
  }
}

KeyBounds StateStore::bounds(const Layer& layer) const {
  const Group& group = group_of(layer);
  return {group.bounds->data() + layer.bounds_at, group.bounds_stride,
          kv_bounds_bytes(layer.kept.kv.k_dim)};
}

uint16_t* StateStore::bounds(const Layer& layer, int64_t block, int64_t head) const {
  const KeyBounds all = bounds(layer);
  return reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(all.data) + block * all.block_bytes +
                                     head * all.head_bytes);
}

void StateStore::copy(int64_t group, int64_t source, int64_t target) {
  const Group& g = this->group(group);
  if (g.bounds) {
    std::memmove(g.bounds->data() + target * g.bounds_stride,
                 g.bounds->data() + source * g.bounds_stride, static_cast<size_t>(g.bounds_stride));
  }
  if (group == tier_group_) return tier_->copy(source, target);
  std::memmove(g.buffer->data() + target * g.block_stride, g.buffer->data() + source * g.block_stride,
               static_cast<size_t>(g.block_stride));
}

void StateStore::read(int64_t group, int64_t block, uint8_t* out) {
  const Group& g = this->group(group);
  if (g.bounds) {
    std::memcpy(out + g.block_stride, g.bounds->data() + block * g.bounds_stride,
                static_cast<size_t>(g.bounds_stride));
  }
  if (group == tier_group_) return tier_->read(block, out);
  std::memcpy(out, g.buffer->data() + block * g.block_stride, static_cast<size_t>(g.block_stride));
}

void StateStore::write(int64_t group, int64_t block, const uint8_t* data) {
  const Group& g = this->group(group);
  if (g.bounds) {
    std::memcpy(g.bounds->data() + block * g.bounds_stride, data + g.block_stride,
                static_cast<size_t>(g.bounds_stride));
  }
  if (group == tier_group_) return tier_->write(block, data);
  std::memcpy(g.buffer->data() + block * g.block_stride, data, static_cast<size_t>(g.block_stride));
}

uint8_t* StateStore::part(const Layer& layer, int64_t block) const {
  const int64_t at = layer.group == tier_group_ ? tier_->slot(block) : block;
  return layer.data + at * group_of(layer).block_stride;
}

RopeTable::RopeTable(std::vector<float> inv_freq, float mscale, int64_t limit)
    : inv_freq_(std::move(inv_freq)), mscale_(mscale), limit_(limit) {}

void RopeTable::prepare(const int32_t* positions, int64_t rows) {
  const auto count = static_cast<size_t>(rows);
  if (positions_.size() == count && std::equal(positions_.begin(), positions_.end(), positions)) return;
  const size_t floats = count * inv_freq_.size();
  if (floats > cos_.size()) {
    about_to_allocate(2 * sizeof(float) * floats);
    positions_.clear();
    cos_.resize(floats);
    sin_.resize(floats);
  }
  positions_.assign(positions, positions + rows);
  size_t at = 0;
  for (const int64_t position : positions_) {
    const auto p = static_cast<float>(limit_ > 0 ? std::min(position, limit_) : position);
    for (const float frequency : inv_freq_) {
      // The angle is rounded to float as the reference does; cos and sin of it are exact.
      const double angle = p * frequency;
      cos_[at] = static_cast<float>(std::cos(angle)) * mscale_;
      sin_[at++] = static_cast<float>(std::sin(angle)) * mscale_;
    }
  }
}

Arena::Arena(size_t bytes, int threads, size_t scratch_floats)
    : threads_(threads),
      stride_(round_up(scratch_floats, kAlign / sizeof(float))),
      bytes_(bytes, false),
      scratch_(stride_ * static_cast<size_t>(threads) * sizeof(float), false) {}

uint8_t* Arena::choice(size_t bytes) {
  if (!choice_ || choice_->size() < bytes) {
    choice_.reset();
    choice_ = std::make_unique<AlignedBytes>(bytes * 3 / 2, false);
  }
  return choice_->data();
}

float* Arena::partials(size_t floats) {
  const size_t bytes = floats * sizeof(float);
  if (!partials_ || partials_->size() < bytes) {
    partials_.reset();
    partials_ = std::make_unique<AlignedBytes>(partials_room(floats), false);
  }
  return reinterpret_cast<float*>(partials_->data());
}

}  // namespace strata
