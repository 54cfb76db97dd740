#include "kernels/simd_scalar.h"
#include "kernels/attention.h"

namespace strata {
const StepKernels* step_kernels_scalar() { return scalar::step_table(); }
}  // namespace strata
