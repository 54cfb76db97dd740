// The encoders for avx512.
#include <algorithm>
#include <cmath>

#define STRATA_ENCODE_ISA avx512_encoders
#include "quant/encode_panel.h"

namespace strata {
const EncodeTable* encode_avx512() {
  static constexpr EncodeTable table = {"avx512", avx512_encoders::encode_any};
  return &table;
}
}  // namespace strata
