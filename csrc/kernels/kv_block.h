// How one KV head's part of a block is read and written, for each KvType. Reading gives floats that
// depend on the stored bytes alone; writing a position touches no other position's elements.
#pragma once
#include "kernels/rows.h"

namespace strata::STRATA_ISA {

// Values beyond what a type can hold are kept at its ends: an infinity would poison masked keys.
STRATA_INLINE F32x16 within(const F32x16& v, float most) {
  return min(broadcast(most), max(broadcast(-most), v));
}

// Two bytes an element.
template <F32x16 (*kLoad)(const uint16_t*), void (*kStore)(uint16_t*, const F32x16&),
          bool kIsHalf>
struct KvNarrow {
  KvNarrow(const uint8_t* head, const KvShape& s)
      : k(reinterpret_cast<const uint16_t*>(head)), v(k + s.k_dim * kKvBlock),
        stride(kv_value_stride(s.v_dim)) {}

  // Dimension `dim` of the keys at slot .. slot + 15.
  inline __attribute__((always_inline)) F32x16 keys(int64_t dim, int64_t slot) const {
    return kLoad(k + dim * kKvBlock + slot);
  }
  // Dimensions dim .. dim + 15 of the value at `slot`.
  inline __attribute__((always_inline)) F32x16 values(int64_t slot, int64_t dim) const {
    return kLoad(v + slot * stride + dim);
  }
  // Asks for the line of the same place, `away` bytes from here.
  inline __attribute__((always_inline)) void fetch_keys(int64_t dim, int64_t slot, int64_t away) const {
    if (slot % 32 == 0) prefetch(reinterpret_cast<const uint8_t*>(k + dim * kKvBlock + slot) + away);
  }
  inline __attribute__((always_inline)) void fetch_values(int64_t slot, int64_t dim, int64_t away) const {
    if (dim % 32 == 0) prefetch(reinterpret_cast<const uint8_t*>(v + slot * stride + dim) + away);
  }

  static void store(const float* key, const float* value, const KvShape& s, int64_t slot,
                    uint8_t* head) {
    constexpr float kMost = kIsHalf ? 65504.0f : 0x1.fep127f;
    auto* keys = reinterpret_cast<uint16_t*>(head);
    each_vector(s.k_dim, [&](int64_t i, int lanes) {
      uint16_t t[16];
      kStore(t, within(load_part(key + i, lanes), kMost));
      for (int j = 0; j < lanes; ++j) keys[(i + j) * kKvBlock + slot] = t[j];
    });
    if (s.v_in_k) return;
    uint16_t* values = keys + s.k_dim * kKvBlock + slot * kv_value_stride(s.v_dim);
    each_vector(s.v_dim, [&](int64_t i, int lanes) {
      kStore(values + i, within(load_part(value + i, lanes), kMost));
    });
  }

  const uint16_t *k, *v;
  int64_t stride;
};

using KvF16 = KvNarrow<load_f16, store_f16, true>;
using KvBf16 = KvNarrow<load_bf16, store_bf16, false>;

STRATA_INLINE F32x16 load_s8(const int8_t* p) {
  return each16([&](int i) {
    return vcvt_f32(vload_s8_i32(reinterpret_cast<const uint8_t*>(p) + i * kWidth));
  });
}
STRATA_INLINE F32x16 broadcast_f16(uint16_t h) {
  uint16_t t[16];
  for (int i = 0; i < 16; ++i) t[i] = h;
  return load_f16(t);
}

struct KvQ8 {
  KvQ8(const uint8_t* head, const KvShape& s)
      : k(reinterpret_cast<const int8_t*>(head)),
        key_scales(reinterpret_cast<const uint16_t*>(k + s.k_dim * kKvBlock)),
        v(reinterpret_cast<const int8_t*>(key_scales + kv_groups(s.k_dim) * kKvBlock)),
        stride(kv_value_stride(s.v_dim)),
        value_scales(reinterpret_cast<const uint16_t*>(v + stride * kKvBlock)) {}

  inline __attribute__((always_inline)) F32x16 keys(int64_t dim, int64_t slot) const {
    return load_s8(k + dim * kKvBlock + slot) *
           load_f16(key_scales + dim / kKvGroup * kKvBlock + slot);
  }
  inline __attribute__((always_inline)) F32x16 values(int64_t slot, int64_t dim) const {
    return load_s8(v + slot * stride + dim) *
           broadcast_f16(value_scales[dim / kKvGroup * kKvBlock + slot]);
  }
  // Scales are few: the first of a line of codes asks for them.
  inline __attribute__((always_inline)) void fetch_keys(int64_t dim, int64_t slot, int64_t away) const {
    if (slot % 64 == 0) prefetch(reinterpret_cast<const uint8_t*>(k + dim * kKvBlock + slot) + away);
  }
  inline __attribute__((always_inline)) void fetch_values(int64_t slot, int64_t dim, int64_t away) const {
    if (dim % 64 == 0) prefetch(reinterpret_cast<const uint8_t*>(v + slot * stride + dim) + away);
  }

  // Quantises up to kKvGroup elements; returns the scale. The rest of `q` up to a vector is 0.
  static uint16_t quantise(const float* x, int64_t n, int8_t* q) {
    // The largest magnitude with a scale that f16 holds.
    constexpr float kMost = 65504.0f * 127.0f;
    F32x16 largest = zero16(), poison = zero16();
    each_vector(n, [&](int64_t i, int lanes) {
      const F32x16 v = within(load_part(x + i, lanes), kMost);
      largest = max(largest, abs(v));
      poison = fma(v, zero16(), poison);   // a NaN must not be lost in the maximum
    });
    uint16_t scale[16];
    store_f16(scale, broadcast(reduce_max(largest) / 127.0f + reduce_add(poison)));
    const F32x16 d = broadcast_f16(scale[0]);
    const int magnitude = scale[0] & 0x7fff;
    const bool usable = magnitude > 0 && magnitude < 0x7c00;   // neither 0 nor NaN
    each_vector(n, [&](int64_t i, int lanes) {
      const F32x16 v = within(within(load_part(x + i, lanes), kMost) / d, 127.0f);
      int8_t t[16] = {};
      for (int p = 0; usable && p < kParts; ++p)
        vstore_s8(t + p * kWidth, vcvt_i32(vround(v.part[p])));
      for (int j = 0; j < 16; ++j) q[i + j] = j < lanes ? t[j] : static_cast<int8_t>(0);
    });
    return scale[0];
  }

  static void store(const float* key, const float* value, const KvShape& s, int64_t slot,
                    uint8_t* head) {
    auto* keys = reinterpret_cast<int8_t*>(head);
    auto* key_scales = reinterpret_cast<uint16_t*>(keys + s.k_dim * kKvBlock);
    for (int64_t g = 0; g < kv_groups(s.k_dim); ++g) {
      const int64_t i = g * kKvGroup;
      const int64_t n = s.k_dim - i < kKvGroup ? s.k_dim - i : kKvGroup;
      int8_t t[kKvGroup];
      key_scales[g * kKvBlock + slot] = quantise(key + i, n, t);
      for (int64_t j = 0; j < n; ++j) keys[(i + j) * kKvBlock + slot] = t[j];
    }
    if (s.v_in_k) return;
    const int64_t stride = kv_value_stride(s.v_dim);
    auto* values = reinterpret_cast<int8_t*>(key_scales + kv_groups(s.k_dim) * kKvBlock);
    auto* value_scales = reinterpret_cast<uint16_t*>(values + stride * kKvBlock);
    for (int64_t g = 0; g < kv_groups(s.v_dim); ++g) {
      const int64_t i = g * kKvGroup;
      const int64_t n = s.v_dim - i < kKvGroup ? s.v_dim - i : kKvGroup;
      value_scales[g * kKvBlock + slot] = quantise(value + i, n, values + slot * stride + i);
    }
  }

  const int8_t* k;
  const uint16_t* key_scales;
  const int8_t* v;
  int64_t stride;
  const uint16_t* value_scales;
};

}  // namespace strata::STRATA_ISA
