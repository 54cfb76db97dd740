// Which encoders run here. This file runs everywhere.
#include "quant/encode.h"

#include <cstring>
#include <initializer_list>

namespace strata {

#if !defined(__x86_64__)
const EncodeTable* encode_avx2() { return nullptr; }
#endif
#if !defined(STRATA_AVX512)
const EncodeTable* encode_avx512() { return nullptr; }
#endif
#if !defined(__aarch64__)
const EncodeTable* encode_neon() { return nullptr; }
#endif

const EncodeTable* select_encoder(const char* name) {
  // Encoders want no more of a processor than the kernels of the same name.
  const KernelTable* kernels = select_kernels(name);
  if (kernels == nullptr) return nullptr;
  for (const EncodeTable* table : {encode_avx512(), encode_avx2(), encode_neon(), encode_scalar()}) {
    if (table != nullptr && std::strcmp(table->name, kernels->name) == 0) return table;
  }
  return nullptr;
}

EncodeShape encode_shape(Format f) {
  switch (f) {
    case Format::Q4_0: return {32, 18};
    case Format::Q4_1: return {32, 20};
    case Format::Q5_0: return {32, 22};
    case Format::Q5_1: return {32, 24};
    case Format::Q8_0: return {32, 34};
    case Format::Q2_K: return {256, 84};
    case Format::Q3_K: return {256, 110};
    case Format::Q4_K: return {256, 144};
    case Format::Q5_K: return {256, 176};
    case Format::Q6_K: return {256, 210};
    case Format::IQ4_NL: return {32, 18};
    case Format::IQ4_XS: return {256, 136};
    case Format::TQ1_0: return {256, 54};
    case Format::TQ2_0: return {256, 66};
    case Format::MXFP4: return {32, 17};
    case Format::NVFP4: return {64, 36};
    case Format::Q1_0: return {128, 18};
    case Format::Q2_0: return {64, 18};
    case Format::IQ1_S: return {256, 50};
    case Format::IQ1_M: return {256, 56};
    case Format::IQ2_XXS: return {256, 66};
    case Format::IQ2_XS: return {256, 74};
    case Format::IQ2_S: return {256, 82};
    case Format::IQ3_XXS: return {256, 98};
    case Format::IQ3_S: return {256, 110};
    default: return {0, 0};
  }
}

}  // namespace strata
