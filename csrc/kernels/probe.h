// What this processor can do at best, in the instructions the kernels use: for the machine probe
// and for benchmarks that state a share of it.
#pragma once
#include "kernels/kernels.h"

namespace strata::STRATA_ISA {

// Reads everything once; the result only keeps the compiler from skipping it.
static uint32_t read_stream(const uint8_t* p, int64_t bytes) {
  I32v sums[8];
  for (I32v& s : sums) s = vset_i32(0);
  constexpr int64_t kVector = 4 * kWidth;
  for (int64_t i = 0; i + 8 * kVector <= bytes; i += 8 * kVector) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int32_t* v = reinterpret_cast<const int32_t*>(p + i + j * kVector);
      sums[j] = vadd_i32(sums[j], vload_i32(v));
    }
  }
  for (int j = 1; j < 8; ++j) sums[0] = vadd_i32(sums[0], sums[j]);
  int32_t lanes[kWidth];
  vstore_i32(lanes, sums[0]);
  return static_cast<uint32_t>(lanes[0]);
}

// A template, so that what an instruction set lacks is not looked up.
template <typename Half>
STRATA_INLINE F32v multiply_halves(F32v sum, const Half* w, const Half* x) {
  if constexpr (kBf16Dot) {
    return vdot_bf16(sum, w, x);
  } else {
    (void)w, (void)x;
    return sum;
  }
}

// Multiplies numbers that stay in registers and the first-level cache, in chains that do not wait
// for each other; returns the operations done (two a multiply-add), 0 where the instruction
// set has no such product.
static int64_t multiply_peak(Multiply kind, int64_t rounds) {
  constexpr int kChains = kWidth == 16 ? 16 : 8;   // with 32 registers, and with 16
  constexpr int kDeep = 4;
  // Ones, but the compiler must not know: it would count instead of multiply.
  alignas(64) uint8_t weights[kDeep * 4 * kWidth];
  alignas(64) int8_t bytes[8 * 4 * kDeep * kChains];
  alignas(64) float floats[8 * kChains];
  alignas(64) uint16_t halves[8 * 2 * kChains];
  for (uint8_t& w : weights) w = 1;
  for (int8_t& b : bytes) b = 1;
  for (float& f : floats) f = 1.0f;
  for (uint16_t& h : halves) h = 0x3f80;
  asm volatile("" : : "r"(weights), "r"(bytes), "r"(floats), "r"(halves) : "memory");
  volatile float sink = 0;
  if (kind == Multiply::int8) {
    U8v codes[kDeep];
    for (int d = 0; d < kDeep; ++d) codes[d] = vload_u8(weights + d * 4 * kWidth);
    I32v sums[kChains];
    for (I32v& s : sums) s = vset_i32(0);
    for (int64_t r = 0; r < rounds; ++r) {
      const int8_t* a = bytes + 4 * kDeep * kChains * (r & 7);
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) sums[j] = vdot<kDeep, 15>(codes, a + 4 * kDeep * j, sums[j]);
    }
    for (int j = 1; j < kChains; ++j) sums[0] = vadd_i32(sums[0], sums[j]);
    sink = vreduce_add(vcvt_f32(sums[0]));
    return rounds * kChains * kDeep * 4 * kWidth * 2;
  }
  F32v sums[kChains];
  for (F32v& s : sums) s = vzero();
  int64_t each = 0;
  if (kind == Multiply::f32) {
    const F32v w = vload(floats);
    for (int64_t r = 0; r < rounds; ++r) {
      const float* x = floats + kChains * (r & 7);
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) sums[j] = vfma(w, vset(x[j]), sums[j]);
    }
    each = kWidth * 2;
  } else if (kBf16Dot) {
    for (int64_t r = 0; r < rounds; ++r) {
      const uint16_t* x = halves + 2 * kChains * (r & 7);
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) sums[j] = multiply_halves(sums[j], halves, x + 2 * j);
    }
    each = 2 * kWidth * 2;
  }
  for (int j = 1; j < kChains; ++j) sums[0] = vadd(sums[0], sums[j]);
  sink = vreduce_add(sums[0]);
  (void)sink;
  return rounds * kChains * each;
}

}  // namespace strata::STRATA_ISA
