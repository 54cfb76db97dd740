// The kernels for avx2: the templates over its vector layer.
#include "kernels/simd_avx2.h"
#include "kernels/pack_panels.h"
#include "kernels/probe.h"
#include "kernels/table.h"

namespace strata {

const KernelTable* kernels_avx2() {
  static constexpr KernelTable table = {"avx2", avx2::matmul_of, avx2::quantize_blocks,
                                        avx2::kNarrowRow, avx2::pack_panel_of, unpack_row,
                                        avx2::read_stream, avx2::multiply_peak};
  return &table;
}

}  // namespace strata
