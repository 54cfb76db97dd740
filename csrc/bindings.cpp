#include "bindings.h"

NB_MODULE(_native, m) {
  // An interpreter that ends by an exception keeps objects until the end: no news to a user.
  nanobind::set_leak_warnings(false);
  m.doc() = "Native kernels and the executor of Segments.";
  bind_kernels(m);
  bind_stream(m);
  bind_runtime(m);
  bind_segments(m);
  bind_text(m);
}
