// The parts of the extension module, each in its own file.
#pragma once
#include <nanobind/nanobind.h>

#include "kernels/kernels.h"

void bind_kernels(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
void bind_nodes(nanobind::module_& m);
void bind_quant(nanobind::module_& m);
void bind_stream(nanobind::module_& m);
void bind_text(nanobind::module_& m);

namespace strata {
// Lets Python handle signals while native code runs or waits: an interrupt ends it.
void check_signals();
// What products with weights of this format read: "f32", "bf16" or "q8".
inline const char* input_form(Format f) {
  const ActKind kind = format_info(f)->act;
  return kind == ActKind::q8 ? "q8" : kind == ActKind::bf16 ? "bf16" : "f32";
}
}  // namespace strata
