#include "bindings.h"

#include <nanobind/stl/string.h>

#include <new>
#include <string>

#include "runtime/fail_points.h"

namespace {

// Raises a class of strata.errors; the built-in one that it derives from where even that fails.
void raise_named(const char* name, PyObject* otherwise, const char* message) {
  try {
    const nanobind::object kind = nanobind::module_::import_("strata.errors").attr(name);
    PyErr_SetString(kind.ptr(), message);
  } catch (nanobind::python_error&) {
    PyErr_SetString(otherwise, message);
  }
}

void translate(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const strata::AllocationError& e) {
    raise_named("OutOfMemoryError", PyExc_MemoryError, e.what());
  } catch (const std::bad_alloc&) {
    raise_named("OutOfMemoryError", PyExc_MemoryError, strata::AllocationError(0).what());
  } catch (const strata::ThreadStartError& e) {
    raise_named("ThreadStartError", PyExc_RuntimeError, e.what());
  }
}

strata::FailPoint point(const std::string& kind) {
  if (kind == "allocation") return strata::FailPoint::allocation;
  if (kind == "thread") return strata::FailPoint::thread;
  if (kind == "write") return strata::FailPoint::write;
  throw std::invalid_argument("'allocation' or 'thread', not '" + kind + "'");
}

}  // namespace

using namespace nanobind::literals;

NB_MODULE(_native, m) {
  // An interpreter that ends by an exception keeps objects until the end: no news to a user.
  nanobind::set_leak_warnings(false);
  nanobind::register_exception_translator(translate);
  m.doc() = "Native kernels and the executor of Segments.";
  bind_kernels(m);
  bind_stream(m);
  bind_runtime(m);
  bind_nodes(m);
  bind_quant(m);
  bind_text(m);
  m.def("fail_after",
        [](const std::string& kind, int64_t n, bool always) {
          if (n < 0) throw std::invalid_argument("fail_after: n counts from 1; 0 ends it");
          strata::fail_after(point(kind), n, always);
        },
        "kind"_a, "n"_a, "always"_a = false,
        "For tests: lets the n-th allocation or start of a thread fail; 0 ends that.");
  m.def("has_failed", [](const std::string& kind) { return strata::has_failed(point(kind)); },
        "kind"_a, "For tests: whether what fail_after asked for has happened.");
}
