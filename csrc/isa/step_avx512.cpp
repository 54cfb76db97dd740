#include "kernels/simd_avx512.h"
#include "kernels/attention.h"

namespace strata {
const StepKernels* step_kernels_avx512() { return avx512::step_table(); }
}  // namespace strata
