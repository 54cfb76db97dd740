// Python's view of lists of nodes: built one by one, then run over a step that is checked.
#include "node_builder.h"

#include <nanobind/nanobind.h>

#include <atomic>

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {
namespace {

const StepKernels* step_kernels(const std::string& isa) {
  if (isa == "scalar") return step_kernels_scalar();
#if defined(__x86_64__)
  if (isa == "avx2") return step_kernels_avx2();
#if defined(STRATA_AVX512)
  if (isa == "avx512") return step_kernels_avx512();
#endif
#elif defined(__aarch64__)
  if (isa == "neon") return step_kernels_neon();
#endif
  return nullptr;
}

}  // namespace

void NodeBuilder::check_kept(const AttentionUse& a, const StateStore& state) {
  const char* wrong = "attention: the KV cache is of another shape";
  require(a.layer < static_cast<int64_t>(state.layers().size()), wrong);
  const StateStore::Layer& layer = state.layer(a.layer);
  const KvShape& kv = layer.kept.kv;
  require(layer.group >= 0 && layer.kept.kv_heads == a.kv_heads && kv.k_dim == a.k_dim &&
              kv.v_dim == a.v_dim && (!a.keys || kv.v_in_k != a.values) &&
              layer.kept.bounded == a.bounds,
          wrong);
  const StateStore::Group& group = state.group_of(layer);
  require(group.window == 0 || (a.window > 0 && a.window <= group.window &&
                                a.beginning <= group.beginning),
          "attention: positions are wanted that are not kept");
}

void NodeBuilder::run(Team& team, const std::string& isa, Arena& arena, const Step& step,
                      StateStore& state, int64_t max_rows, const std::optional<Output>& out) {
  const Context context = check(team, isa, arena, step, state, max_rows, out);
  nb::gil_scoped_release release;
  std::lock_guard<std::mutex> hold(team.lock);
  list_.run(team.team, context, stream_.get(), track_, &check_signals);
}

Context NodeBuilder::check(const Team& team, const std::string& isa, Arena& arena, const Step& step,
                           StateStore& state, int64_t max_rows,
                           const std::optional<Output>& out) const {
  const KernelTable* matrix = select_kernels(isa.c_str());
  const StepKernels* kernels = step_kernels(isa);
  require(matrix != nullptr && kernels != nullptr, "no kernels for '" + isa + "' here");
  require(step.view.tokens_count <= max_rows, "step: more tokens than the arena was made for");
  require(arena.threads() >= team.team.threads(), "arena: made for fewer threads");
  require(static_cast<int64_t>(arena.scratch_floats()) >= scratch_, "arena: scratch too small");
  require(vocabulary_ < 0 || step.max_token < vocabulary_,
          "token " + std::to_string(step.max_token) + " is not in the vocabulary");
  require(max_positions_ < 0 || step.view.max_position <= max_positions_,
          "position " + std::to_string(step.view.max_position - 1) +
              " is past the model's learned positions");
  require(step.store == state.id(), "step: made for the blocks of another state");
  for (const AttentionUse& a : attention_) check_kept(a, state);
  for (const auto& [layer, floats] : recurrent_) {
    require(layer < static_cast<int64_t>(state.layers().size()) &&
                state.layer(layer).group >= 0 && state.layer(layer).kept.floats == floats,
            "recurrence: the state is of another shape");
  }
  float* external = nullptr;
  for (const Value& v : values_) {
    const int64_t rows = v.selected ? step.view.logits_count : step.view.tokens_count;
    if (v.f32 == Value::kExternal) {
      require(out && static_cast<int64_t>(out->shape(0)) == rows &&
                  static_cast<int64_t>(out->shape(1)) == v.width,
              "output: wrong shape");
      external = out->data();
    } else if (v.f32 >= 0) {
      require(v.f32 + v.width * rows * 4 <= static_cast<int64_t>(arena.size()),
              "arena: a value does not fit");
    }
    if (v.q8 >= 0) {
      require(v.q8 + Context::q8_bytes(v) * v.planes * rows <=
                  static_cast<int64_t>(arena.size()),
              "arena: a value does not fit");
    }
  }
  for (const auto& [x, place] : narrow_) {
    const int64_t rows = x.selected ? step.view.logits_count : step.view.tokens_count;
    require(place + static_cast<int64_t>(act_row_bytes(ActKind::bf16, x.width)) * rows <=
                static_cast<int64_t>(arena.size()),
            "arena: a value does not fit");
  }
  for (const ExpertsSpec& s : experts_) {
    require(s.work + s.work_bytes(step.view.tokens_count) <= static_cast<int64_t>(arena.size()),
            "arena: the workspace of experts does not fit");
  }
  require(streamed_.empty() || stream_, "nodes: no stream was attached");
  require(cached_.empty() || experts_attached_, "nodes: no cache of experts was attached");
  return {matrix, kernels, &arena, &step.view, &state, external, team.team.threads()};
}

namespace {

// Lists of nodes one after the other in a single call: a token of a small model has no time to come
// back to Python thirty times.
class Joined {
 public:
  explicit Joined(std::vector<NodeBuilder*> segments) : segments_(std::move(segments)) {
    for (const NodeBuilder* s : segments_) {
      require(!s->streamed(), "joined: a streamed segment runs on its own");
    }
  }
  void run(Team& team, const std::string& isa, Arena& arena, const Step& step, StateStore& state,
           int64_t max_rows) {
    Context context{};
    for (const NodeBuilder* s : segments_) {
      context = s->check(team, isa, arena, step, state, max_rows, {});   // the same for all
    }
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> hold(team.lock);
    std::vector<Phase> phases;
    for (size_t i = 0; i < segments_.size(); ++i) {
      segments_[i]->append_to(phases, static_cast<int>(i));
    }
    run_phases(team.team, context, phases, &current_);
  }
  // The one that runs, or ran last, for whoever looks on.
  int current() const { return current_.load(std::memory_order_relaxed); }

 private:
  std::vector<NodeBuilder*> segments_;
  std::atomic<int> current_{0};
};

}  // namespace
}  // namespace strata

void bind_nodes(nb::module_& m) {
  using namespace strata;
  nb::class_<NodeBuilder>(m, "NodeList")
      .def(nb::init<>())
      .def("value", &NodeBuilder::value, "width"_a, "f32"_a, "q8"_a, "selected"_a,
           "planes"_a = 1)
      .def("embed",
           [](NodeBuilder& s, WeightPtr table, float scale, int64_t out) {
             s.embed(std::make_shared<PackedRows>(std::move(table)), scale, out);
           },
           "table"_a, "scale"_a, "out"_a)
      .def("embed",
           [](NodeBuilder& s, std::shared_ptr<FileRows> table, float scale, int64_t out) {
             s.embed(std::move(table), scale, out);
           },
           "table"_a, "scale"_a, "out"_a)
      .def("ngrams",
           [](NodeBuilder& s, WeightPtr table, int64_t out, int64_t layer,
              std::vector<uint64_t> multipliers, std::vector<int64_t> starts,
              std::vector<int64_t> sizes, int64_t end) {
             s.ngrams(std::make_shared<PackedRows>(std::move(table)), out, layer,
                      std::move(multipliers), std::move(starts), std::move(sizes), end);
           },
           "table"_a, "out"_a, "layer"_a, "multipliers"_a, "starts"_a, "sizes"_a, "end"_a)
      .def("ngrams",
           [](NodeBuilder& s, std::shared_ptr<FileRows> table, int64_t out, int64_t layer,
              std::vector<uint64_t> multipliers, std::vector<int64_t> starts,
              std::vector<int64_t> sizes, int64_t end) {
             s.ngrams(std::move(table), out, layer, std::move(multipliers), std::move(starts),
                      std::move(sizes), end);
           },
           "table"_a, "out"_a, "layer"_a, "multipliers"_a, "starts"_a, "sizes"_a, "end"_a)
      .def("add_positions",
           [](NodeBuilder& s, int64_t x, WeightPtr table, int64_t offset, int64_t out) {
             s.add_positions(x, std::make_shared<PackedRows>(std::move(table)), offset, out);
           },
           "x"_a, "table"_a, "offset"_a, "out"_a)
      .def("add_positions",
           [](NodeBuilder& s, int64_t x, std::shared_ptr<FileRows> table, int64_t offset,
              int64_t out) {
             s.add_positions(x, std::move(table), offset, out);
           },
           "x"_a, "table"_a, "offset"_a, "out"_a)
      .def("select", &NodeBuilder::select, "x"_a, "out"_a)
      .def("row", &NodeBuilder::row, "function"_a, "a"_a, "out"_a, "b"_a = nb::none(),
           "weight"_a = nb::none(), "bias"_a = nb::none(), "activation"_a = 0, "number"_a = 0.0f,
           "group"_a = 0)
      .def("matmul", &NodeBuilder::matmul, "x"_a, "parts"_a, "glu"_a = nb::none(),
           "tiles"_a = 0, "narrow"_a = Value::kNone, "groups"_a = 1)
      .def("heads", &NodeBuilder::heads, "parts"_a, "out"_a, "count"_a)
      .def("attach", &NodeBuilder::attach, "stream"_a, "track"_a)
      .def("foresee", &NodeBuilder::foresee, "x"_a, "norm"_a, "weight"_a.none(), "shift"_a.none(),
           "epsilon"_a, "router"_a, "bias"_a.none())
      .def("attach_experts", &NodeBuilder::attach_experts, "cache"_a, "first"_a)
      .def("rope", &NodeBuilder::rope, "x"_a, "out"_a, "table"_a, "head_dim"_a, "interleaved"_a)
      .def("attention", &NodeBuilder::attention, "q"_a, "k"_a.none(), "v"_a.none(), "out"_a,
           "layer"_a, "heads"_a, "kv_heads"_a, "k_dim"_a, "v_dim"_a, "scale"_a, "window"_a,
           "softcap"_a, "causal"_a = true, "chunked"_a = false, "slopes"_a = nb::none(),
           "sinks"_a = nb::none(), "call"_a = nb::none(), "beginning"_a = 0,
           "q_beginning"_a = nb::none(), "read"_a = 0, "chosen"_a = nb::none())
      .def("top_keys", &NodeBuilder::top_keys, "q"_a, "k"_a, "weights"_a, "out"_a, "layer"_a,
           "block"_a, "local"_a)
      .def("short_conv", &NodeBuilder::short_conv, "x"_a, "out"_a, "layer"_a, "weight"_a,
           "bias"_a = nb::none())
      .def("scan", &NodeBuilder::scan, "kind"_a, "inputs"_a, "out"_a, "layer"_a, "heads"_a,
           "key_heads"_a, "k_dim"_a, "v_dim"_a, "tiled"_a, "by_key"_a, "parameters"_a)
      .def("grouped", &NodeBuilder::grouped, "function"_a, "x"_a, "out"_a, "group"_a,
           "eps"_a = 0.0f, "factor"_a = 1.0f, "weight"_a = nb::none())
      .def("mix", &NodeBuilder::mix, "x"_a, "weights"_a, "out"_a, "streams"_a)
      .def("match_rms", &NodeBuilder::match_rms, "x"_a, "like"_a, "out"_a, "least"_a)
      .def("sinkhorn", &NodeBuilder::sinkhorn, "x"_a, "out"_a, "streams"_a, "iterations"_a, "eps"_a)
      .def("cutoff", &NodeBuilder::cutoff, "x"_a, "out"_a, "deviations"_a, "spare"_a)
      .def("experts", &NodeBuilder::experts, "x"_a, "logits"_a, "out"_a, "gate"_a.none(),
           "up"_a, "down"_a, "selection"_a.none(), "ffn"_a, "top_k"_a, "scoring"_a,
           "select_logits"_a, "softmax_chosen"_a, "renormalise"_a, "least_sum"_a, "scale"_a,
           "groups"_a, "groups_kept"_a, "group_top2"_a, "activation"_a, "clamp"_a, "limit"_a,
           "up_limit"_a, "weigh_input"_a, "jitter"_a, "shared_by"_a, "narrow"_a, "work"_a)
      .def_prop_ro("scratch_floats", &NodeBuilder::scratch_floats)
      .def_prop_ro("nodes", &NodeBuilder::nodes)
      .def("set_timing", &NodeBuilder::set_timing, "on"_a)
      .def("take_times", &NodeBuilder::take_times)
      .def("run", &NodeBuilder::run, "team"_a, "isa"_a, "arena"_a, "step"_a, "state"_a,
           "max_rows"_a, "out"_a = nb::none());
  m.def("partials_bytes", &partials_bytes, "heads"_a, "kv_heads"_a, "v_dim"_a, "threads"_a,
        "sequences"_a, "positions"_a,
        "The most that split attention takes beside the arena it was given.");
  m.def("matmul_scratch_floats", &matmul_scratch_floats, "k"_a,
        "Floats of scratch that each thread needs for a product whose rows have k columns.");
  m.def("attention_scratch_floats",
        [](int64_t k_dim, int64_t v_dim, bool v_in_k) {
          return attention_scratch_floats({k_dim, v_dim, v_in_k});
        },
        "k_dim"_a, "v_dim"_a, "v_in_k"_a, "Floats of scratch that attention takes of a thread.");
  m.def("weigh_keys_scratch_floats", &weigh_keys_scratch_floats, "heads"_a, "k_dim"_a,
        "Floats of scratch that choosing keys takes of a thread.");
  m.def("experts_work", &experts_work, "experts"_a, "ffn"_a, "top_k"_a, "down"_a, "rows"_a,
        "Bytes of workspace for experts whose down product has this format.");
  m.def("experts_scratch", &experts_scratch, "experts"_a, "width"_a, "ffn"_a, "up"_a, "down"_a,
        "Floats of scratch that each thread needs for experts of these formats.");
  nb::class_<Joined>(m, "Joined")
      .def(nb::init<std::vector<NodeBuilder*>>(), "segments"_a, nb::keep_alive<1, 2>())
      .def("run", &Joined::run, "team"_a, "isa"_a, "arena"_a, "step"_a, "state"_a, "max_rows"_a)
      .def_prop_ro("current", &Joined::current);
}
