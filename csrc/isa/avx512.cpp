// The kernels for avx512: the templates over its vector layer.
#include "kernels/simd_avx512.h"
#include "kernels/pack_panels.h"
#include "kernels/probe.h"
#include "kernels/table.h"

namespace strata {

const KernelTable* kernels_avx512() {
  static constexpr KernelTable table = {"avx512", avx512::matmul_of, avx512::quantize_blocks,
                                        avx512::kNarrowRow, avx512::pack_panel_of, unpack_row,
                                        avx512::read_stream, avx512::multiply_peak};
  return &table;
}

}  // namespace strata
