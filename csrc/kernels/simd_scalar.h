// The vector layer in plain C++: 4 lanes, as the compiler's own vectors, which it has on every
// processor. Same names as simd_avx512.h. Here vfma rounds twice (no processor without a fused
// multiply-add does it fast), and nothing else differs.
#pragma once
#include <cstddef>
#include <cstdint>

#define STRATA_ISA scalar
#define STRATA_INLINE static inline __attribute__((always_inline))

namespace strata::STRATA_ISA {

typedef float F32v __attribute__((vector_size(16)));
typedef int32_t I32v __attribute__((vector_size(16)));
typedef uint8_t U8v __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));   // sums that wrap, shifts without a sign
typedef int16_t Halves __attribute__((vector_size(16)));
inline constexpr int kWidth = 4;
inline constexpr int kTileRows = 1;
inline constexpr int kManyTileRows = 1;
inline constexpr int kFloatRows = 2;
// Rows and units of float weights where each has one sum.
inline constexpr int kTurnRows = 2, kTurnUnits = 2;
inline constexpr bool kVectors = false;   // only code size to gain from smaller tiles

template <class R, class F> STRATA_INLINE R lanes(F f) {
  R r = {};
  for (int i = 0; i < static_cast<int>(sizeof(R) / sizeof(r[0])); ++i) r[i] = f(i);
  return r;
}
template <class R> STRATA_INLINE R loaded(const void* p) {
  R r = {};
  __builtin_memcpy(&r, p, sizeof r);
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

STRATA_INLINE F32v vload(const float* p) { return loaded<F32v>(p); }
STRATA_INLINE void vstore(float* p, F32v v) { __builtin_memcpy(p, &v, sizeof v); }
// Where others store past the caches.
STRATA_INLINE void vstream(float* p, F32v v) { vstore(p, v); }
STRATA_INLINE void vstream_end() {}
STRATA_INLINE F32v vload_n(const float* p, int n) {
  F32v v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
STRATA_INLINE void vstore_n(float* p, F32v v, int n) { for (int i = 0; i < n; ++i) p[i] = v[i]; }
STRATA_INLINE F32v vset(float x) { return F32v{x, x, x, x}; }
STRATA_INLINE F32v vzero() { return F32v{}; }
STRATA_INLINE F32v vadd(F32v a, F32v b) { return a + b; }
STRATA_INLINE F32v vsub(F32v a, F32v b) { return a - b; }
STRATA_INLINE F32v vmul(F32v a, F32v b) { return a * b; }
STRATA_INLINE F32v vdiv(F32v a, F32v b) { return a / b; }
#ifdef STRATA_FUSED   // as an oracle for vectors: one rounding, as their instructions have it
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) {
  return lanes<F32v>([&](int i) { return __builtin_fmaf(a[i], b[i], c[i]); });
}
#else
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) { return a * b + c; }
#endif
STRATA_INLINE F32v vmax(F32v a, F32v b) { return a > b ? a : b; }
STRATA_INLINE F32v vmin(F32v a, F32v b) { return a < b ? a : b; }
STRATA_INLINE F32v vsqrt(F32v a) { return lanes<F32v>([&](int i) { return __builtin_sqrtf(a[i]); }); }
STRATA_INLINE F32v vcast_f32(I32v a) { return reinterpret_cast<F32v>(a); }
STRATA_INLINE I32v vcast_i32(F32v a) { return reinterpret_cast<I32v>(a); }
STRATA_INLINE F32v vabs(F32v a) { return vcast_f32(vcast_i32(a) & 0x7fffffff); }
// Adding 1.5 * 2^23 leaves the integer, rounded to even, in the low bits: |a| < 2^22.
STRATA_INLINE F32v vround(F32v a) { return (a + vset(12582912.0f)) - vset(12582912.0f); }
STRATA_INLINE F32v vselect_lt(F32v a, F32v b, F32v x, F32v y) { return a < b ? x : y; }

STRATA_INLINE I32v vset_i32(int32_t x) { return I32v{x, x, x, x}; }
STRATA_INLINE I32v vadd_i32(I32v a, I32v b) {
  return reinterpret_cast<I32v>(reinterpret_cast<Words>(a) + reinterpret_cast<Words>(b));
}
STRATA_INLINE I32v vsub_i32(I32v a, I32v b) {
  return reinterpret_cast<I32v>(reinterpret_cast<Words>(a) - reinterpret_cast<Words>(b));
}
STRATA_INLINE I32v vand_i32(I32v a, I32v b) { return a & b; }
STRATA_INLINE I32v vor_i32(I32v a, I32v b) { return a | b; }
STRATA_INLINE I32v vxor_i32(I32v a, I32v b) { return a ^ b; }
template <int N> STRATA_INLINE I32v vshl_i32(I32v a) {
  return reinterpret_cast<I32v>(reinterpret_cast<Words>(a) << N);
}
template <int N> STRATA_INLINE I32v vsra_i32(I32v a) { return a >> N; }
STRATA_INLINE I32v vshr_i32(I32v a, int n) {
  return reinterpret_cast<I32v>(reinterpret_cast<Words>(a) >> n);
}
STRATA_INLINE F32v vcvt_f32(I32v a) { return __builtin_convertvector(a, F32v); }
// The lowest four bits of each lane, less 7.5.
STRATA_INLINE F32v vcentred4(I32v a) { return vsub(vcvt_f32(vand_i32(a, vset_i32(15))), vset(7.5f)); }
// |a| < 2^22, as in vround; anything else gives some integer, never undefined behaviour.
STRATA_INLINE I32v vcvt_i32(F32v a) {
  return (vcast_i32(a + vset(12582912.0f)) & 0x7fffff) - 0x400000;
}
STRATA_INLINE I32v vload_i32(const int32_t* p) { return loaded<I32v>(p); }
STRATA_INLINE void vstore_i32(int32_t* p, I32v v) { __builtin_memcpy(p, &v, sizeof v); }

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
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(v[i]);
}
STRATA_INLINE I32v vload_u16(const uint16_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(p[i]); });
}
STRATA_INLINE void vstore_u16(uint16_t* p, I32v v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint16_t>(v[i]);
}
STRATA_INLINE I32v vload_u8_i32(const uint8_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(p[i]); });
}
STRATA_INLINE I32v vload_s8_i32(const uint8_t* p) {
  return lanes<I32v>([&](int i) { return static_cast<int32_t>(static_cast<int8_t>(p[i])); });
}
STRATA_INLINE void vstore_s8(int8_t* p, I32v v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(v[i]);
}

STRATA_INLINE float vreduce_add(F32v v) { return (v[0] + v[2]) + (v[1] + v[3]); }
STRATA_INLINE float vreduce_max(F32v v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}

STRATA_INLINE U8v vload_u8(const uint8_t* p) { return loaded<U8v>(p); }
STRATA_INLINE void vstore_u8(uint8_t* p, U8v v) { __builtin_memcpy(p, &v, sizeof v); }
STRATA_INLINE U8v vset_u8(uint8_t x) { return U8v{} + x; }
STRATA_INLINE U8v vand_u8(U8v a, U8v b) { return a & b; }
STRATA_INLINE U8v vbytes(I32v a) { return reinterpret_cast<U8v>(a); }
// The even and the odd 32-bit words of two vectors, one after the other.
STRATA_INLINE U8v veven_words(U8v a, U8v b) {
  const I32v x = reinterpret_cast<I32v>(a), y = reinterpret_cast<I32v>(b);
  return vbytes(I32v{x[0], x[2], y[0], y[2]});
}
STRATA_INLINE U8v vodd_words(U8v a, U8v b) {
  const I32v x = reinterpret_cast<I32v>(a), y = reinterpret_cast<I32v>(b);
  return vbytes(I32v{x[1], x[3], y[1], y[3]});
}
// All bits of byte i of a lane where bit 4 * kGroup + i is set.
template <int kGroup> STRATA_INLINE U8v vbit_masks(I32v bits) {
  const Words four = reinterpret_cast<Words>(bits) >> (4 * kGroup) & 15;
  const Words spread = (four | four << 7 | four << 14 | four << 21) & 0x01010101;
  return U8v{} - reinterpret_cast<U8v>(spread);
}
STRATA_INLINE U8v vadd_u8(U8v a, U8v b) { return a + b; }
STRATA_INLINE U8v vsub_u8(U8v a, U8v b) { return a - b; }
STRATA_INLINE U8v vavg_u8(U8v a, U8v b) { return (a | b) - ((a ^ b) >> 1); }   // rounded up
STRATA_INLINE U8v vxor_u8(U8v a, U8v b) { return a ^ b; }
STRATA_INLINE U8v vor_masked_u8(U8v a, U8v b, U8v mask) { return a | (b & mask); }
template <int N> STRATA_INLINE U8v vshr_u8(U8v a) { return a >> N; }
template <int N> STRATA_INLINE U8v vshl_u8(U8v a) { return a << N; }
STRATA_INLINE U8v vlookup_u8(const uint8_t* table, U8v idx) {
  return lanes<U8v>([&](int i) { return table[idx[i] & 15]; });
}

inline constexpr bool kSignedBytes = true;
// Products of bytes fit 16 bits: those of the even bytes of all lanes, then those of the odd ones.
template <int N, int kMaxCode>
STRATA_INLINE I32v vdot(const U8v* codes, const int8_t* a, I32v init) {
  for (int g = 0; g < N; ++g) {
    const Halves c = reinterpret_cast<Halves>(codes[g]);
    const Halves even = kMaxCode > 127 ? (c << 8) >> 8 : c & 255;
    const Halves odd = kMaxCode > 127 ? c >> 8 : c >> 8 & 255;
    const int16_t a0 = a[4 * g], a1 = a[4 * g + 1], a2 = a[4 * g + 2], a3 = a[4 * g + 3];
    const I32v p = reinterpret_cast<I32v>(even * Halves{a0, a2, a0, a2, a0, a2, a0, a2});
    const I32v q = reinterpret_cast<I32v>(odd * Halves{a1, a3, a1, a3, a1, a3, a1, a3});
    init += ((vshl_i32<16>(p) >> 16) + (p >> 16)) + ((vshl_i32<16>(q) >> 16) + (q >> 16));
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
