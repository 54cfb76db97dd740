#include "kernels/simd_avx2.h"
#include "kernels/attention.h"

namespace strata {
const StepKernels* step_kernels_avx2() { return avx2::step_table(); }
}  // namespace strata
