// Activations to blocks of 32 int8: scale = largest magnitude / 127, rounded to nearest
// even, so that every instruction set gives the same integers.
#pragma once
#include "kernels/kernels.h"

namespace strata::STRATA_ISA {

// Below this 127 / amax would leave the floats; such a block counts as zero.
inline constexpr float kSmallestAmax = 1e-36f;

// The block of the 32 floats at x. `left`: takes what it leaves over, x minus q * scale, unless nullptr.
STRATA_INLINE void quantize_block(const float* x, ActBlock* block, float* left) {
  const F32x16 a = load(x);
  const F32x16 b = load(x + 16);
  const float amax = reduce_max(max(abs(a), abs(b)));
  const float inverse = amax < kSmallestAmax ? 0.0f : 127.0f / amax;
  const F32x16 to_int = broadcast(inverse);
  F32x16 qa = a * to_int;
  F32x16 qb = b * to_int;
  for (int p = 0; p < kParts; ++p) {
    qa.part[p] = vround(qa.part[p]);
    qb.part[p] = vround(qb.part[p]);
  }
  // Whole numbers, so these sums are exact; NaN or infinity among x makes them NaN.
  const float sum_a = reduce_add(qa);
  const float sum_b = reduce_add(qb);
  const float sum = sum_a + sum_b;
  if (!(sum == sum)) {
    __builtin_memset(block, 0, sizeof *block);
    block->scale = block->dsum[0] = block->dsum[1] = block->dsum[2] = sum;
    // The row is lost already.
    if (left != nullptr) __builtin_memset(left, 0, kActBlock * sizeof(float));
    return;
  }
  for (int p = 0; p < kParts; ++p) {
    vstore_s8(block->q + p * kWidth, vcvt_i32(qa.part[p]));
    vstore_s8(block->q + 16 + p * kWidth, vcvt_i32(qb.part[p]));
  }
  const float scale = inverse == 0.0f ? 0.0f : amax / 127.0f;
  const float sums[3] = {sum_a, sum_b, sum};
  block->scale = scale;
  for (int s = 0; s < 3; ++s) {
    block->nsum[s] = -static_cast<int32_t>(sums[s]);
    block->dsum[s] = scale * sums[s];
  }
  block->unused = 0;
  if (left == nullptr) return;
  for (int p = 0; p < kParts; ++p) {
    const F32v taken = vset(-scale);
    vstore(left + p * kWidth, vfma(taken, qa.part[p], a.part[p]));
    vstore(left + 16 + p * kWidth, vfma(taken, qb.part[p], b.part[p]));
  }
}

static void quantize_blocks(const float* x, int64_t, int64_t block0, int64_t block1, uint8_t* row,
                            uint8_t* rest) {
  for (int64_t i = block0; i < block1; ++i) {
    const float* from = x + i * kActBlock;
    ActBlock* block = reinterpret_cast<ActBlock*>(row) + i;
    if (rest == nullptr) {
      quantize_block(from, block, nullptr);
    } else {
      float left[kActBlock];
      quantize_block(from, block, left);
      quantize_block(left, reinterpret_cast<ActBlock*>(rest) + i, nullptr);
    }
  }
}

}  // namespace strata::STRATA_ISA
