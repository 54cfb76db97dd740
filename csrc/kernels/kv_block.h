// How the keys and the values of one KV head in a block are read and written, for each KvType.
// Reading gives floats that depend on the stored bytes alone; writing a position touches no other
// position's elements.
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
  KvNarrow(const uint8_t* keys, const uint8_t* values, int64_t, int64_t v_dim)
      : k(reinterpret_cast<const uint16_t*>(keys)), v(reinterpret_cast<const uint16_t*>(values)),
        stride(kv_value_stride(v_dim)) {}

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

  static void store_key(const float* key, int64_t k_dim, int64_t slot, uint8_t* to) {
    auto* keys = reinterpret_cast<uint16_t*>(to);
    each_vector(k_dim, [&](int64_t i, int lanes) {
      uint16_t t[16];
      kStore(t, within(load_part(key + i, lanes), kMost));
      for (int j = 0; j < lanes; ++j) keys[(i + j) * kKvBlock + slot] = t[j];
    });
  }
  static void store_value(const float* value, int64_t v_dim, int64_t slot, uint8_t* to) {
    auto* values = reinterpret_cast<uint16_t*>(to) + slot * kv_value_stride(v_dim);
    each_vector(v_dim, [&](int64_t i, int lanes) {
      kStore(values + i, within(load_part(value + i, lanes), kMost));
    });
  }

  static constexpr float kMost = kIsHalf ? 65504.0f : 0x1.fep127f;

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
  KvQ8(const uint8_t* keys, const uint8_t* values, int64_t k_dim, int64_t v_dim)
      : k(reinterpret_cast<const int8_t*>(keys)),
        key_scales(reinterpret_cast<const uint16_t*>(k + k_dim * kKvBlock)),
        v(reinterpret_cast<const int8_t*>(values)),
        stride(kv_value_stride(v_dim)),
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

  static void store_key(const float* key, int64_t k_dim, int64_t slot, uint8_t* to) {
    auto* keys = reinterpret_cast<int8_t*>(to);
    auto* scales = reinterpret_cast<uint16_t*>(keys + k_dim * kKvBlock);
    for (int64_t g = 0; g < kv_groups(k_dim); ++g) {
      const int64_t i = g * kKvGroup;
      const int64_t n = k_dim - i < kKvGroup ? k_dim - i : kKvGroup;
      int8_t t[kKvGroup];
      scales[g * kKvBlock + slot] = quantise(key + i, n, t);
      for (int64_t j = 0; j < n; ++j) keys[(i + j) * kKvBlock + slot] = t[j];
    }
  }
  static void store_value(const float* value, int64_t v_dim, int64_t slot, uint8_t* to) {
    const int64_t stride = kv_value_stride(v_dim);
    auto* values = reinterpret_cast<int8_t*>(to);
    auto* scales = reinterpret_cast<uint16_t*>(values + stride * kKvBlock);
    for (int64_t g = 0; g < kv_groups(v_dim); ++g) {
      const int64_t i = g * kKvGroup;
      const int64_t n = v_dim - i < kKvGroup ? v_dim - i : kKvGroup;
      scales[g * kKvBlock + slot] = quantise(value + i, n, values + slot * stride + i);
    }
  }

  const int8_t* k;
  const uint16_t* key_scales;
  const int8_t* v;
  int64_t stride;
  const uint16_t* value_scales;
};

// Multiplies each `block` elements with a Hadamard matrix of determinant one: its own inverse. Sums
// are made in one order, that of the butterflies.
STRATA_INLINE void rotate(float* x, int64_t n, int64_t block) {
  if (block < 2) return;
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t start = 0; start < n; start += 2 * half) {
      for (int64_t i = start; i < start + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float norm = 1.0f / __builtin_sqrtf(static_cast<float>(block));
  for (int64_t i = 0; i < n; ++i) x[i] *= norm;
}

// Four bits an element of a rotated head. kernels/int4_block.h attends over the codes; unpacking is
// for what is not keys and values alike.
struct KvInt4 {
  // The same over rows [n][kKvBlock].
  static void rotate_rows(float* x, int64_t n, int64_t block) {
    if (block < 2) return;
    for (int64_t half = 1; half < block; half *= 2) {
      for (int64_t start = 0; start < n; start += 2 * half) {
        for (int64_t i = start * kKvBlock; i < (start + half) * kKvBlock; i += 16) {
          const F32x16 a = load(x + i), b = load(x + i + half * kKvBlock);
          store_row(x + i, a + b);
          store_row(x + i + half * kKvBlock, a - b);
        }
      }
    }
    const F32x16 norm = broadcast(1.0f / __builtin_sqrtf(static_cast<float>(block)));
    for (int64_t i = 0; i < n * kKvBlock; i += 16) store_row(x + i, load(x + i) * norm);
  }

  // out [k_dim][kKvBlock]
  static __attribute__((noinline)) void unpack_keys(const uint8_t* head, int64_t k_dim,
                                                    float* out) {
    const int64_t groups = kv_groups4(k_dim);
    const auto* scales = reinterpret_cast<const uint16_t*>(head + (k_dim + 7) / 8 * 4 * kKvBlock);
    const uint16_t* least = scales + groups * kKvBlock;
    for (int64_t slot = 0; slot < kKvBlock; slot += 16) {
      for (int64_t dim = 0; dim < k_dim; ++dim) {
        const int64_t at = dim / kKvGroup4 * kKvBlock + slot;
        store_row(out + dim * kKvBlock + slot,
                  fma(codes(head + (dim / 8 * kKvBlock + slot) * 4, dim % 8),
                      load_f16(scales + at), load_f16(least + at)));
      }
    }
  }

  // out [kKvBlock][value stride] for slots [first, most)
  static __attribute__((noinline)) void unpack_values(const uint8_t* values, int64_t v_dim,
                                                      int64_t first, int64_t most, float* out) {
    const int64_t stride = kv_value_stride(v_dim), chunks = (v_dim + 31) / 32;
    const int64_t groups = kv_groups4(v_dim);
    const auto* scales = reinterpret_cast<const uint16_t*>(values + chunks * 16 * kKvBlock);
    const uint16_t* least = scales + groups * kKvBlock;
    for (int64_t slot = first; slot < most; ++slot) {
      for (int64_t dim = 0; dim < stride; dim += 16) {
        const int64_t at = dim / kKvGroup4 * kKvBlock + slot;
        const F32x16 code =
            codes(values + (slot / 4 * chunks + dim / 32) * 64, slot % 4 * 2 + dim % 32 / 16);
        store_row(out + slot * stride + dim,
                  fma(code, broadcast_f16(scales[at]), broadcast_f16(least[at])));
      }
    }
  }

  // Quantises up to kKvGroup4 elements.
  static void quantise(const float* x, int64_t n, uint8_t* q, uint16_t* scale, uint16_t* least) {
    constexpr float kMost = 65504.0f;
    F32x16 top = broadcast(-kMost), bottom = broadcast(kMost), poison = zero16();
    const float spare = n > 0 ? x[0] : 0.0f;
    each_vector(n, [&](int64_t i, int lanes) {
      float t[16];
      for (int j = 0; j < 16; ++j) t[j] = j < lanes ? x[i + j] : spare;
      const F32x16 v = within(load(t), kMost);
      top = max(top, v);
      bottom = min(bottom, v);
      poison = fma(load(t), zero16(), poison);   // a NaN must not be lost
    });
    const float low = -reduce_max(zero16() - bottom), high = reduce_max(top);
    uint16_t t[16];
    store_f16(t, broadcast(low + reduce_add(poison)));
    *least = t[0];
    float from[16], step[16];
    store_row(from, load_f16(t));
    // From the least value as it is kept, so that the largest is reached.
    store_f16(t, broadcast((high - from[0]) / 15.0f));
    *scale = t[0];
    store_row(step, load_f16(t));
    const bool usable = step[0] > 0.0f && step[0] < kMost;
    each_vector(n, [&](int64_t i, int lanes) {
      const F32x16 v = within(load_part(x + i, lanes), kMost);
      const F32x16 code = (v - broadcast(from[0])) / broadcast(step[0]);
      int8_t out[16] = {};
      for (int p = 0; usable && p < kParts; ++p) {
        const F32v held = vmin(vset(15.0f), vmax(vzero(), code.part[p]));
        vstore_s8(out + p * kWidth, vcvt_i32(vround(held)));
      }
      for (int j = 0; j < lanes; ++j) q[i + j] = static_cast<uint8_t>(out[j]);
    });
  }

  static void store_key(const float* key, int64_t k_dim, int64_t slot, uint8_t* head) {
    const int64_t groups = kv_groups4(k_dim);
    auto* scales = reinterpret_cast<uint16_t*>(head + (k_dim + 7) / 8 * 4 * kKvBlock) + slot;
    float x[kPart];
    uint8_t q[kKvGroup4];
    each_part(key, k_dim, x, [&](int64_t at, int64_t n) {
      for (int64_t i = 0; i < n; i += kKvGroup4) {
        const int64_t g = (at + i) / kKvGroup4, count = n - i < kKvGroup4 ? n - i : kKvGroup4;
        quantise(x + i, count, q, scales + g * kKvBlock, scales + (groups + g) * kKvBlock);
        for (int64_t j = count; j % 8 != 0; ++j) q[j] = 0;
        uint8_t* to = head + ((at + i) / 8 * kKvBlock + slot) * 4;
        for (int64_t j = 0; j < count; j += 8, to += 4 * kKvBlock)
          for (int64_t b = 0; b < 4; ++b)
            to[b] = static_cast<uint8_t>(q[j + 2 * b] | q[j + 2 * b + 1] << 4);
      }
    });
  }
  static void store_value(const float* value, int64_t v_dim, int64_t slot, uint8_t* values) {
    const int64_t chunks = (v_dim + 31) / 32, groups = kv_groups4(v_dim);
    auto* scales = reinterpret_cast<uint16_t*>(values + chunks * 16 * kKvBlock) + slot;
    float x[kPart];
    uint8_t q[kKvGroup4];
    uint8_t* to = values + slot / 4 * chunks * 64 + slot % 4;
    for (int64_t i = 0; i < 16 * chunks; ++i) to[4 * i] = 0;
    each_part(value, v_dim, x, [&](int64_t at, int64_t n) {
      for (int64_t i = 0; i < n; i += kKvGroup4) {
        const int64_t g = (at + i) / kKvGroup4, count = n - i < kKvGroup4 ? n - i : kKvGroup4;
        quantise(x + i, count, q, scales + g * kKvBlock,
                 scales + (groups + g) * kKvBlock);
        for (int64_t j = 0; j < count; ++j) {
          const int64_t dim = at + i + j;
          to[4 * (dim / 32 * 16 + dim % 16)] |= static_cast<uint8_t>(q[j] << (dim % 32 < 16 ? 0 : 4));
        }
      }
    });
  }

 private:
  // Rotated and quantised together: a multiple of both, so that no group or block is cut.
  static constexpr int64_t kPart = kMostRotated > kKvGroup4 ? kMostRotated : kKvGroup4;

  template <class F> static void each_part(const float* from, int64_t dim, float* x, const F& f) {
    const int64_t block = kv_rotation(KvType::int4, dim);
    for (int64_t at = 0; at < dim; at += kPart) {
      const int64_t n = dim - at < kPart ? dim - at : kPart;
      for (int64_t i = 0; i < n; ++i) x[i] = from[at + i];
      rotate(x, n, block);
      f(at, n);
    }
  }
  // Code `number` of sixteen words.
  static inline __attribute__((always_inline)) F32x16 codes(const uint8_t* p, int64_t number) {
    return each16([&](int i) {
      const I32v words = vload_i32(reinterpret_cast<const int32_t*>(p) + i * kWidth);
      return vcvt_f32(vand_i32(vshr_i32(words, static_cast<int>(4 * number)), vset_i32(15)));
    });
  }
  static inline __attribute__((always_inline)) void store_row(float* p, const F32x16& v) {
    ::strata::STRATA_ISA::store(p, v);
  }
};

// What is read in place is unpacked where keys and values are of different types.
template <class Kv>
static void unpack_keys(const uint8_t* keys, int64_t k_dim, float* out) {
  const Kv kv(keys, nullptr, k_dim, 0);
  for (int64_t dim = 0; dim < k_dim; ++dim)
    for (int64_t slot = 0; slot < kKvBlock; slot += 16)
      store(out + dim * kKvBlock + slot, kv.keys(dim, slot));
}
template <class Kv>
static void unpack_values(const uint8_t* values, int64_t v_dim, int64_t first, int64_t most,
                          float* out) {
  const Kv kv(nullptr, values, 0, v_dim);
  for (int64_t slot = first; slot < most; ++slot)
    for (int64_t dim = 0; dim < kv.stride; dim += 16)
      store(out + slot * kv.stride + dim, kv.values(slot, dim));
}

}  // namespace strata::STRATA_ISA
