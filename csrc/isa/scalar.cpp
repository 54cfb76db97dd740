// The kernels for scalar: the templates over its vector layer.
#include "kernels/simd_scalar.h"
#include "kernels/probe.h"
#include "kernels/table.h"

namespace strata {

const KernelTable* kernels_scalar() {
  static constexpr KernelTable table = {"scalar", scalar::matmul_of, scalar::quantize_blocks,
                                        scalar::kNarrowRow, scalar::no_pack_panel, unpack_row,
                                        scalar::read_stream, scalar::multiply_peak};
  return &table;
}

}  // namespace strata
