// Strings of a vocabulary as they lie in a file, made into Python's a run at a time.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <cstring>
#include <stdexcept>
#include <utility>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

constexpr size_t kLength = 8;   // bytes of the little-endian length before each string

// Where the string that begins at `position` ends.
size_t end_of(const nb::bytes& packed, size_t position) {
  uint64_t length = 0;
  if (position > packed.size() || packed.size() - position < kLength) {
    throw std::out_of_range("a string begins past the end of the array");
  }
  std::memcpy(&length, packed.c_str() + position, kLength);
  if (length > packed.size() - position - kLength) {
    throw std::out_of_range("a string reaches past the end of the array");
  }
  return position + kLength + static_cast<size_t>(length);
}

using Texts = nb::typed<nb::list, nb::str>;

std::pair<Texts, size_t> unpack_strings(const nb::bytes& packed, size_t position, size_t count) {
  Texts texts;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = end_of(packed, position);
    const size_t start = position + kLength;
    PyObject* text = PyUnicode_DecodeUTF8(packed.c_str() + start,
                                          static_cast<Py_ssize_t>(end - start), "surrogateescape");
    if (text == nullptr) throw nb::python_error();
    texts.append(nb::steal(text));
    position = end;
  }
  return {texts, position};
}

}  // namespace
}  // namespace strata

void bind_text(nb::module_& m) {
  m.def("unpack_strings", &strata::unpack_strings, "packed"_a, "position"_a, "count"_a,
        "The next `count` strings of a GGUF array from byte `position` on, and where the next one "
        "begins. Bytes that are not UTF-8 become lone surrogates. IndexError past the end.");
}
