// The table of one instruction set: the last header of each csrc/isa file.
#pragma once
#include "kernels/matmul_float.h"
#include "kernels/quantize.h"

namespace strata::STRATA_ISA {

static MatmulFn matmul_of(Format f) {
  switch (f) {
    case Format::F64:   // narrowed as it is packed
    case Format::F32: return matmul_float<WeightsF32>;
    case Format::F16: return matmul_float<WeightsF16>;
    case Format::BF16: return matmul_float<WeightsBf16>;
    case Format::F8_E4M3_B128: return matmul_float<WeightsF8>;
#define STRATA_CODES(name) case Format::name: return matmul_codes<Format::name>;
    STRATA_CODES(Q4_0) STRATA_CODES(Q4_1) STRATA_CODES(Q5_0) STRATA_CODES(Q5_1) STRATA_CODES(Q8_0)
    STRATA_CODES(Q2_K) STRATA_CODES(Q3_K) STRATA_CODES(Q4_K) STRATA_CODES(Q5_K) STRATA_CODES(Q6_K)
    STRATA_CODES(IQ4_NL) STRATA_CODES(IQ4_XS) STRATA_CODES(MXFP4) STRATA_CODES(NVFP4)
    STRATA_CODES(TQ2_0) STRATA_CODES(Q1_0) STRATA_CODES(Q2_0)
    STRATA_CODES(IQ1_S) STRATA_CODES(IQ1_M) STRATA_CODES(IQ2_XXS) STRATA_CODES(IQ2_XS)
    STRATA_CODES(IQ2_S) STRATA_CODES(IQ3_XXS) STRATA_CODES(IQ3_S) STRATA_CODES(TQ1_0)
#undef STRATA_CODES
  }
  return nullptr;
}

// For instruction sets that pack as pack.cpp does.
[[maybe_unused]] static PackPanelFn no_pack_panel(Format, int64_t) { return nullptr; }

}  // namespace strata::STRATA_ISA
