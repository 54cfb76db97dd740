// The vector layer on AArch64: 4 float lanes a vector. Same names as simd_avx512.h. Built with the
// dot-product extension where the build line asks for it; the integers are the same without.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#define STRATA_ISA neon
#define STRATA_INLINE static inline __attribute__((always_inline))

namespace strata::STRATA_ISA {

using F32v = float32x4_t;
using I32v = int32x4_t;
using U8v = uint8x16_t;
inline constexpr int kWidth = 4;
inline constexpr int kTileRows = 8;
inline constexpr int kManyTileRows = 8;
inline constexpr int kFloatRows = 8;
// Rows and units of float weights where each has one sum.
inline constexpr int kTurnRows = 8, kTurnUnits = 3;
inline constexpr bool kVectors = true;

STRATA_INLINE F32v vload(const float* p) { return vld1q_f32(p); }
STRATA_INLINE void vstore(float* p, F32v v) { vst1q_f32(p, v); }
// Where others store past the caches.
STRATA_INLINE void vstream(float* p, F32v v) { vstore(p, v); }
STRATA_INLINE void vstream_end() {}
STRATA_INLINE F32v vload_n(const float* p, int n) {
  float t[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return vld1q_f32(t);
}
STRATA_INLINE void vstore_n(float* p, F32v v, int n) {
  float t[4];
  vst1q_f32(t, v);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
STRATA_INLINE F32v vset(float x) { return vdupq_n_f32(x); }
STRATA_INLINE F32v vzero() { return vdupq_n_f32(0.0f); }
STRATA_INLINE F32v vadd(F32v a, F32v b) { return vaddq_f32(a, b); }
STRATA_INLINE F32v vsub(F32v a, F32v b) { return vsubq_f32(a, b); }
STRATA_INLINE F32v vmul(F32v a, F32v b) { return vmulq_f32(a, b); }
STRATA_INLINE F32v vdiv(F32v a, F32v b) { return vdivq_f32(a, b); }
STRATA_INLINE F32v vfma(F32v a, F32v b, F32v c) { return vfmaq_f32(c, a, b); }
STRATA_INLINE F32v vselect_lt(F32v a, F32v b, F32v x, F32v y) {
  return vbslq_f32(vcltq_f32(a, b), x, y);
}
STRATA_INLINE F32v vmax(F32v a, F32v b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
STRATA_INLINE F32v vmin(F32v a, F32v b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
STRATA_INLINE F32v vsqrt(F32v a) { return vsqrtq_f32(a); }
STRATA_INLINE F32v vabs(F32v a) { return vabsq_f32(a); }
STRATA_INLINE F32v vround(F32v a) { return vrndnq_f32(a); }

STRATA_INLINE I32v vset_i32(int32_t x) { return vdupq_n_s32(x); }
STRATA_INLINE I32v vadd_i32(I32v a, I32v b) { return vaddq_s32(a, b); }
STRATA_INLINE I32v vsub_i32(I32v a, I32v b) { return vsubq_s32(a, b); }
STRATA_INLINE I32v vand_i32(I32v a, I32v b) { return vandq_s32(a, b); }
STRATA_INLINE I32v vor_i32(I32v a, I32v b) { return vorrq_s32(a, b); }
template <int N> STRATA_INLINE I32v vshl_i32(I32v a) { return vshlq_n_s32(a, N); }
template <int N> STRATA_INLINE I32v vsra_i32(I32v a) { return vshrq_n_s32(a, N); }
STRATA_INLINE I32v vshr_i32(I32v a, int n) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}
STRATA_INLINE F32v vcvt_f32(I32v a) { return vcvtq_f32_s32(a); }
// The lowest four bits of each lane, less 7.5.
STRATA_INLINE F32v vcentred4(I32v a) { return vsub(vcvt_f32(vand_i32(a, vset_i32(15))), vset(7.5f)); }
STRATA_INLINE I32v vcvt_i32(F32v a) { return vcvtnq_s32_f32(a); }
STRATA_INLINE F32v vcast_f32(I32v a) { return vreinterpretq_f32_s32(a); }
STRATA_INLINE I32v vcast_i32(F32v a) { return vreinterpretq_s32_f32(a); }
STRATA_INLINE I32v vload_i32(const int32_t* p) { return vld1q_s32(p); }
STRATA_INLINE void vstore_i32(int32_t* p, I32v v) { vst1q_s32(p, v); }

STRATA_INLINE F32v vload_f16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
STRATA_INLINE void vstore_f16(uint16_t* p, F32v v) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
STRATA_INLINE I32v vload_u16(const uint16_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)));
}
STRATA_INLINE void vstore_u16(uint16_t* p, I32v v) {
  vst1_u16(p, vmovn_u32(vreinterpretq_u32_s32(v)));
}
STRATA_INLINE uint8x8_t load_four(const uint8_t* p) {
  uint32_t w;
  __builtin_memcpy(&w, p, 4);
  return vreinterpret_u8_u32(vdup_n_u32(w));
}
STRATA_INLINE I32v vload_u8_i32(const uint8_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))));
}
STRATA_INLINE I32v vload_s8_i32(const uint8_t* p) {
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(p)))));
}
STRATA_INLINE void vstore_s8(int8_t* p, I32v v) {
  const int16x4_t w = vmovn_s32(v);
  const int8x8_t b = vmovn_s16(vcombine_s16(w, w));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(b), 0);
  __builtin_memcpy(p, &four, 4);
}

STRATA_INLINE float vreduce_add(F32v v) {
  const float32x2_t h = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}
STRATA_INLINE float vreduce_max(F32v v) {
  float t[4];
  vst1q_f32(t, v);
  const float a = t[0] > t[2] ? t[0] : t[2];
  const float b = t[1] > t[3] ? t[1] : t[3];
  return a > b ? a : b;
}

STRATA_INLINE U8v vload_u8(const uint8_t* p) { return vld1q_u8(p); }
STRATA_INLINE void vstore_u8(uint8_t* p, U8v v) { vst1q_u8(p, v); }
STRATA_INLINE U8v vset_u8(uint8_t x) { return vdupq_n_u8(x); }
STRATA_INLINE U8v vand_u8(U8v a, U8v b) { return vandq_u8(a, b); }
STRATA_INLINE I32v vxor_i32(I32v a, I32v b) { return veorq_s32(a, b); }
STRATA_INLINE U8v vbytes(I32v a) { return vreinterpretq_u8_s32(a); }
// The even and the odd 32-bit words of two vectors, one after the other.
STRATA_INLINE U8v veven_words(U8v a, U8v b) {
  return vreinterpretq_u8_u32(vuzp1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
STRATA_INLINE U8v vodd_words(U8v a, U8v b) {
  return vreinterpretq_u8_u32(vuzp2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
// All bits of byte i of a lane where bit 4 * kGroup + i is set.
template <int kGroup> STRATA_INLINE U8v vbit_masks(I32v bits) {
  constexpr uint8_t at = kGroup / 2;
  constexpr uint8_t places[16] = {at, at, at, at, at + 4, at + 4, at + 4, at + 4,
                                  at + 8, at + 8, at + 8, at + 8, at + 12, at + 12, at + 12, at + 12};
  const uint8x16_t byte = vqtbl1q_u8(vbytes(bits), vld1q_u8(places));
  return vtstq_u8(byte, vreinterpretq_u8_u32(vdupq_n_u32(kGroup % 2 == 0 ? 0x08040201u : 0x80402010u)));
}
STRATA_INLINE U8v vadd_u8(U8v a, U8v b) { return vaddq_u8(a, b); }
STRATA_INLINE U8v vsub_u8(U8v a, U8v b) { return vsubq_u8(a, b); }
STRATA_INLINE U8v vavg_u8(U8v a, U8v b) { return vrhaddq_u8(a, b); }
STRATA_INLINE U8v vxor_u8(U8v a, U8v b) { return veorq_u8(a, b); }
STRATA_INLINE U8v vor_masked_u8(U8v a, U8v b, U8v mask) { return vorrq_u8(a, vandq_u8(b, mask)); }
template <int N> STRATA_INLINE U8v vshr_u8(U8v a) {
  if constexpr (N == 0) return a;
  else return vshrq_n_u8(a, N);
}
template <int N> STRATA_INLINE U8v vshl_u8(U8v a) { return vshlq_n_u8(a, N); }
STRATA_INLINE U8v vlookup_u8(const uint8_t* table, U8v idx) { return vqtbl1q_u8(vld1q_u8(table), idx); }

inline constexpr bool kSignedBytes = true;
template <int N, int kMaxCode>
STRATA_INLINE I32v vdot(const U8v* codes, const int8_t* a, I32v init) {
  for (int g = 0; g < N; ++g) {
    int32_t four;
    __builtin_memcpy(&four, a + 4 * g, 4);
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    const int8x16_t w = vreinterpretq_s8_u8(codes[g]);
#ifdef __ARM_FEATURE_DOTPROD
    init = vdotq_s32(init, w, x);
#else
    const int32x4_t lo = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    const int32x4_t hi = vpaddlq_s16(vmull_high_s8(w, x));
    init = vaddq_s32(init, vpaddq_s32(lo, hi));
#endif
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
