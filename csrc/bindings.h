// The parts of the extension module, each in its own file.
#pragma once
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
