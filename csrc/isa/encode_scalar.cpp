// The encoders for scalar.
#include <algorithm>
#include <cmath>

#define STRATA_ENCODE_ISA scalar_encoders
#include "quant/encode_panel.h"

namespace strata {
const EncodeTable* encode_scalar() {
  static constexpr EncodeTable table = {"scalar", scalar_encoders::encode_any};
  return &table;
}
}  // namespace strata
