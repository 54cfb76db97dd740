#include "bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "Native kernels and the executor of Segments.";
  bind_kernels(m);
  bind_stream(m);
  bind_runtime(m);
}
