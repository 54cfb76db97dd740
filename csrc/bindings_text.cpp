// Strings of a vocabulary as they lie in a file: stepped over, made into Python's a run at a time,
// and cut in two where they are merges. What a JSON text can become, before it is parsed. And where
// the end of a text of tokens occurred before.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.h"
#include "runtime/suffix_index.h"

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

// No file is as large as this: where a string would end that claims more.
constexpr size_t kNowhere = size_t{1} << 62;

std::pair<size_t, size_t> step_over_strings(const nb::bytearray& buffer, size_t position,
                                            size_t count) {
  const char* bytes = static_cast<const char*>(buffer.data());
  const size_t size = buffer.size();
  size_t done = 0;
  for (; done < count && position <= size && size - position >= kLength; ++done) {
    uint64_t length = 0;
    std::memcpy(&length, bytes + position, kLength);
    position = length < kNowhere ? position + kLength + static_cast<size_t>(length) : kNowhere;
  }
  return {done, position};
}

using Positions = nb::ndarray<uint32_t, nb::numpy, nb::shape<-1>, nb::c_contig>;

void string_positions(const nb::bytes& packed, const Positions& out) {
  size_t position = 0;
  for (size_t i = 0; i < out.shape(0); ++i) {
    out.data()[i] = static_cast<uint32_t>(position);
    position = end_of(packed, position);
  }
}

using Pairs = nb::typed<nb::list, nb::typed<nb::tuple, nb::str, nb::str>>;

Pairs split_pairs(const Texts& texts) {
  Pairs pairs;
  for (nb::handle text : texts) {
    if (!PyUnicode_Check(text.ptr())) throw nb::type_error("a merge that is no string");
    const Py_ssize_t length = PyUnicode_GetLength(text.ptr());
    const Py_ssize_t cut = PyUnicode_FindChar(text.ptr(), ' ', 1, length, 1);
    if (cut == -2) throw nb::python_error();
    if (cut < 0) continue;
    const nb::object left = nb::steal(PyUnicode_Substring(text.ptr(), 0, cut));
    const nb::object right = nb::steal(PyUnicode_Substring(text.ptr(), cut + 1, length));
    if (!left.is_valid() || !right.is_valid()) throw nb::python_error();
    pairs.append(nb::make_tuple(left, right));
  }
  return pairs;
}

struct JsonMeasure {
  size_t values, depth, width;
};

// What a JSON text can become: values, nesting, and bytes of its widest character in Python. No
// further than where there are more than `most` values.
JsonMeasure measured(const unsigned char* at, const unsigned char* const end, size_t most) {
  size_t values = 1, depth = 0, deepest = 0;
  unsigned char widest = 0;
  bool quoted = false, wide_escape = false, pair_escape = false;
  for (; at < end && values <= most; ++at) {
    const unsigned char byte = *at;
    if (byte > widest) widest = byte;
    if (byte == '"') {
      quoted = !quoted;
    } else if (quoted) {
      if (byte != '\\') continue;
      if (++at == end) break;
      if (*at != 'u') continue;
      wide_escape = true;
      pair_escape |= end - at > 1 && (at[1] | 0x20) == 'd';
    } else if (byte == '[' || byte == '{') {
      ++values;
      if (++depth > deepest) deepest = depth;
    } else if (byte == ']' || byte == '}') {
      if (depth > 0) --depth;
    } else if (byte == ',' || byte == ':') {
      ++values;
    }
  }
  const bool four = widest >= 0xF0 || pair_escape, two = widest >= 0xC4 || wide_escape;
  return {values, deepest, size_t{four ? 4u : two ? 2u : 1u}};
}

nb::typed<nb::tuple, size_t, size_t, size_t> measure_json(const nb::bytes& text, size_t most) {
  const auto* begin = reinterpret_cast<const unsigned char*>(text.c_str());
  const size_t size = text.size();
  JsonMeasure m;
  {
    const nb::gil_scoped_release others;
    m = measured(begin, begin + size, most);
  }
  return nb::make_tuple(m.values, m.depth, m.width);
}

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig>;
using Numbers = nb::typed<nb::list, int64_t>;

nb::typed<nb::tuple, int, Numbers> find_suffix(const SuffixIndex& index, const Ids& text,
                                               int64_t most) {
  std::vector<int64_t> places;
  const int length = index.find(text.data(), static_cast<int64_t>(text.shape(0)), most, places);
  Numbers found;
  for (const int64_t place : places) found.append(place);
  return nb::make_tuple(length, found);
}

Numbers tokens_of(const SuffixIndex& index, int64_t begin, int64_t end) {
  Numbers out;
  end = std::min(end, index.size());
  for (int64_t at = std::max<int64_t>(begin, 0); at < end; ++at) out.append(index.token(at));
  return out;
}

using IdsOut = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig>;

void read_tokens(const SuffixIndex& index, int64_t begin, const IdsOut& out) {
  const auto count = static_cast<int64_t>(out.shape(0));
  if (begin < 0 || begin > index.size() || count > index.size() - begin) {
    throw std::out_of_range("there are not so many tokens");
  }
  for (int64_t i = 0; i < count; ++i) out.data()[i] = index.token(begin + i);
}

}  // namespace
}  // namespace strata

void bind_text(nb::module_& m) {
  m.def("unpack_strings", &strata::unpack_strings, "packed"_a, "position"_a, "count"_a,
        "The next `count` strings of a GGUF array from byte `position` on, and where the next one "
        "begins. Bytes that are not UTF-8 become lone surrogates. IndexError past the end.");
  m.def("step_over_strings", &strata::step_over_strings, "buffer"_a, "position"_a, "count"_a,
        "How many of the next `count` strings of a GGUF array have their length in the buffer, and "
        "where the last of these ends: it may lie past the buffer.");
  m.def("string_positions", &strata::string_positions, "packed"_a, "out"_a,
        "Writes where each string of a GGUF array begins. IndexError past the end.");
  m.def("split_pairs", &strata::split_pairs, "texts"_a,
        "Each text in two at its first space, the first character apart; those without are left "
        "out.");
  m.def("measure_json", &strata::measure_json, "text"_a, "most"_a,
        "Of a JSON text, without parsing it: the most values and keys that it can have, how deep "
        "they are nested, and bytes of its widest character in Python (1, 2 or 4). No further than "
        "where there are more than `most` values. Releases the GIL.");

  nb::class_<strata::SuffixIndex>(m, "SuffixIndex",
                                  "Tokens, and where the longest end of a text stands among them.")
      .def(nb::init<>())
      .def("__len__", &strata::SuffixIndex::size)
      .def_prop_ro("behind", &strata::SuffixIndex::behind,
                   "Places between tokens that are not found yet: see enter.")
      .def("append",
           [](strata::SuffixIndex& index, const strata::Ids& tokens) {
             index.append(tokens.data(), static_cast<int64_t>(tokens.shape(0)));
           },
           "tokens"_a, "More tokens (int32). OutOfMemoryError leaves it as it was.")
      .def("enter", &strata::SuffixIndex::enter, "most"_a,
           nb::call_guard<nb::gil_scoped_release>(),
           "Lets up to `most` more places be found, first those that came first. Releases the GIL.")
      .def("find", &strata::find_suffix, "text"_a, "most"_a,
           "How many tokens the longest end of `text` (int32) has that stands before a place, no "
           "more than 32, and the last `most` of these places in rising order.")
      .def("tokens", &strata::tokens_of, "begin"_a, "end"_a, "The tokens there.")
      .def("read", &strata::read_tokens, "begin"_a, "out"_a,
           "Writes tokens from `begin` on to `out` (int32). IndexError past the end.");
  m.attr("SUFFIX_BYTES_PER_TOKEN") = strata::SuffixIndex::kBytesPerToken;
}
