// Rows side by side, as many as the instruction set has lanes. Included once for each, inside its
// namespace; only vertical operations and no fused ones, so that every one has the same bits.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/numbers.h"
#include "quant/encode.h"

namespace strata {

inline uint16_t float_to_half(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t body = bits & 0x7fffffffu;
  if (body > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (body >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (body < 0x38800000u) {
    // Adding 0.5 puts the smallest half's place at the end of the mantissa, which rounds.
    const float shifted = std::bit_cast<float>(body) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = body + 0xfffu + (body >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

namespace STRATA_ENCODE_ISA {

// Wider vectors than there are registers take compilers several times as long, for slower code.
#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif
inline constexpr int kShares = kEncodeLanes / kLanes;   // of the sixteen rows of a panel

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

static inline Lanes all(float v) { return Lanes{} + v; }
static inline Lanes pick(Mask m, Lanes a, Lanes b) { return m ? a : b; }
// a < b ? a : b and a > b ? a : b, also of NaN and of zeros: what these instructions do.
#if defined(__AVX512F__)
static inline Lanes lesser(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
static inline Lanes greater(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX2__)
static inline Lanes lesser(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
static inline Lanes greater(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
#elif defined(__SSE2__)
static inline Lanes lesser(Lanes a, Lanes b) { return _mm_min_ps(a, b); }
static inline Lanes greater(Lanes a, Lanes b) { return _mm_max_ps(a, b); }
#else
static inline Lanes lesser(Lanes a, Lanes b) { return pick(a < b, a, b); }
static inline Lanes greater(Lanes a, Lanes b) { return pick(a > b, a, b); }
#endif
static inline Lanes magnitude(Lanes a) {
  return std::bit_cast<Lanes>(std::bit_cast<Mask>(a) & 0x7fffffff);
}
static inline Lanes between(Lanes a, float low, float high) {
  return lesser(greater(a, all(low)), all(high));
}
// To the nearest whole number, halves to even; for magnitudes below 2^22.
static inline Lanes nearest_whole(Lanes a) {
  const Lanes magic = all(12582912.0f);
  return (a + magic) - magic;
}
// a / b, and 0 where b is 0.
static inline Lanes over(Lanes a, Lanes b) {
  const Mask zero = b == 0.0f;
  return pick(zero, Lanes{}, a / pick(zero, all(1.0f), b));
}
static inline Lanes through_half(Lanes a) {
  a = between(a, -65504.0f, 65504.0f);
  for (int l = 0; l < kLanes; ++l) a[l] = half_to_float(float_to_half(a[l]));
  return a;
}
// The value of largest magnitude, with its sign.
static inline Lanes extreme(const Lanes* x, int n) {
  Lanes out = x[0];
  for (int j = 1; j < n; ++j) out = pick(magnitude(x[j]) > magnitude(out), x[j], out);
  return out;
}

}  // namespace STRATA_ENCODE_ISA
}  // namespace strata
