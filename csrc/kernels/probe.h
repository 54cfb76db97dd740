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

}  // namespace strata::STRATA_ISA
