// The encoders for neon.
#include <algorithm>
#include <cmath>

#define STRATA_ENCODE_ISA neon_encoders
#include "quant/encode_panel.h"

namespace strata {
const EncodeTable* encode_neon() {
  static constexpr EncodeTable table = {"neon", neon_encoders::encode_any};
  return &table;
}
}  // namespace strata
