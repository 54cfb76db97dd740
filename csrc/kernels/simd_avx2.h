// The vector layer on AVX2 with FMA and F16C: 8 float lanes a vector. Same names as simd_avx512.h,
// which says why everything has internal linkage.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define STRATA_ISA avx2
#define STRATA_INLINE static inline __attribute__((always_inline))

namespace strata::STRATA_ISA {

using F32v = __m256;
using I32v = __m256i;
using U8v = __m256i;
inline constexpr int kWidth = 8;
inline constexpr int kTileRows = 4;
inline constexpr int kManyTileRows = 4;
inline constexpr int kFloatRows = 6;
// Rows and units of float weights where each has one sum.
inline constexpr int kTurnRows = 6, kTurnUnits = 2;
inline constexpr bool kVectors = true;

STRATA_INLINE F32v vload(const float* p) { return _mm256_loadu_ps(p); }
STRATA_INLINE void vstore(float* p, F32v v) { _mm256_storeu_ps(p, v); }
// Past the caches, to an address that is a multiple of the vector; vstream_end() before others read it.
STRATA_INLINE void vstream(float* p, F32v v) { _mm256_stream_ps(p, v); }
STRATA_INLINE void vstream_end() { _mm_sfence(); }
STRATA_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
STRATA_INLINE F32v vload_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
STRATA_INLINE void vstore_n(float* p, F32v v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
STRATA_INLINE F32v vset(float x) { return _mm256_set1_ps(x); }
STRATA_INLINE F32v vzero() { return _mm256_setzero_ps(); }
STRATA_INLINE F32v vadd(F32v a, F32v b) { return _mm256_add_ps(a, b); }
STRATA_INLINE F32v vsub(F32v a, F32v b) { return _mm256_sub_ps(a, b); }
STRATA_INLINE F32v vmul(F32v a, F32v b) { return _mm256_mul_ps(a, b); }
STRATA_INLINE F32v vdiv(F32v a, F32v b) { return _mm256_div_ps(a, b); }
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) { return _mm256_fmadd_ps(a, b, c); }
STRATA_INLINE F32v vmax(F32v a, F32v b) { return _mm256_max_ps(a, b); }
STRATA_INLINE F32v vmin(F32v a, F32v b) { return _mm256_min_ps(a, b); }
STRATA_INLINE F32v vsqrt(F32v a) { return _mm256_sqrt_ps(a); }
STRATA_INLINE F32v vabs(F32v a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
STRATA_INLINE F32v vround(F32v a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
STRATA_INLINE F32v vselect_lt(F32v a, F32v b, F32v x, F32v y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

STRATA_INLINE I32v vset_i32(int32_t x) { return _mm256_set1_epi32(x); }
STRATA_INLINE I32v vadd_i32(I32v a, I32v b) { return _mm256_add_epi32(a, b); }
STRATA_INLINE I32v vsub_i32(I32v a, I32v b) { return _mm256_sub_epi32(a, b); }
STRATA_INLINE I32v vand_i32(I32v a, I32v b) { return _mm256_and_si256(a, b); }
STRATA_INLINE I32v vor_i32(I32v a, I32v b) { return _mm256_or_si256(a, b); }
template <int N> STRATA_INLINE I32v vshl_i32(I32v a) { return _mm256_slli_epi32(a, N); }
template <int N> STRATA_INLINE I32v vsra_i32(I32v a) { return _mm256_srai_epi32(a, N); }
STRATA_INLINE I32v vshr_i32(I32v a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
STRATA_INLINE F32v vcvt_f32(I32v a) { return _mm256_cvtepi32_ps(a); }
// The lowest four bits of each lane, less 7.5.
STRATA_INLINE F32v vcentred4(I32v a) { return vsub(vcvt_f32(vand_i32(a, vset_i32(15))), vset(7.5f)); }
STRATA_INLINE I32v vcvt_i32(F32v a) { return _mm256_cvtps_epi32(a); }
STRATA_INLINE F32v vcast_f32(I32v a) { return _mm256_castsi256_ps(a); }
STRATA_INLINE I32v vcast_i32(F32v a) { return _mm256_castps_si256(a); }
STRATA_INLINE I32v vload_i32(const int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
STRATA_INLINE void vstore_i32(int32_t* p, I32v v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

STRATA_INLINE F32v vload_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE void vstore_f16(uint16_t* p, F32v v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
}
STRATA_INLINE I32v vload_u16(const uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE void vstore_u16(uint16_t* p, I32v v) {
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
STRATA_INLINE I32v vload_u8_i32(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE I32v vload_s8_i32(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
STRATA_INLINE void vstore_s8(int8_t* p, I32v v) {
  const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(w, w));
}

STRATA_INLINE float vreduce_add(F32v v) {
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
STRATA_INLINE float vreduce_max(F32v v) {
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

STRATA_INLINE U8v vload_u8(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
STRATA_INLINE void vstore_u8(uint8_t* p, U8v v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
STRATA_INLINE U8v vset_u8(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
STRATA_INLINE U8v vand_u8(U8v a, U8v b) { return _mm256_and_si256(a, b); }
STRATA_INLINE I32v vxor_i32(I32v a, I32v b) { return _mm256_xor_si256(a, b); }
STRATA_INLINE U8v vbytes(I32v a) { return a; }
// The even and the odd 32-bit words of two vectors, one after the other.
STRATA_INLINE U8v veven_words(U8v a, U8v b) {
  const __m256 words = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(words), 0xd8);
}
STRATA_INLINE U8v vodd_words(U8v a, U8v b) {
  const __m256 words = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xdd);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(words), 0xd8);
}
// All bits of byte i of a lane where bit 4 * kGroup + i is set.
template <int kGroup> STRATA_INLINE U8v vbit_masks(I32v bits) {
  constexpr int at = kGroup / 2;
  const __m256i byte = _mm256_shuffle_epi8(
      bits, _mm256_broadcastsi128_si256(_mm_setr_epi8(at, at, at, at, at + 4, at + 4, at + 4, at + 4,
                                                      at + 8, at + 8, at + 8, at + 8, at + 12,
                                                      at + 12, at + 12, at + 12)));
  const __m256i one = _mm256_set1_epi32(
      static_cast<int>(kGroup % 2 == 0 ? 0x08040201u : 0x80402010u));
  return _mm256_cmpeq_epi8(_mm256_and_si256(byte, one), one);
}
STRATA_INLINE U8v vadd_u8(U8v a, U8v b) { return _mm256_add_epi8(a, b); }
STRATA_INLINE U8v vsub_u8(U8v a, U8v b) { return _mm256_sub_epi8(a, b); }
STRATA_INLINE U8v vavg_u8(U8v a, U8v b) { return _mm256_avg_epu8(a, b); }
STRATA_INLINE U8v vxor_u8(U8v a, U8v b) { return _mm256_xor_si256(a, b); }
STRATA_INLINE U8v vor_masked_u8(U8v a, U8v b, U8v mask) {
  return _mm256_or_si256(a, _mm256_and_si256(b, mask));
}
template <int N> STRATA_INLINE U8v vshr_u8(U8v a) { return _mm256_srli_epi16(a, N); }
template <int N> STRATA_INLINE U8v vshl_u8(U8v a) { return _mm256_slli_epi16(a, N); }
STRATA_INLINE U8v vlookup_u8(const uint8_t* table, U8v idx) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), idx);
}

// vpmaddubsw adds two products in 16 bits, saturating. As many of its results as cannot leave
// 16 bits are added before they are widened; codes of 8 bits come signed and have their sign moved
// to the activation, so that 2 * 128 * 127 stays within.
inline constexpr bool kSignedBytes = true;
template <int N, int kMaxCode>
STRATA_INLINE I32v vdot(const U8v* codes, const int8_t* a, I32v init) {
  const __m256i ones = _mm256_set1_epi16(1);
  constexpr int kGroup0 = kMaxCode > 127 ? 1 : 32767 / (2 * kMaxCode * 127);
  constexpr int kGroup = kGroup0 < N ? kGroup0 : N;
#pragma GCC unroll 8
  for (int g = 0; g < N; g += kGroup) {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int h = 0; h < kGroup; ++h) {
      if (g + h >= N) continue;
      const __m256i w = codes[g + h];
      int32_t four;
      __builtin_memcpy(&four, a + 4 * (g + h), 4);
      const __m256i x = _mm256_set1_epi32(four);
      const __m256i p = kMaxCode > 127
          ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
          : _mm256_maddubs_epi16(w, x);
      sum = h == 0 ? p : _mm256_add_epi16(sum, p);
    }
    init = _mm256_add_epi32(init, _mm256_madd_epi16(sum, ones));
  }
  return init;
}

inline constexpr bool kSharedActs = false;   // registers for one vector of codes at a time
inline constexpr bool kBf16Dot = false;

STRATA_INLINE I32v vload_word(const uint8_t* p, int64_t stride) {
  alignas(32) int32_t w[kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kWidth; ++i) __builtin_memcpy(w + i, p + i * stride, 4);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
}
STRATA_INLINE void vload_words4(const uint8_t* p, int64_t stride, I32v* out) {
  __m256i r[4];   // rows i and i + 4
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto row = [&](int n) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + (i + n) * stride));
    };
    r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(4), 1);
  }
  const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
  const __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}
STRATA_INLINE U8v vsplit_bytes(I32v v) {
  const __m256i grouped = _mm256_shuffle_epi8(
      v, _mm256_broadcastsi128_si256(
             _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  return _mm256_permutevar8x32_epi32(grouped, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

STRATA_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second-level cache.
STRATA_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace strata::STRATA_ISA

#include "kernels/simd_f32x16.h"
