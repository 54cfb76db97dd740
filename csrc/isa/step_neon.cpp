#include "kernels/simd_neon.h"
#include "kernels/attention.h"

namespace strata {
const StepKernels* step_kernels_neon() { return neon::step_table(); }
}  // namespace strata
