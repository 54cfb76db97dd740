// A NodeList under construction and in use: what Python adds to it is checked here.
#pragma once
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <variant>

#include "bindings_runtime.h"
#include "runtime/stream.h"

namespace strata {

// Values are made first, then nodes over them.
class NodeBuilder {
 public:
  int64_t value(int64_t width, int64_t f32, int64_t q8, bool selected, int64_t planes);
  void embed(RowTablePtr table, float scale, int64_t out);
  void ngrams(RowTablePtr table, int64_t out, int64_t layer, std::vector<uint64_t> multipliers,
              std::vector<int64_t> starts, std::vector<int64_t> sizes, int64_t end);
  void add_positions(int64_t x, RowTablePtr table, int64_t offset, int64_t out);
  void select(int64_t x, int64_t out);
  void row(int function, int64_t a, int64_t out, std::optional<int64_t> b,
           std::optional<Array1<float>> weight, std::optional<Array1<float>> bias, int activation,
           float number, int64_t group);
  // A weight, or the place of one that is streamed.
  using Operand = std::variant<WeightPtr, WeightPlacePtr>;
  using Part = std::tuple<Operand, int64_t, std::optional<Array1<float>>, std::optional<int64_t>>;
  void matmul(int64_t x, const std::vector<Part>& parts,
              std::optional<std::tuple<int, int64_t>> glu, int tiles, int64_t narrow,
              int64_t groups);
  // From where the streamed products get their weights: a track of tiles, in their order, that
  // covers every panel once.
  void attach(std::shared_ptr<Stream> stream, int track);
  // Parts are (value, floats from head to head, first float, floats).
  void heads(const std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>& parts, int64_t out,
             int64_t count);
  void rope(int64_t x, int64_t out, std::shared_ptr<RopeTable> table, int64_t head_dim,
            bool interleaved);
  void attention(int64_t q, std::optional<int64_t> k, std::optional<int64_t> v, int64_t out,
                 int64_t layer, int64_t heads, int64_t kv_heads, int64_t k_dim, int64_t v_dim,
                 float scale, int64_t window, float softcap, bool causal, bool chunked,
                 const std::optional<Array1<float>>& slopes,
                 const std::optional<Array1<float>>& sinks, std::optional<int> call,
                 int64_t beginning, std::optional<int64_t> q_beginning, int64_t read,
                 std::optional<int64_t> chosen);
  // Positions of the keys that weigh most for a row, as many as `out` is wide.
  // Without weights (-1) each head chooses for itself.
  void top_keys(int64_t q, int64_t k, int64_t weights, int64_t out, int64_t layer, int64_t block,
                int64_t local);
  void short_conv(int64_t x, int64_t out, int64_t layer, const Array1<float>& weight,
                  const std::optional<Array1<float>>& bias);
  // Of heads with a state of [k_dim][v_dim]: operands and parameters as step_kernels.h has them.
  void scan(int kind, const std::vector<int64_t>& in, int64_t out, int64_t layer, int64_t heads,
            int64_t key_heads, int64_t k_dim, int64_t v_dim, bool tiled, bool by_key,
            const std::vector<Array1<float>>& parameters);
  void grouped(int function, int64_t x, int64_t out, int64_t group, float eps, float factor,
               const std::optional<Array1<float>>& weight);
  // Of rows of several streams, and of whole rows.
  void mix(int64_t x, int64_t weights, int64_t out, int64_t streams);
  void match_rms(int64_t x, int64_t like, int64_t out, float least);
  void sinkhorn(int64_t x, int64_t out, int64_t streams, int64_t iterations, float eps);
  void cutoff(int64_t x, int64_t out, float deviations, int64_t spare);

  // One matrix of each expert, a weight or the places of what a cache holds: and bias and scale.
  using ExpertsWeight = std::variant<WeightPtr, std::shared_ptr<ExpertMatrix>>;
  using ExpertsOperand = std::tuple<ExpertsWeight, std::optional<Array1<float>>,
                                    std::optional<Array1<float>>>;
  void experts(int64_t x, int64_t logits, int64_t out, const std::optional<ExpertsOperand>& gate,
               const ExpertsOperand& up, const ExpertsOperand& down,
               const std::optional<Array1<float>>& selection, int64_t ffn, int64_t top_k,
               int scoring, bool select_logits, bool softmax_chosen, bool renormalise,
               float least_sum, float scale, int64_t groups, int64_t groups_kept, bool group_top2,
               int activation, int clamp, float limit, float up_limit, bool weigh_input, float jitter,
               int64_t shared_by, int64_t narrow, int64_t work);
  // From x, what goes into the Segment, tells the first experts that come from a cache, by the norm
  // and the router of their logits: before all other nodes.
  void foresee(int64_t x, int norm, const std::optional<Array1<float>>& weight,
               const std::optional<Array1<float>>& shift, double epsilon, WeightPtr router,
               const std::optional<Array1<float>>& bias);
  // From which cache experts come that do not stay: those of these nodes are its layers from
  // `first` on.
  void attach_experts(std::shared_ptr<ExpertCache> cache, int first);

  int64_t scratch_floats() const { return scratch_; }
  int64_t nodes() const { return list_.nodes(); }
  void set_timing(bool on) { list_.set_timing(on); }
  std::vector<double> take_times() { return list_.take_times(); }

  using Output = nanobind::ndarray<float, nanobind::ndim<2>, nanobind::c_contig>;
  void run(Team& team, const std::string& isa, Arena& arena, const Step& step, StateStore& state,
           int64_t max_rows, const std::optional<Output>& out);

  // What a run needs, once it is known that nothing is out of bounds.
  Context check(const Team& team, const std::string& isa, Arena& arena, const Step& step,
                StateStore& state, int64_t max_rows, const std::optional<Output>& out) const;
  void append_to(std::vector<Phase>& run, int number) { list_.append_to(run, number); }
  bool streamed() const { return list_.streamed(); }

 private:
  struct AttentionUse {
    int64_t layer, kv_heads, k_dim, v_dim, window, beginning;
    bool keys, values, bounds;
  };
  static void check_kept(const AttentionUse& a, const StateStore& state);
  struct StreamedProduct {
    bool glu;
    int tiles;
    std::vector<WeightPlacePtr> parts;
  };
  struct CachedExperts {
    std::shared_ptr<ExpertTurns> turns;
    ExpertMatrices matrices;
  };

  const Value& at(int64_t id) const;
  const Value& f32_value(int64_t id) const;
  RowSpec row_spec(int function, int64_t a, int64_t out, std::optional<int64_t> b,
                   const std::optional<Array1<float>>& weight,
                   const std::optional<Array1<float>>& bias, int activation, float number,
                   int64_t group);

  NodeList list_;
  std::vector<Value> values_;
  std::vector<AttentionUse> attention_;
  std::vector<std::pair<int64_t, int64_t>> recurrent_;   // layers, and the floats that each keeps
  std::vector<std::pair<Value, int64_t>> narrow_;   // inputs as bf16, and where they lie
  std::vector<ExpertsSpec> experts_;
  std::vector<StreamedProduct> streamed_;
  std::vector<CachedExperts> cached_;
  std::shared_ptr<Foresight> foresight_;
  bool experts_attached_ = false;
  std::shared_ptr<Stream> stream_;
  int track_ = -1;
  int64_t vocabulary_ = -1, max_positions_ = -1, scratch_ = 0;
};

}  // namespace strata
