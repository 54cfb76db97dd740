// Python's view of what the runtime works with. Everything is checked here, so that nothing below
// needs to be.
#include "bindings_runtime.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

class PackJob final : public Job {
 public:
  PackJob(PackedWeight& w, const uint8_t* src, int threads) : w_(w), src_(src) {
    grain_ = std::max<int64_t>(1, panels(w.n) / (8 * threads));
  }
  int phases() const override { return 1; }
  int64_t begin(int) override { return (panels(w_.n) + grain_ - 1) / grain_; }
  void chunk(int, int64_t i, int) override {
    pack(usual_kernels(), w_.format, src_, w_.n, w_.k, w_.bytes.data(), i * grain_,
         std::min((i + 1) * grain_, panels(w_.n)));
  }

 private:
  PackedWeight& w_;
  const uint8_t* src_;
  int64_t grain_;
};

void pack_weight(PackedWeight& w, nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig> src,
                 Team& team) {
  const FormatInfo* info = format_info(w.format);
  const int64_t bytes = w.n * w.k / info->elements * info->bytes;
  require(static_cast<int64_t>(src.size()) == bytes,
          "weight: " + std::to_string(src.size()) + " bytes given, " + std::to_string(bytes) +
              " needed");
  PackJob job(w, src.data(), team.team.threads());
  nb::gil_scoped_release release;
  team.run(job);
}

using SpanTuple = std::tuple<int64_t, int64_t, int64_t, Array1<int32_t>>;

std::unique_ptr<Step> make_step(Array1<int32_t> tokens, Array1<int32_t> positions,
                                Array1<int32_t> out_rows, const std::vector<SpanTuple>& spans) {
  auto s = std::make_unique<Step>();
  s->tokens.assign(tokens.data(), tokens.data() + tokens.size());
  s->positions.assign(positions.data(), positions.data() + positions.size());
  s->out_rows.assign(out_rows.data(), out_rows.data() + out_rows.size());
  const auto count = static_cast<int64_t>(s->tokens.size());
  require(s->positions.size() == s->tokens.size(), "step: a position for each token is needed");
  int32_t max_position = -1;
  for (int32_t t : s->tokens) {
    require(t >= 0, "step: negative token id");
    s->max_token = std::max(s->max_token, t);
  }
  for (int32_t p : s->positions) {
    require(p >= 0, "step: negative position");
    max_position = std::max(max_position, p);
  }
  for (int32_t r : s->out_rows) require(r >= 0 && r < count, "step: row of logits out of range");
  int64_t next = 0;
  for (const auto& [row, rows, past, table] : spans) {
    require(row == next && rows > 0 && past >= 0, "step: spans must cover the rows in order");
    next = row + rows;
    require(next <= count, "step: a span ends past the last row");
    const int64_t needed = (past + rows + kKvBlock - 1) / kKvBlock;
    require(static_cast<int64_t>(table.size()) >= needed, "step: block table too short");
    s->tables.emplace_back(table.data(), table.data() + needed);
    for (int32_t b : s->tables.back()) {
      require(b >= 0, "step: negative KV block");
      s->max_block = std::max(s->max_block, b);
    }
    for (int64_t r = row; r < next; ++r) {
      require(s->positions[static_cast<size_t>(r)] == past + r - row,
              "step: positions must follow the span");
    }
    s->view.spans.push_back({row, rows, past, nullptr});
  }
  require(next == count, "step: spans must cover the rows in order");
  for (size_t i = 0; i < s->tables.size(); ++i) s->view.spans[i].table = s->tables[i].data();
  s->view.tokens_count = count;
  s->view.tokens = s->tokens.data();
  s->view.positions = s->positions.data();
  s->view.out_rows = s->out_rows.data();
  s->view.out_rows_count = static_cast<int64_t>(s->out_rows.size());
  s->view.max_position = max_position + 1;
  return s;
}

}  // namespace
}  // namespace strata

void bind_runtime(nb::module_& m) {
  using namespace strata;
  nb::class_<Team>(m, "Team")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", [](const Team& t) { return t.team.threads(); });
  nb::class_<PackedWeight>(m, "PackedWeight", nb::is_weak_referenceable())
      .def("__init__",
           [](PackedWeight* self, int format, int64_t n, int64_t k) {
             const auto f = static_cast<Format>(format);
             const FormatInfo* info = format_info(f);
             require(info != nullptr, "no kernel for format " + std::to_string(format));
             require(n > 0 && k > 0 && k % info->elements == 0, "weight: shape does not fit");
             require(has_grid(f), "weight: the codebook of its format was not handed over");
             new (self) PackedWeight(f, n, k);
           },
           "format"_a, "n"_a, "k"_a)
      .def("pack", &pack_weight, "rows"_a, "team"_a)
      .def_prop_ro("nbytes", [](const PackedWeight& w) { return w.bytes.size(); })
      .def_prop_ro("input_form", [](const PackedWeight& w) { return input_form(w.format); });
  nb::class_<KvStore>(m, "KvStore")
      .def("__init__",
           [](KvStore* self, int type, const std::vector<std::tuple<int64_t, int64_t>>& layers,
              int64_t blocks) {
             std::vector<KvStore::Shape> shapes;
             require(type >= 0 && type < kKvTypes, "KV: no such type");
             require(blocks > 0, "KV: at least one block");
             for (const auto& [heads, dim] : layers) {
               require(heads > 0 && dim > 0, "KV: heads and head_dim must be positive");
               shapes.push_back({heads, dim});
             }
             new (self) KvStore(static_cast<KvType>(type), shapes, blocks);
           },
           "type"_a, "layers"_a, "blocks"_a)
      .def_prop_ro("nbytes", &KvStore::nbytes)
      .def_prop_ro("blocks", &KvStore::blocks)
      .def("block",
           [](nb::handle_t<KvStore> self, int64_t i) {
             auto& kv = nb::cast<KvStore&>(self);
             require(i >= 0 && i < kv.blocks(), "KV: block out of range");
             return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(
                 kv.block(i), {static_cast<size_t>(kv.block_stride())}, self);
           },
           "block"_a, "The bytes of a block, all layers, as a writable view.");
  nb::class_<RopeTable>(m, "RopeTable")
      .def(nb::init<std::vector<float>, float>(), "inv_freq"_a, "mscale"_a);
  nb::class_<Arena>(m, "Arena")
      .def(nb::init<size_t, int, size_t>(), "bytes"_a, "threads"_a, "scratch_floats"_a)
      .def_prop_ro("nbytes", &Arena::nbytes)
      .def("floats",
           [](nb::handle_t<Arena> self, int64_t rows, int64_t width) {
             auto& arena = nb::cast<Arena&>(self);
             require(rows >= 0 && width > 0 &&
                         rows <= static_cast<int64_t>(arena.size() / sizeof(float)) / width,
                     "arena: so many rows do not lie in it");
             return nb::ndarray<nb::numpy, float, nb::ndim<2>>(
                 arena.data(), {static_cast<size_t>(rows), static_cast<size_t>(width)}, self);
           },
           "rows"_a, "width"_a,
           "The rows at its beginning, where the hidden state lies between Segments, as a view.");
  nb::class_<Step>(m, "Step").def(
      nb::new_([](Array1<int32_t> tokens, Array1<int32_t> positions, Array1<int32_t> out_rows,
                  const std::vector<SpanTuple>& spans) {
        return make_step(tokens, positions, out_rows, spans);
      }),
      "tokens"_a, "positions"_a, "out_rows"_a, "spans"_a);
  m.attr("KV_BLOCK") = kKvBlock;
}
