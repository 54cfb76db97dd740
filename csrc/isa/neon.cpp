// The kernels for neon: the templates over its vector layer.
#include "kernels/simd_neon.h"
#include "kernels/probe.h"
#include "kernels/table.h"

namespace strata {

const KernelTable* kernels_neon() {
  static constexpr KernelTable table = {"neon", neon::matmul_of, neon::quantize_blocks,
                                        neon::kNarrowRow, neon::no_pack_panel, unpack_row,
                                        neon::read_stream, neon::multiply_peak};
  return &table;
}

}  // namespace strata
