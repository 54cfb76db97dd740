// The encoders for avx2.
#include <algorithm>
#include <cmath>

#define STRATA_ENCODE_ISA avx2_encoders
#include "quant/encode_panel.h"

namespace strata {
const EncodeTable* encode_avx2() {
  static constexpr EncodeTable table = {"avx2", avx2_encoders::encode_any};
  return &table;
}
}  // namespace strata
