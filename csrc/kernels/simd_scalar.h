// The vector layer in plain C++: 4 lanes as arrays. Same names as simd_avx512.h. Here vfma rounds
// twice (no processor without a fused multiply-add does it fast), and nothing else differs.
#pragma once
#include <cstddef>
#include <cstdint>

#define STRATA_ISA scalar
#define STRATA_INLINE static inline __attribute__((always_inline))

namespace strata::STRATA_ISA {

struct F32v { float v[4]; };
struct I32v { int32_t v[4]; };
struct U8v { uint8_t v[16]; };
inline constexpr int kWidth = 4;
inline constexpr int kTileRows = 1;
inline constexpr int kManyTileRows = 1;
inline constexpr int kFloatRows = 2;
// Rows and units of float weights where each has one sum.
inline constexpr int kTurnRows = 2, kTurnUnits = 2;
inline constexpr bool kVectors = false;   // only code size to gain from smaller tiles

template <class R, class F> STRATA_INLINE R lanes(F f) {
  R r;
  for (int i = 0; i < static_cast<int>(sizeof(R) / sizeof(r.v[0])); ++i) r.v[i] = f(i);
  return r;
}
STRATA_INLINE uint32_t float_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
STRATA_INLINE float bits_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

STRATA_INLINE F32v vload(const float* p) { return lanes<F32v>([&](int i) { return p[i]; }); }
STRATA_INLINE void vstore(float* p, F32v v) { __builtin_memcpy(p, v.v, sizeof v.v); }
STRATA_INLINE F32v vload_n(const float* p, int n) {
  return lanes<F32v>([&](int i) { return i < n ? p[i] : 0.0f; });
}
STRATA_INLINE void vstore_n(float* p, F32v v, int n) { for (int i = 0; i < n; ++i) p[i] = v.v[i]; }
STRATA_INLINE F32v vset(float x) { return lanes<F32v>([&](int) { return x; }); }
STRATA_INLINE F32v vzero() { return vset(0.0f); }
STRATA_INLINE F32v vadd(F32v a, F32v b) { return lanes<F32v>([&](int i) { return a.v[i] + b.v[i]; }); }
STRATA_INLINE F32v vsub(F32v a, F32v b) { return lanes<F32v>([&](int i) { return a.v[i] - b.v[i]; }); }
STRATA_INLINE F32v vmul(F32v a, F32v b) { return lanes<F32v>([&](int i) { return a.v[i] * b.v[i]; }); }
STRATA_INLINE F32v vdiv(F32v a, F32v b) { return lanes<F32v>([&](int i) { return a.v[i] / b.v[i]; }); }
#ifdef STRATA_FUSED   // as an oracle for vectors: one rounding, as their instructions have it
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) {
  return lanes<F32v>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
#else
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) { return vadd(vmul(a, b), c); }
#endif
STRATA_INLINE F32v vmax(F32v a, F32v b) {
  return lanes<F32v>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
STRATA_INLINE F32v vmin(F32v a, F32v b) {
  return lanes<F32v>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
STRATA_INLINE F32v vsqrt(F32v a) { return lanes<F32v>([&](int i) { return __builtin_sqrtf(a.v[i]); }); }
STRATA_INLINE F32v vabs(F32v a) {
  return lanes<F32v>([&](int i) { return bits_float(float_bits(a.v[i]) & 0x7fffffffu); });
}
// Adding 1.5 * 2^23 leaves the integer, rounded to even, in the low bits: |a| < 2^22.
STRATA_INLINE F32v vround(F32v a) {
  return lanes<F32v>([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
}
STRATA_INLINE F32v vselect_lt(F32v a, F32v b, F32v x, F32v y) {
  return lanes<F32v>([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}

STRATA_INLINE I32v vset_i32(int32_t x) { return lanes<I32v>([&](int) { return x; }); }
STRATA_INLINE I32v vadd_i32(I32v a, I32v b) {
  return lanes<I32v>([&](int i) {
    return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
  });
}
STRATA_INLINE I32v vsub_i32(I32v a, I32v b) {
  return lanes<I32v>([&](int i) {
    return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
  });
}
STRATA_INLINE I32v vand_i32(I32v a, I32v b) { return lanes<I32v>([&](int i) { return a.v[i] & b.v[i]; }); }
STRATA_INLINE I32v vor_i32(I32v a, I32v b) { return lanes<I32v>([&](int i) { return a.v[i] | b.v[i]; }); }
template <int N> STRATA_INLINE I32v vshl_i32(I32v a) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N); });
}
template <int N> STRATA_INLINE I32v vsra_i32(I32v a) {
  return lanes<I32v>([&](int i) { return a.v[i] >> N; });
}
STRATA_INLINE I32v vshr_i32(I32v a, int n) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n); });
}
STRATA_INLINE F32v vcvt_f32(I32v a) {
  return lanes<F32v>([&](int i) { return static_cast<float>(a.v[i]); });
}
// |a| < 2^22, as in vround; anything else gives some integer, never undefined behaviour.
STRATA_INLINE I32v vcvt_i32(F32v a) {
  return lanes<I32v>([&](int i) {
    return static_cast<int32_t>((float_bits(a.v[i] + 12582912.0f) & 0x7fffffu)) - 0x400000;
  });
}
STRATA_INLINE F32v vcast_f32(I32v a) {
  return lanes<F32v>([&](int i) { return bits_float(static_cast<uint32_t>(a.v[i])); });
}
STRATA_INLINE I32v vcast_i32(F32v a) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(float_bits(a.v[i])); });
}
STRATA_INLINE I32v vload_i32(const int32_t* p) { return lanes<I32v>([&](int i) { return p[i]; }); }
STRATA_INLINE void vstore_i32(int32_t* p, I32v v) { __builtin_memcpy(p, v.v, sizeof v.v); }

STRATA_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if (body >= 0x0f800000u) return bits_float(sign | body | 0x7f800000u);   // infinity, NaN
  // The exponent is 112 too small; multiplying mends it, for subnormal halves as well.
  return bits_float(sign | float_bits(bits_float(body) * 0x1p112f));
}
STRATA_INLINE uint16_t float_to_half(float x) {
  const uint32_t u = float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a < 0x38800000u) {   // subnormal half: adding 0.5 rounds at its last bit, to even
    return static_cast<uint16_t>(sign | (float_bits(bits_float(a) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}
STRATA_INLINE F32v vload_f16(const uint16_t* p) {
  return lanes<F32v>([&](int i) { return half_to_float(p[i]); });
}
STRATA_INLINE void vstore_f16(uint16_t* p, F32v v) {
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(v.v[i]);
}
STRATA_INLINE I32v vload_u16(const uint16_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(p[i]); });
}
STRATA_INLINE void vstore_u16(uint16_t* p, I32v v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint16_t>(v.v[i]);
}
STRATA_INLINE I32v vload_u8_i32(const uint8_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(p[i]); });
}
STRATA_INLINE I32v vload_s8_i32(const uint8_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(static_cast<int8_t>(p[i])); });
}
STRATA_INLINE void vstore_s8(int8_t* p, I32v v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(v.v[i]);
}

STRATA_INLINE float vreduce_add(F32v v) {
  for (int h = kWidth / 2; h > 0; h /= 2) {
    for (int i = 0; i < h; ++i) v.v[i] += v.v[i + h];
  }
  return v.v[0];
}
STRATA_INLINE float vreduce_max(F32v v) {
  for (int h = kWidth / 2; h > 0; h /= 2) {
    for (int i = 0; i < h; ++i) v.v[i] = v.v[i] > v.v[i + h] ? v.v[i] : v.v[i + h];
  }
  return v.v[0];
}

STRATA_INLINE U8v vload_u8(const uint8_t* p) { return lanes<U8v>([&](int i) { return p[i]; }); }
STRATA_INLINE void vstore_u8(uint8_t* p, U8v v) { __builtin_memcpy(p, v.v, sizeof v.v); }
STRATA_INLINE U8v vset_u8(uint8_t x) { return lanes<U8v>([&](int) { return x; }); }
STRATA_INLINE U8v vand_u8(U8v a, U8v b) {
  return lanes<U8v>([&](int i) { return static_cast<uint8_t>(a.v[i] & b.v[i]); });
}
STRATA_INLINE U8v vxor_u8(U8v a, U8v b) {
  return lanes<U8v>([&](int i) { return static_cast<uint8_t>(a.v[i] ^ b.v[i]); });
}
STRATA_INLINE U8v vor_masked_u8(U8v a, U8v b, U8v mask) {
  return lanes<U8v>([&](int i) { return static_cast<uint8_t>(a.v[i] | (b.v[i] & mask.v[i])); });
}
template <int N> STRATA_INLINE U8v vshr_u8(U8v a) {
  return lanes<U8v>([&](int i) { return static_cast<uint8_t>(a.v[i] >> N); });
}
template <int N> STRATA_INLINE U8v vshl_u8(U8v a) {
  return lanes<U8v>([&](int i) { return static_cast<uint8_t>(a.v[i] << N); });
}
STRATA_INLINE U8v vlookup_u8(const uint8_t* table, U8v idx) {
  return lanes<U8v>([&](int i) { return table[idx.v[i] & 15]; });
}

inline constexpr bool kSignedBytes = true;
template <int N, int kMaxCode>
STRATA_INLINE I32v vdot(const U8v* codes, const int8_t* a, I32v init) {
  for (int g = 0; g < N; ++g) {
    for (int i = 0; i < kWidth; ++i) {
      int32_t sum = 0;
      for (int j = 0; j < 4; ++j) {
        const uint8_t c = codes[g].v[4 * i + j];
        sum += (kMaxCode > 127 ? static_cast<int8_t>(c) : static_cast<int32_t>(c)) * a[4 * g + j];
      }
      init.v[i] += sum;
    }
  }
  return init;
}

inline constexpr bool kSharedActs = false;   // registers for one vector of codes at a time
inline constexpr bool kBf16Dot = false;

STRATA_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
// Into the second-level cache.
STRATA_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace strata::STRATA_ISA

#include "kernels/simd_f32x16.h"
