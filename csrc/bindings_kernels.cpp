// The kernels one by one, for tests and benchmarks; the runtime calls them without Python. Every
// shape, range and alignment is checked here, because nothing below does.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "kernels/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

using BytesIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsIn = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RowsIn = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using RowsOut = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using ActsIn = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;

void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

const KernelTable& kernels(const std::string& isa) {
  const KernelTable* table = select_kernels(isa.c_str());
  require(table != nullptr, "no kernels for '" + isa + "' here");
  return *table;
}

const FormatInfo& info_of(int format) {
  const FormatInfo* info = format_info(static_cast<Format>(format));
  require(info != nullptr, "no kernel for format " + std::to_string(format));
  return *info;
}

// A weight [n, k] of a format, its size checked against overflow.
const FormatInfo& check_shape(int format, int64_t n, int64_t k) {
  const FormatInfo& info = info_of(format);
  constexpr int64_t kMax = int64_t{1} << 40;
  require(n > 0 && k > 0 && n < kMax && k < kMax && n <= kMax / k && k % info.elements == 0,
          "weight: shape [" + std::to_string(n) + ", " + std::to_string(k) + "] does not fit");
  return info;
}

void check_size(const char* what, size_t given, size_t needed) {
  require(given == needed, std::string(what) + ": " + std::to_string(given) + " bytes given, " +
                               std::to_string(needed) + " needed");
}

void check_range(const char* what, int64_t begin, int64_t end, int64_t limit) {
  require(0 <= begin && begin <= end && end <= limit,
          std::string(what) + " range [" + std::to_string(begin) + ", " + std::to_string(end) +
              ") is not within [0, " + std::to_string(limit) + ")");
}

void check_packed(const FormatInfo& info, const BytesIn& packed, int64_t n, int64_t k) {
  check_size("packed weight", packed.size(), packed_bytes(info.format, n, k));
  require(has_grid(info.format), "the codebook of this format was not handed over (set_grid)");
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "avx2", "neon", "scalar"}) {
    if (select_kernels(name) != nullptr) names.emplace_back(name);
  }
  return names;
}

nb::object info_dict(int format) {
  const FormatInfo* info = format_info(static_cast<Format>(format));
  if (info == nullptr) return nb::none();
  nb::dict d;
  d["elements"] = info->elements;
  d["bytes"] = info->bytes;
  d["quantised_input"] = info->act == ActKind::q8;
  d["input_form"] = input_form(info->format);
  return d;
}

void pack_rows(int format, const BytesIn& rows, int64_t n, int64_t k, const BytesOut& out,
               int64_t panel0, std::optional<int64_t> panel1,
               const std::optional<std::string>& isa) {
  const FormatInfo& info = check_shape(format, n, k);
  check_size("weight", rows.size(), static_cast<size_t>(n * (k / info.elements) * info.bytes));
  check_size("packed weight", out.size(), packed_bytes(info.format, n, k));
  const int64_t end = panel1.value_or(panels(n));
  check_range("panel", panel0, end, panels(n));
  const KernelTable& table = isa ? kernels(*isa) : usual_kernels();
  nb::gil_scoped_release release;
  pack(table, info.format, rows.data(), n, k, out.data(), panel0, end);
}

void quantize(const std::string& isa, const FloatsIn& x, const BytesOut& out,
              const std::optional<BytesOut>& rest) {
  const KernelTable& table = kernels(isa);
  const int64_t k = static_cast<int64_t>(x.size());
  require(k % kActBlock == 0, "activations: a row must be a multiple of 32");
  const auto check = [k](const BytesOut& row) {
    check_size("activations", row.size(), act_row_bytes(ActKind::q8, k));
    require(reinterpret_cast<uintptr_t>(row.data()) % alignof(ActBlock) == 0,
            "activations: not aligned to 64 bytes");
  };
  check(out);
  if (rest) check(*rest);
  table.quantize_blocks(x.data(), k, 0, k / kActBlock, out.data(), rest ? rest->data() : nullptr);
}

void unpack(const std::string& isa, int format, const BytesIn& packed, int64_t n, int64_t row,
            const FloatsOut& out) {
  const int64_t k = static_cast<int64_t>(out.size());
  const FormatInfo& info = check_shape(format, n, k);
  check_packed(info, packed, n, k);
  check_range("row", row, row + 1, n);
  kernels(isa).unpack_row(info.format, packed.data(), n, k, row, out.data());
}

struct AlignedFree {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};

// Rows times a packed weight; `acts` are rows of floats or, for formats with integer codes, of
// quantised blocks, or pairs of such rows, what the first leaves over behind it. Ranges that are not
// given are everything.
class MatmulCall {
 public:
  MatmulCall(const std::string& isa, int format, const BytesIn& packed, int64_t n, int64_t k,
             const RowsOut& out, const std::optional<FloatsIn>& bias,
             const std::optional<RowsIn>& residual)
      : info_(check_shape(format, n, k)), table_(kernels(isa)), fn_(table_.matmul(info_.format)) {
    require(fn_ != nullptr, "no matmul for this format");
    check_packed(info_, packed, n, k);
    require(out.shape(1) == static_cast<size_t>(n) && out.stride(1) == 1,
            "out: must be [rows, n] with adjacent columns");
    rows_ = static_cast<int64_t>(out.shape(0));
    args_.weight = packed.data();
    args_.n = n;
    args_.k = k;
    args_.out = out.data();
    args_.out_stride = out.stride(0);
    if (bias) {
      require(bias->size() == static_cast<size_t>(n), "bias: must have n values");
      args_.bias = bias->data();
    }
    if (residual) {
      require(residual->shape(0) == out.shape(0) && residual->shape(1) == out.shape(1) &&
                  residual->stride(1) == 1,
              "residual: must be [rows, n] with adjacent columns");
      args_.residual = residual->data();
      args_.residual_stride = residual->stride(0);
    }
  }

  void acts(const RowsIn& x) {
    require(info_.act != ActKind::q8, "acts: this format takes quantised activations");
    require(x.shape(0) == static_cast<size_t>(rows_) &&
                x.shape(1) == static_cast<size_t>(args_.k) && x.stride(1) == 1,
            "acts: must be [rows, k] with adjacent columns");
    args_.acts = reinterpret_cast<const uint8_t*>(x.data());
    args_.act_stride = x.stride(0) * static_cast<int64_t>(sizeof(float));
    if (info_.act != ActKind::bf16 || table_.narrow_row == nullptr) return;
    args_.narrow_stride = static_cast<int64_t>(act_row_bytes(ActKind::bf16, args_.k));
    narrow_.resize(static_cast<size_t>(rows_ * args_.narrow_stride / 2));
    for (int64_t r = 0; r < rows_; ++r) {
      table_.narrow_row(x.data() + r * x.stride(0), args_.k,
                        narrow_.data() + r * args_.narrow_stride / 2);
    }
    args_.narrow = reinterpret_cast<const uint8_t*>(narrow_.data());
  }

  void acts(const ActsIn& x) {
    require(info_.act == ActKind::q8, "acts: this format takes float activations");
    args_.rest = rows_ > 0 && x.shape(0) == static_cast<size_t>(2 * rows_);
    require(x.shape(0) == static_cast<size_t>(rows_ << args_.rest) &&
                x.shape(1) == act_row_bytes(ActKind::q8, args_.k) && x.stride(1) == 1 &&
                x.stride(0) % 64 == 0 && reinterpret_cast<uintptr_t>(x.data()) % 64 == 0,
            "acts: must be [rows, bytes of a quantised row], aligned to 64 bytes, or twice as many");
    args_.acts = x.data();
    args_.act_stride = x.stride(0);
  }

  void run(int64_t row0, std::optional<int64_t> row1, int64_t panel0,
           std::optional<int64_t> panel1) const {
    const int64_t last_row = row1.value_or(rows_);
    const int64_t last_panel = panel1.value_or(panels(args_.n));
    check_range("row", row0, last_row, rows_);
    check_range("panel", panel0, last_panel, panels(args_.n));
    const auto floats = static_cast<size_t>(matmul_scratch_floats(args_.k));
    std::unique_ptr<float, AlignedFree> scratch(
        static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
    nb::gil_scoped_release release;
    fn_(args_, row0 << args_.rest, last_row << args_.rest, panel0, last_panel, scratch.get());
  }

 private:
  const FormatInfo& info_;
  const KernelTable& table_;
  MatmulFn fn_;
  std::vector<uint16_t> narrow_;
  MatmulArgs args_{};
  int64_t rows_ = 0;
};

template <class Acts>
void matmul(const std::string& isa, int format, const BytesIn& packed, int64_t n, int64_t k,
            const Acts& acts, const RowsOut& out, const std::optional<FloatsIn>& bias,
            const std::optional<RowsIn>& residual, int64_t row0, std::optional<int64_t> row1,
            int64_t panel0, std::optional<int64_t> panel1) {
  MatmulCall call(isa, format, packed, n, k, out, bias, residual);
  call.acts(acts);
  call.run(row0, row1, panel0, panel1);
}

void hand_over_grid(int format, const BytesIn& grid) {
  // Kept for ever, because weights may be decoded until the process ends.
  static auto* kept = new std::map<int, std::vector<uint8_t>>;
  const auto [at, added] =
      kept->try_emplace(format, std::vector<uint8_t>(grid.data(), grid.data() + grid.size()));
  if (!added) return;
  if (!set_grid(static_cast<Format>(format), at->second.data(), at->second.size())) {
    kept->erase(at);
    throw std::invalid_argument("codebook of format " + std::to_string(format) + ": wrong size");
  }
}

template <class Acts> void def_matmul(nb::module_& m) {
  m.def("matmul", &matmul<Acts>, "isa"_a, "format"_a, "packed"_a, "n"_a, "k"_a, "acts"_a, "out"_a,
        "bias"_a = nb::none(), "residual"_a = nb::none(), "row0"_a = 0, "row1"_a = nb::none(),
        "panel0"_a = 0, "panel1"_a = nb::none());
}

}  // namespace
}  // namespace strata

void bind_kernels(nb::module_& m) {
  using namespace strata;
  m.def("available_isas", &available_isas, "Instruction sets of this processor, best first.");
  m.def("format_info", &info_dict, "format"_a, "What a GGUF type id's kernels take, or None.");
  m.def(
      "packed_bytes",
      [](int format, int64_t n, int64_t k) {
        return packed_bytes(check_shape(format, n, k).format, n, k);
      },
      "format"_a, "n"_a, "k"_a);
  m.def("pack", &pack_rows, "format"_a, "rows"_a, "n"_a, "k"_a, "out"_a, "panel0"_a = 0,
        "panel1"_a = nb::none(), "isa"_a = nb::none());
  m.def(
      "act_row_bytes",
      [](int64_t k, const std::string& form) {
        require(form == "q8" || form == "bf16", "act_row_bytes: the form is q8 or bf16");
        if (form == "bf16") return act_row_bytes(ActKind::bf16, k);
        require(k > 0 && k % kActBlock == 0, "activations: a row must be a multiple of 32");
        return act_row_bytes(ActKind::q8, k);
      },
      "k"_a, "form"_a = "q8", "Bytes of a row of activations that are quantised or bf16.");
  m.def("quantize_row", &quantize, "isa"_a, "x"_a, "out"_a, "rest"_a = nb::none(),
        "A row as int8; `rest` takes what that leaves over, in the same form.");
  m.def("unpack_row", &unpack, "isa"_a, "format"_a, "packed"_a, "n"_a, "row"_a, "out"_a);
  m.def("set_grid", &hand_over_grid, "format"_a, "grid"_a,
        "Hands a codebook over as bytes; only the first one of a format counts.");
  m.def(
      "read_stream",
      [](const std::string& isa, const BytesIn& data) {
        const KernelTable& table = kernels(isa);
        nb::gil_scoped_release release;
        return table.read_stream(data.data(), static_cast<int64_t>(data.size()));
      },
      "isa"_a, "data"_a, "Reads the bytes and nothing more, to measure bandwidth.");
  m.def(
      "multiply_peak",
      [](const std::string& isa, const std::string& kind, int64_t rounds) {
        const KernelTable& table = kernels(isa);
        require(kind == "int8" || kind == "bf16" || kind == "f32",
                "multiply_peak: the kind is int8, bf16 or f32");
        require(rounds > 0, "multiply_peak: rounds must be positive");
        const Multiply what = kind == "int8"   ? Multiply::int8
                              : kind == "bf16" ? Multiply::bf16
                                               : Multiply::f32;
        nb::gil_scoped_release release;
        return table.multiply_peak(what, rounds);
      },
      "isa"_a, "kind"_a, "rounds"_a,
      "Multiplies int8, bf16 or f32 and does nothing else; returns the operations done, 0 for a "
      "product that the instruction set lacks.");
  def_matmul<ActsIn>(m);
  def_matmul<RowsIn>(m);
}
