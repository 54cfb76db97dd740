// The parts of the extension module, each in its own file.
#pragma once
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
void bind_stream(nanobind::module_& m);

namespace strata {
// Lets Python handle signals while native code runs or waits: an interrupt ends it.
void check_signals();
}  // namespace strata
