// Encoders of block formats for Python, over a thread team of their own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "quant/codebook_tables.h"
#include "quant/encode.h"
#include "runtime/thread_team.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

using BytesIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsIn = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using SquareIn = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OrderIn = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

class Job final : public TeamJob {
 public:
  Job(const EncodeTable& table, const EncodeCall& call, int threads) : table_(table), call_(call) {
    const auto each = static_cast<size_t>(encode_scratch_floats(call.k));
    scratch_.resize(static_cast<size_t>(threads), std::vector<float>(each));
  }
  int phases() const override { return 1; }
  int64_t begin(int) override { return (call_.rows + kEncodeLanes - 1) / kEncodeLanes; }
  void chunk(int, int64_t index, int thread) override {
    table_.panel(call_, index, scratch_[static_cast<size_t>(thread)].data());
  }

 private:
  const EncodeTable& table_;
  const EncodeCall& call_;
  std::vector<std::vector<float>> scratch_;
};

class Encoder {
 public:
  Encoder(int threads, const std::optional<std::string>& isa)
      : table_(select_encoder(isa ? isa->c_str() : nullptr)), team_(threads) {
    require(table_ != nullptr, "no encoders for that instruction set here");
  }

  bool encode(int format, int source, const BytesIn& x, int64_t rows, int64_t k,
              const BytesOut& out, const std::optional<FloatsIn>& importance,
              const std::optional<SquareIn>& factor, const std::optional<OrderIn>& blocks,
              const std::optional<FloatsOut>& decoded) {
    const Format f = static_cast<Format>(format), from = static_cast<Format>(source);
    const EncodeShape shape = encode_shape(f);
    require(shape.elements > 0, "encode: no encoder for format " + std::to_string(format));
    require(from == Format::F32 || from == Format::F16 || from == Format::BF16,
            "encode: the source is F32, F16 or BF16");
    require(rows > 0 && k > 0 && k % shape.elements == 0 && rows < (int64_t{1} << 40) / k,
            "encode: shape [" + std::to_string(rows) + ", " + std::to_string(k) + "] does not fit");
    const int64_t count = k / shape.elements;
    require(static_cast<int64_t>(x.size()) == rows * k * (from == Format::F32 ? 4 : 2),
            "encode: x has another size than [rows, k]");
    require(static_cast<int64_t>(out.size()) == rows * count * shape.bytes,
            "encode: out has another size than its rows take");
    require(!importance || static_cast<int64_t>(importance->size()) == k,
            "encode: importance has one value a column");
    require(!factor || (static_cast<int64_t>(factor->shape(0)) == k &&
                        static_cast<int64_t>(factor->shape(1)) == k),
            "encode: factor is [k, k]");
    require(!factor || k % 16 == 0, "encode: with a factor k is a multiple of 16");
    require(!decoded || static_cast<int64_t>(decoded->size()) == rows * k,
            "encode: decoded has another size than [rows, k]");
    if (blocks) {
      require(static_cast<int64_t>(blocks->size()) == count, "encode: blocks lists every block");
      std::vector<bool> seen(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        const int32_t b = blocks->data()[i];
        require(b >= 0 && b < count && !seen[static_cast<size_t>(b)], "encode: blocks lists every block once");
        seen[static_cast<size_t>(b)] = true;
      }
    }
    const bool groups = f == Format::IQ1_S || f == Format::IQ1_M || f == Format::IQ2_XXS ||
                        f == Format::IQ2_XS || f == Format::IQ2_S || f == Format::IQ3_XXS ||
                        f == Format::IQ3_S;
    std::atomic<bool> odd{false};
    nb::gil_scoped_release release;
    require(!groups || codebook_of(f) != nullptr,
            "the codebook of this format was not handed over (set_grid)");
    const EncodeCall call{f, from, x.data(), rows, k,
                          importance ? importance->data() : nullptr,
                          factor ? factor->data() : nullptr,
                          blocks ? blocks->data() : nullptr,
                          out.data(), decoded ? decoded->data() : nullptr, &odd};
    Job job(*table_, call, team_.threads());
    team_.run(job);
    return !odd;
  }

 private:
  const EncodeTable* table_;
  ThreadTeam team_;
};

}  // namespace
}  // namespace strata

void bind_quant(nb::module_& m) {
  using strata::Encoder;
  nb::class_<Encoder>(m, "Encoder", "Writes block formats, on threads of its own.")
      .def(nb::init<int, const std::optional<std::string>&>(), "threads"_a, "isa"_a = nb::none())
      .def("encode", &Encoder::encode, "format"_a, "source"_a, "x"_a, "rows"_a, "k"_a, "out"_a,
           "importance"_a = nb::none(), "factor"_a = nb::none(), "blocks"_a = nb::none(),
           "decoded"_a = nb::none(),
           "Encode [rows, k] numbers; see csrc/quant/encode.h; whether all are finite. One call at a time.");
  m.def("can_encode", [](int format) {
    return strata::encode_shape(static_cast<strata::Format>(format)).elements > 0;
  }, "format"_a);
}
