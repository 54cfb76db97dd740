// Python's view of what the runtime works with. Everything is checked here, so that nothing below
// needs to be.
#include "bindings_runtime.h"

#include "runtime/kv_tier.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <cstring>
#include <memory>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

class PackJob final : public TeamJob {
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

// A block id that is not there: what it held has left the window (strata.backends.base.NO_BLOCK).
constexpr int32_t kNoBlock = -1;

using Table = Array1<int32_t>;
using SpanTuple = std::tuple<int64_t, int64_t, int64_t, std::vector<Table>, int64_t>;

// Appends the part of a table that a span needs, checked: every block that a row of it can see must
// be there.
void add_table(std::vector<int32_t>& to, const StateStore::Group& group, const Table& table,
               int64_t past, int64_t rows) {
  // Of recurrent state the slot that is read, if any, and the one that is written.
  const int64_t needed = group.recurrent ? 2 : (past + rows + kKvBlock - 1) / kKvBlock;
  require(static_cast<int64_t>(table.size()) >= needed, "step: block table too short");
  const bool left = group.window > 0 && past >= group.window + group.beginning;
  const int64_t first = left ? past - group.window + 1 : 0;
  const int64_t seen = group.recurrent ? (past == 0 ? 1 : 0) : first / kKvBlock;
  const int64_t beginning = (group.beginning + kKvBlock - 1) / kKvBlock;
  const int32_t* blocks = table.data();
  for (int64_t i = 0; i < needed; ++i) {
    require(blocks[i] >= (i < seen && i >= beginning ? kNoBlock : 0) && blocks[i] < group.blocks,
            group.recurrent ? "step: slot out of range" : "step: KV block out of range");
  }
  to.insert(to.end(), blocks, blocks + needed);
}

// A slot that is written is read and written by nobody else in the step.
void check_slots(const Step& s, int64_t group, int64_t groups) {
  std::vector<int32_t> read, written;
  for (size_t i = static_cast<size_t>(group); i < s.table_of.size(); i += static_cast<size_t>(groups)) {
    read.push_back(s.table_of[i][0]);
    written.push_back(s.table_of[i][1]);
  }
  std::sort(read.begin(), read.end());
  std::sort(written.begin(), written.end());
  std::vector<int32_t> both;
  std::set_intersection(read.begin(), read.end(), written.begin(), written.end(),
                        std::back_inserter(both));
  require(both.empty() && std::adjacent_find(written.begin(), written.end()) == written.end(),
          "step: a slot that is written is used by two spans, or read as well");
}

// The rows whose keys and values go into a branch's blocks as well as into their own.
void inherit(StepView& view, const std::vector<int64_t>& parents, size_t span) {
  int64_t end = view.spans[span].past;
  for (int64_t p = parents[span]; p >= 0; p = parents[static_cast<size_t>(p)]) {
    const Span& ancestor = view.spans[static_cast<size_t>(p)];
    view.inherited.push_back({ancestor.row, ancestor.row + end - ancestor.past, ancestor.past, span});
    end = ancestor.past;
  }
}

std::unique_ptr<Step> make_step(const StateStore& store, Array1<int32_t> tokens,
                                Array1<int32_t> positions, Array1<int32_t> logits_indices,
                                const std::vector<SpanTuple>& spans) {
  auto s = std::make_unique<Step>();
  s->store = store.id();
  s->tokens.assign(tokens.data(), tokens.data() + tokens.size());
  s->positions.assign(positions.data(), positions.data() + positions.size());
  s->logits_indices.assign(logits_indices.data(), logits_indices.data() + logits_indices.size());
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
  for (int32_t r : s->logits_indices) {
    require(r >= 0 && r < count, "step: row of logits out of range");
  }
  const int64_t groups = store.groups();
  std::vector<size_t> starts;     // of tables, which move while they are collected
  std::vector<int64_t> parents;
  int64_t next = 0;
  for (const auto& [row, rows, past, tables, parent] : spans) {
    require(row == next && rows > 0 && past >= 0, "step: spans must cover the rows in order");
    next = row + rows;
    require(next <= count, "step: a span ends past the last row");
    require(static_cast<int64_t>(tables.size()) == groups, "step: a table for each group is needed");
    for (int64_t g = 0; g < groups; ++g) {
      starts.push_back(s->tables.size());
      add_table(s->tables, store.group(g), tables[static_cast<size_t>(g)], past, rows);
    }
    for (int64_t r = row; r < next; ++r) {
      require(s->positions[static_cast<size_t>(r)] == past + r - row,
              "step: positions must follow the span");
    }
    if (parent >= 0) {
      require(parent < static_cast<int64_t>(parents.size()), "step: a branch stands before its parent");
      require(!store.recurrent(), "step: recurrent state has no branches");
      const Span& from = s->view.spans[static_cast<size_t>(parent)];
      require(from.past < past && past <= from.past + from.rows,
              "step: a branch must follow a row of its parent");
    }
    parents.push_back(parent);
    s->view.spans.push_back({row, rows, past, nullptr});
    if (parent >= 0) inherit(s->view, parents, parents.size() - 1);
  }
  require(next == count, "step: spans must cover the rows in order");
  for (size_t start : starts) s->table_of.push_back(s->tables.data() + start);
  for (size_t i = 0; i < s->view.spans.size(); ++i) {
    s->view.spans[i].tables = s->table_of.data() + i * static_cast<size_t>(groups);
  }
  if (store.recurrent()) check_slots(*s, groups - 1, groups);
  s->view.tokens_count = count;
  s->view.tokens = s->tokens.data();
  s->view.positions = s->positions.data();
  s->view.logits_indices = s->logits_indices.data();
  s->view.logits_count = static_cast<int64_t>(s->logits_indices.size());
  s->view.max_position = max_position + 1;
  return s;
}

// (kv_heads, k_dim, v_dim, v_in_k, floats, types of keys and values, whether bounds of keys are kept,
// whether rows see some blocks alone);
// zeros where a layer does not keep that.
using KeptTuple = std::tuple<int64_t, int64_t, int64_t, bool, int64_t, int, int, bool, bool>;
// (layers, window, beginning, recurrent, blocks, slots).
using GroupTuple = std::tuple<std::vector<int64_t>, int64_t, int64_t, bool, int64_t, int64_t>;

void make_store(StateStore* self, const std::vector<KeptTuple>& layers,
                const std::vector<GroupTuple>& groups, const std::string& directory) {
  std::vector<StateStore::Kept> kept;
  for (const auto& [heads, k_dim, v_dim, v_in_k, floats, k_type, v_type, bounded, chosen] : layers) {
    require(std::min(k_type, v_type) >= 0 && std::max(k_type, v_type) < kKvTypes,
            "state: no such KV type");
    require(std::min({heads, k_dim, v_dim, floats}) >= 0, "state: negative sizes");
    require((heads > 0) == (k_dim > 0) && (heads > 0) == (v_dim > 0) && !(heads > 0 && floats > 0),
            "state: a layer keeps keys and values, or floats");
    require(!v_in_k || v_dim <= k_dim, "state: values are no part of keys");
    kept.push_back({heads,
                    {k_dim, v_dim, v_in_k},
                    floats,
                    {static_cast<KvType>(k_type), static_cast<KvType>(v_type)},
                    bounded,
                    chosen});
  }
  std::vector<bool> seen(kept.size(), false);
  std::vector<StateStore::Group> made;
  for (const auto& [numbers, window, beginning, recurrent, blocks, slots] : groups) {
    require(blocks > 0 && window >= 0, "state: at least one block a group");
    require(beginning >= 0 && (beginning == 0 || window > 0), "state: a beginning beside no window");
    require(slots == 0 || (slots > 0 && window == 0 && !recurrent && made.empty()),
            "state: only blocks of all positions lie in slots");
    require(made.empty() || !made.back().recurrent, "state: the recurrent group is the last");
    for (int64_t i : numbers) {
      require(i >= 0 && i < static_cast<int64_t>(kept.size()) && !seen[static_cast<size_t>(i)],
              "state: every layer is in one group at most");
      seen[static_cast<size_t>(i)] = true;
      const StateStore::Kept& k = kept[static_cast<size_t>(i)];
      require(recurrent ? k.floats > 0 : k.kv_heads > 0, "state: a layer is in a group of another kind");
      require(!k.bounded || (!recurrent && window == 0), "state: bounds are of keys of all positions");
      require(k.bounded == kept[static_cast<size_t>(numbers[0])].bounded,
              "state: bounds of some layers of a group");
    }
    StateStore::Group group{numbers, window, beginning, recurrent, blocks, slots};
    made.push_back(std::move(group));
  }
  new (self) StateStore(kept, std::move(made), directory);
}

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_size(const StateStore& store, int64_t group, size_t given) {
  require(static_cast<int64_t>(given) == store.group(group).block_bytes(),
          "state: " + std::to_string(given) + " bytes given, a block has " +
              std::to_string(store.group(group).block_bytes()));
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
      .def_prop_ro("panels", [](const PackedWeight& w) { return panels(w.n); })
      .def_prop_ro("format", [](const PackedWeight& w) { return static_cast<int>(w.format); })
      .def_prop_ro("input_form", [](const PackedWeight& w) { return input_form(w.format); });
  nb::class_<StateStore>(m, "StateStore")
      .def("__init__", &make_store, "layers"_a, "groups"_a, "directory"_a = "")
      .def_prop_ro("nbytes", &StateStore::nbytes)
      .def("block_nbytes",
           [](StateStore& s, int64_t group) {
             s.check_block(group, 0);
             return s.group(group).block_bytes();
           },
           "group"_a)
      .def("copy",
           [](StateStore& s, int64_t group, int64_t source, int64_t target) {
             s.check_block(group, source);
             s.check_block(group, target);
             nb::gil_scoped_release release;
             s.copy(group, source, target);
           },
           "group"_a, "source"_a, "target"_a)
      .def("read",
           [](StateStore& s, int64_t group, int64_t block, Bytes out) {
             s.check_block(group, block);
             check_size(s, group, out.size());
             nb::gil_scoped_release release;
             s.read(group, block, out.data());
           },
           "group"_a, "block"_a, "out"_a)
      .def("write",
           [](StateStore& s, int64_t group, int64_t block, ConstBytes data) {
             s.check_block(group, block);
             check_size(s, group, data.size());
             nb::gil_scoped_release release;
             s.write(group, block, data.data());
           },
           "group"_a, "block"_a, "data"_a)
      .def("begin",
           [](StateStore& s, const Step& step, const std::vector<int64_t>& calls,
              std::shared_ptr<Readers> readers) {
             require(s.tier() != nullptr && readers != nullptr, "state: all of it is in memory");
             require(step.store == s.id(), "step: made for the blocks of another state");
             const std::vector<int64_t>& layers = s.group(s.tier_group()).layers;
             std::vector<int> numbers;
             for (const int64_t layer : calls) {
               const auto found = std::find(layers.begin(), layers.end(), layer);
               numbers.push_back(found == layers.end() ? -1 : static_cast<int>(found - layers.begin()));
             }
             nb::gil_scoped_release release;
             s.tier()->begin(step.view, s.tier_group(), std::move(numbers), std::move(readers));
           },
           "step"_a, "calls"_a, "readers"_a,
           "A step begins whose layers attend in this order: blocks that it writes come to memory.")
      .def_prop_ro("read_bytes",
                   [](const StateStore& s) {
                     return s.tier() == nullptr ? 0 : s.tier()->counts().read.from_disk.load();
                   })
      .def_prop_ro("written_bytes", [](const StateStore& s) {
        return s.tier() == nullptr ? 0 : s.tier()->counts().written.load();
      })
      .def_static(
          "file_bytes",
          [](const std::vector<int64_t>& layers, int64_t blocks) {
            int64_t sum = 0;
            for (const int64_t bytes : layers) sum += KvTier::piece(bytes) * blocks;
            return sum;
          },
          "layers"_a, "blocks"_a, "Bytes of so many blocks on disk; of each layer's part of one.")
      .def_static("ring_bytes", &StateStore::ring_bytes, "layers"_a,
                  "Bytes of memory beside slots, for blocks that are not in any.");
  nb::class_<RopeTable>(m, "RopeTable")
      .def(nb::init<std::vector<float>, float, int64_t>(), "inv_freq"_a, "mscale"_a, "limit"_a = 0);
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
      nb::new_([](const StateStore& state, Array1<int32_t> tokens, Array1<int32_t> positions,
                  Array1<int32_t> logits_indices, const std::vector<SpanTuple>& spans) {
        return make_step(state, tokens, positions, logits_indices, spans);
      }),
      "state"_a, "tokens"_a, "positions"_a, "logits_indices"_a, "spans"_a);
  m.attr("KV_BLOCK") = kKvBlock;
}
