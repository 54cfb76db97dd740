// The vector layer on AVX-512 (F, BW, VL, DQ, VNNI, BF16, VBMI, GFNI): 16 float lanes a vector.
// Every simd_*.h gives the same names, so the kernel templates are written once. Everything in here
// has internal linkage: an inline function shared between instruction sets could be merged by the
// linker into one that this processor cannot run.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own headers read a deliberately undefined vector in every unmasked intrinsic.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define STRATA_ISA avx512
#define STRATA_BYTE_PERMUTES   // books_permuted.h
#define STRATA_INLINE static inline __attribute__((always_inline))

namespace strata::STRATA_ISA {

using F32v = __m512;    // kWidth floats
using I32v = __m512i;   // kWidth int32
using U8v = __m512i;    // 4 * kWidth bytes: four neighbours along K for each lane
inline constexpr int kWidth = 16;
// Rows of activations that share unpacked codes: codes, sums and scales fit in the registers.
inline constexpr int kTileRows = 8;
// The same where two panels share them, so that none has to wait in memory.
inline constexpr int kManyTileRows = 6;
// The same for float weights, two vectors of them at a time.
inline constexpr int kFloatRows = 12;
// Rows and units of float weights where each has one sum.
inline constexpr int kTurnRows = 8, kTurnUnits = 3;
inline constexpr bool kVectors = true;

// Float lanes.
STRATA_INLINE F32v vload(const float* p) { return _mm512_loadu_ps(p); }
STRATA_INLINE void vstore(float* p, F32v v) { _mm512_storeu_ps(p, v); }
// Past the caches, to an address that is a multiple of the vector; vstream_end() before others read it.
STRATA_INLINE void vstream(float* p, F32v v) { _mm512_stream_ps(p, v); }
STRATA_INLINE void vstream_end() { _mm_sfence(); }
STRATA_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
// The first n lanes (0 <= n <= kWidth); the others read as zero and are never written.
STRATA_INLINE F32v vload_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
STRATA_INLINE void vstore_n(float* p, F32v v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
STRATA_INLINE F32v vset(float x) { return _mm512_set1_ps(x); }
STRATA_INLINE F32v vzero() { return _mm512_setzero_ps(); }
STRATA_INLINE F32v vadd(F32v a, F32v b) { return _mm512_add_ps(a, b); }
STRATA_INLINE F32v vsub(F32v a, F32v b) { return _mm512_sub_ps(a, b); }
STRATA_INLINE F32v vmul(F32v a, F32v b) { return _mm512_mul_ps(a, b); }
STRATA_INLINE F32v vdiv(F32v a, F32v b) { return _mm512_div_ps(a, b); }
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) { return _mm512_fmadd_ps(a, b, c); }   // a * b + c
// Where either is NaN the second comes back.
STRATA_INLINE F32v vmax(F32v a, F32v b) { return _mm512_max_ps(a, b); }
STRATA_INLINE F32v vmin(F32v a, F32v b) { return _mm512_min_ps(a, b); }
STRATA_INLINE F32v vsqrt(F32v a) { return _mm512_sqrt_ps(a); }
STRATA_INLINE F32v vabs(F32v a) { return _mm512_abs_ps(a); }
STRATA_INLINE F32v vround(F32v a) { return _mm512_roundscale_ps(a, 0); }   // nearest, ties to even
// a < b ? x : y (false where either is NaN).
STRATA_INLINE F32v vselect_lt(F32v a, F32v b, F32v x, F32v y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

// Int32 lanes.
STRATA_INLINE I32v vset_i32(int32_t x) { return _mm512_set1_epi32(x); }
STRATA_INLINE I32v vadd_i32(I32v a, I32v b) { return _mm512_add_epi32(a, b); }
STRATA_INLINE I32v vsub_i32(I32v a, I32v b) { return _mm512_sub_epi32(a, b); }
STRATA_INLINE I32v vand_i32(I32v a, I32v b) { return _mm512_and_si512(a, b); }
STRATA_INLINE I32v vor_i32(I32v a, I32v b) { return _mm512_or_si512(a, b); }
template <int N> STRATA_INLINE I32v vshl_i32(I32v a) { return _mm512_slli_epi32(a, N); }
template <int N> STRATA_INLINE I32v vsra_i32(I32v a) { return _mm512_srai_epi32(a, N); }
STRATA_INLINE I32v vshr_i32(I32v a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
STRATA_INLINE F32v vcvt_f32(I32v a) { return _mm512_cvtepi32_ps(a); }
// The lowest four bits of each lane, less 7.5.
STRATA_INLINE F32v vcentred4(I32v a) {
  const __m512 table = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f,
                                      1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f);
  return _mm512_permutexvar_ps(a, table);
}
STRATA_INLINE I32v vcvt_i32(F32v a) { return _mm512_cvtps_epi32(a); }   // nearest, ties to even
STRATA_INLINE F32v vcast_f32(I32v a) { return _mm512_castsi512_ps(a); }
STRATA_INLINE I32v vcast_i32(F32v a) { return _mm512_castps_si512(a); }
STRATA_INLINE I32v vload_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
STRATA_INLINE void vstore_i32(int32_t* p, I32v v) { _mm512_storeu_si512(p, v); }

// Narrow loads and stores of kWidth elements.
STRATA_INLINE F32v vload_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
STRATA_INLINE void vstore_f16(uint16_t* p, F32v v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0));
}
STRATA_INLINE I32v vload_u16(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
STRATA_INLINE void vstore_u16(uint16_t* p, I32v v) {   // the low halves
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
STRATA_INLINE I32v vload_u8_i32(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE I32v vload_s8_i32(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE void vstore_s8(int8_t* p, I32v v) {   // values within int8
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

// Over the lanes, always in this order: i with i+8, then i+4, i+2, i+1.
STRATA_INLINE float vreduce_add(F32v v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
STRATA_INLINE float vreduce_max(F32v v) {
  const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// Bytes: codes of weights, 4 * kWidth a vector.
STRATA_INLINE U8v vload_u8(const uint8_t* p) { return _mm512_loadu_si512(p); }
STRATA_INLINE void vstore_u8(uint8_t* p, U8v v) { _mm512_storeu_si512(p, v); }
STRATA_INLINE U8v vset_u8(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
STRATA_INLINE U8v vand_u8(U8v a, U8v b) { return _mm512_and_si512(a, b); }
STRATA_INLINE I32v vxor_i32(I32v a, I32v b) { return _mm512_xor_si512(a, b); }
STRATA_INLINE U8v vbytes(I32v a) { return a; }
// The even and the odd 32-bit words of two vectors, one after the other.
STRATA_INLINE U8v veven_words(U8v a, U8v b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_epi32(a, even, b);
}
STRATA_INLINE U8v vodd_words(U8v a, U8v b) {
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_epi32(a, odd, b);
}
STRATA_INLINE U8v vadd_u8(U8v a, U8v b) { return _mm512_add_epi8(a, b); }
STRATA_INLINE U8v vsub_u8(U8v a, U8v b) { return _mm512_sub_epi8(a, b); }
STRATA_INLINE U8v vavg_u8(U8v a, U8v b) { return _mm512_avg_epu8(a, b); }   // rounded up
STRATA_INLINE U8v vxor_u8(U8v a, U8v b) { return _mm512_xor_si512(a, b); }
// a | (b & mask)
STRATA_INLINE U8v vor_masked_u8(U8v a, U8v b, U8v mask) {
  return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
// Bits moved within 16-bit halves: what crosses from byte to byte is masked away by the caller.
template <int N> STRATA_INLINE U8v vshr_u8(U8v a) { return _mm512_srli_epi16(a, N); }
template <int N> STRATA_INLINE U8v vshl_u8(U8v a) { return _mm512_slli_epi16(a, N); }
// table[idx] for 16 entries, idx < 16.
STRATA_INLINE U8v vlookup_u8(const uint8_t* table, U8v idx) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), idx);
}

// Exact int32 dot products of N code vectors with 4 * N activations, added to init. Codes are
// unsigned and at most kMaxCode.
inline constexpr bool kSignedBytes = false;   // codes of 8 bits come as unsigned, minus 128
template <int N, int kMaxCode>
STRATA_INLINE I32v vdot(const U8v* codes, const int8_t* a, I32v init) {
  const auto four = [&](int g) {
    int32_t word;
    __builtin_memcpy(&word, a + 4 * g, 4);
    return _mm512_set1_epi32(word);
  };
  __m512i more = _mm512_setzero_si512();   // in two chains, so that half as long waits
#pragma GCC unroll 8
  for (int g = 0; g < N / 2; ++g) {
    init = _mm512_dpbusd_epi32(init, codes[g], four(g));
    more = _mm512_dpbusd_epi32(more, codes[g + N / 2], four(g + N / 2));
  }
  return _mm512_add_epi32(init, more);
}

// The same for two sets of codes: a broadcast serves both, because loads are what runs out first.
// In two chains the scheduler holds more that need not wait, for more registers.
inline constexpr bool kSharedActs = true;
template <int N, int kChains>
STRATA_INLINE void vdot_two(const U8v* codes, const U8v* others, const int8_t* a, I32v& sum,
                            I32v& other) {
  const auto step = [&](int g, __m512i& first, __m512i& second) {
    int32_t four;
    __builtin_memcpy(&four, a + 4 * g, 4);
    const __m512i x = _mm512_set1_epi32(four);
    first = _mm512_dpbusd_epi32(first, codes[g], x);
    second = _mm512_dpbusd_epi32(second, others[g], x);
  };
  if constexpr (kChains == 1) {
#pragma GCC unroll 8
    for (int g = 0; g < N; ++g) step(g, sum, other);
  } else {
    __m512i more = _mm512_setzero_si512(), rest = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int g = 0; g < N / 2; ++g) {
      step(g, sum, other);
      step(g + N / 2, more, rest);
    }
    sum = _mm512_add_epi32(sum, more);
    other = _mm512_add_epi32(other, rest);
  }
}

// Pairs of bf16 along K, one pair a lane: acc + w.even * x.even + w.odd * x.odd.
inline constexpr bool kBf16Dot = true;
STRATA_INLINE F32v vdot_bf16(F32v acc, const uint16_t* w, const uint16_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, 4);
  const __m512i ww = _mm512_loadu_si512(w);
  return _mm512_dpbf16_ps(acc, (__m512bh)ww, (__m512bh)_mm512_set1_epi32(pair));
}

// The word at p of each of kWidth rows, `stride` bytes apart, and four words of each, turned.
STRATA_INLINE I32v vload_word(const uint8_t* p, int64_t stride) {
  alignas(64) int32_t w[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) __builtin_memcpy(w + i, p + i * stride, 4);
  return _mm512_load_si512(w);
}
STRATA_INLINE void vload_words4(const uint8_t* p, int64_t stride, I32v* out) {
  __m512i r[4];   // rows i, i + 4, i + 8 and i + 12
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto row = [&](int n) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + (i + n) * stride));
    };
    r[i] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(4), 1);
    r[i] = _mm512_inserti32x4(r[i], row(8), 2);
    r[i] = _mm512_inserti32x4(r[i], row(12), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}
// Byte 0 of every lane, then byte 1, 2 and 3.
STRATA_INLINE U8v vsplit_bytes(I32v v) {
  const __m512i grouped = _mm512_shuffle_epi8(
      v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), grouped);
}

STRATA_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second-level cache.
STRATA_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace strata::STRATA_ISA

#include "kernels/simd_f32x16.h"
