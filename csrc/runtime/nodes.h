// The nodes that Ops are lowered to. Each is built once with its operands and runs many times.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "runtime/executor.h"
#include "runtime/expert_cache.h"
#include "runtime/row_cache.h"
#include "runtime/weight_place.h"

namespace strata {

using WeightPtr = std::shared_ptr<PackedWeight>;
// A weight of which single rows are looked up, in memory or in its file. Safe from any thread.
class RowTable {
 public:
  RowTable(int64_t rows, int64_t row_width) : n(rows), k(row_width) {}
  virtual ~RowTable() = default;
  virtual void row(const KernelTable& kernels, int64_t row, float* out) const = 0;
  // Whether a row is waited for.
  virtual bool in_file() const { return false; }
  const int64_t n, k;
};
using RowTablePtr = std::shared_ptr<const RowTable>;

class PackedRows final : public RowTable {
 public:
  explicit PackedRows(WeightPtr w) : RowTable(w->n, w->k), weight_(std::move(w)) {}
  void row(const KernelTable& kernels, int64_t row, float* out) const override {
    kernels.unpack_row(weight_->format, weight_->bytes.data(), n, k, row, out);
  }

 private:
  WeightPtr weight_;
};

class FileRows final : public RowTable {
 public:
  FileRows(WeightPlacePtr place, std::shared_ptr<ReadCounters> counters)
      : RowTable(place->n, place->k), place_(std::move(place)), counters_(std::move(counters)) {}
  void row(const KernelTable& kernels, int64_t row, float* out) const override;
  bool in_file() const override { return true; }
  int64_t row_bytes() const { return place_->row_bytes(); }
  // From now on rows are looked for there first, as those of this table; not while a step runs.
  void attach(std::shared_ptr<RowCache> cache, int64_t table) {
    cache_ = std::move(cache);
    table_ = table;
  }

 private:
  WeightPlacePtr place_;
  std::shared_ptr<ReadCounters> counters_;
  std::shared_ptr<RowCache> cache_;
  int64_t table_ = 0;
};

using Floats = std::vector<float>;   // a small parameter (norm weight, bias), owned by its node

// A parameter of some megabytes, which nobody copies.
struct SharedFloats {
  std::shared_ptr<const float> held;
  bool empty() const { return held == nullptr; }
  const float* data() const { return held.get(); }
  float operator[](size_t i) const { return held.get()[i]; }
};

enum class RowFunction : int32_t {
  copy = 0, rms_norm = 1, layer_norm = 2, glu = 3, activation = 4, add = 5, scale = 6, softcap = 7,
  mul = 8, shift = 9, clamp = 10, xielu = 11, position_scale = 12
};
inline constexpr int kRowFunctions = 13;

// A function of single rows: out = f(a, b). Writes whichever forms of `out` are kept.
struct RowSpec {
  RowFunction function;
  Value a, b, out;          // b: up (glu), the other term (add) or factor (mul); else unused
  // Weights of norms, mul and shift; parameters of clamp, xielu and position_scale in their order.
  Floats weight, bias;
  Activation activation = Activation::silu;
  float number = 0;         // eps, factor or cap
  int64_t group = 0;        // what is normalised together
};

struct MatmulPart {
  WeightPtr weight;                // null: streamed
  Format format;
  int64_t n;
  Value out;
  Floats bias;                     // empty: none
  std::optional<Value> residual;   // added last
};

// Products of one input with one to three weights; with `groups` of more than one a weight has a
// matrix for each group of columns of x, of whole panels, one behind the other; `glu` (two parts) is applied to each range of
// columns as soon as both parts have it, while it is in the first-level cache. Parts are all packed
// or all streamed.
struct MatmulSpec {
  Value x;
  std::vector<MatmulPart> parts;
  std::optional<RowSpec> glu;
  int64_t groups = 1;
  int64_t narrow = Value::kNone;   // where x lies as bf16 while the product runs
};

struct RopeSpec {
  Value x, out;
  int64_t head_dim;
  bool interleaved;
  std::shared_ptr<RopeTable> table;
};

// Without k what `layer` keeps is read as it is; without v values are part of keys, as its shape
// says.
struct AttentionSpec {
  Value q;
  std::optional<Value> k, v;
  Value out;
  int64_t layer, heads, kv_heads, k_dim, v_dim, window;
  float scale, softcap;
  bool causal = true, chunked = false;
  Floats slopes, sinks;   // of heads, or empty
  int64_t beginning = 0;  // positions that are seen from beyond the window, by another query
  std::optional<Value> q_beginning = std::nullopt;
  int64_t read = 0;       // blocks that a row sees, chosen by bounds of their keys; 0: all
  std::optional<Value> chosen = std::nullopt;   // positions of the keys that a row sees, then -1
};

// The positions of the keys that weigh most for a row, as many as `out` is wide. `keys` says where
// they are kept and by which q and k.
// `choices` of a row: one by all heads with their weights (`weighed`), or one a head.
struct TopKeysSpec {
  AttentionSpec keys;
  Value weights, out;
  int64_t choices, block, local;
  bool weighed;
};

// Rows put together from heads: for each of `heads` heads its part of each x, `width` floats from
// `start` on, with `stride` floats from head to head (0: the same for all).
struct HeadsPart {
  Value x;
  int64_t stride, start, width;
};
struct HeadsSpec {
  std::vector<HeadsPart> parts;
  Value out;
  int64_t heads;
};

// A depthwise convolution along the sequence; `weight` is [taps][width].
struct ShortConvSpec {
  Value x, out;
  int64_t layer, taps;
  Floats weight, bias;   // bias may be empty
};
inline constexpr int64_t kMostTaps = 64;

// Rows of a table by hashes of a token and those before it: `each` lookups of every length from 2 to
// that of `multipliers`. What came before a sequence is a token `end`.
struct NgramsSpec {
  RowTablePtr table;
  Value out;
  int64_t layer, each;
  std::vector<uint64_t> multipliers;
  std::vector<int64_t> starts, sizes;
  int64_t end;
};
inline constexpr int64_t kMostLookups = 64, kMostTokens = int64_t{1} << 24;

// A recurrence with a matrix of state [k_dim][v_dim] for each head.
struct ScanSpec {
  Scan kind;
  std::vector<Value> in;
  Value out;
  int64_t layer, heads, key_heads, k_dim, v_dim;
  bool tiled, by_key;
  std::vector<Floats> parameters;
};

// What is put around recurrences: functions of single rows that RowSpec does not know.
enum class GroupFunction : int32_t {
  grouped_rms_norm = 0, l2_norm = 1, decay = 2, sum = 3, softmax = 4
};
struct GroupSpec {
  GroupFunction function;
  Value x, out;
  int64_t group;              // columns of x that belong together
  float eps = 0, factor = 1;
  Floats weight;
};

// Of rows that are several streams side by side, and of whole rows; see strata.program.ops.streams.
enum class StreamsFunction : int32_t { mix = 0, match_rms = 1, cutoff = 2, sinkhorn = 3 };
struct StreamsSpec {
  StreamsFunction function;
  Value x;
  std::optional<Value> other;   // weights, or what is matched
  Value out;
  int64_t count = 0;            // of streams, or what a row's width is less
  float number = 0;             // the least mean square, deviations, or what is added to sums
  int64_t iterations = 0;
};

enum class Scoring : int32_t {
  softmax = 0, sigmoid = 1, sqrt_softplus = 2, none = 3, sparsemixer = 4
};
enum class Clamp : int32_t { none = 0, inputs = 1, silu = 2, oai = 3, situ = 4 };

// A matrix of [n, k] for each expert, one after the other, each of whole panels.
struct ExpertsPart {
  WeightPtr weight;    // null: in a cache of experts
  Format format;
  SharedFloats bias, scale;  // [experts, n] and [experts], or empty
};

// See strata.program.ops.experts.
struct ExpertsSpec {
  Value x, logits, out;
  int64_t experts, ffn, top_k;
  std::optional<ExpertsPart> gate;
  ExpertsPart up, down;
  Floats selection;
  Scoring scoring;
  bool select_logits, softmax_chosen, renormalise, weigh_input, group_top2;
  float least_sum, scale, limit, up_limit, jitter;
  int64_t shared_by, groups, groups_kept;
  Activation activation;
  Clamp clamp;
  int64_t narrow;   // where x lies as bf16, as with a product
  int64_t work;     // where the workspace of work_bytes lies

  ActKind down_act() const;
  int64_t middle_stride() const;
  // Floats of scratch that a thread takes, in all, and before what the two products make.
  int64_t scratch_floats() const;
  int64_t gate_scratch() const;
  int64_t down_scratch() const;
  int64_t work_bytes(int64_t rows) const;
};

// What is needed to tell a layer's experts from what goes into it.
struct Foresight {
  enum class Norm : int32_t { none = 0, rms = 1, layer = 2 };
  // Of a step of more rows so many, evenly apart, are asked.
  static constexpr int64_t kMostRows = 16;

  Value x;
  Norm norm;
  Floats weight, shift;
  double epsilon;
  WeightPtr router;
  Floats bias;
  // Known later than the nodes that come first: how the layer chooses, and where its experts are.
  std::optional<ExpertsSpec> choice;
  std::shared_ptr<ExpertCache> cache;
  int layer = -1;
  int64_t rows = 0;   // of this step that are asked
};
// The logits of the layer's router; and what comes of them.
std::unique_ptr<Node> make_foresee(std::shared_ptr<Foresight> f);
std::unique_ptr<Node> make_ask(std::shared_ptr<Foresight> f);
// Floats of scratch that this takes.
int64_t foresee_scratch(int64_t width, int64_t logits);

// Lets products run on the experts that are in memory, in the order in which they come.
class ExpertTurns : public Turns {
 public:
  // Where layer `layer` of a cache is the one of these experts.
  virtual void attach(std::shared_ptr<ExpertCache> cache, int layer) = 0;
};

// In their order. With turns, those that follow the first run in them.
struct ExpertNodes {
  std::unique_ptr<Node> route, gate_up, narrow, down;   // narrow: may be null
  std::shared_ptr<ExpertTurns> turns;                   // null: all are resident
};
ExpertNodes make_experts(ExpertsSpec spec);
// ExpertsSpec::work_bytes and scratch_floats of experts that are not built yet, by their formats.
int64_t experts_work(int64_t experts, int64_t ffn, int64_t top_k, int down, int64_t rows);
int64_t experts_scratch(int64_t experts, int64_t width, int64_t ffn, int up, int down);

std::unique_ptr<Node> make_embed(RowTablePtr table, float scale, Value out);
std::unique_ptr<Node> make_ngrams(NgramsSpec spec);
std::unique_ptr<Node> make_add_positions(Value x, RowTablePtr table, int64_t offset, Value out);
std::unique_ptr<Node> make_select(Value x, Value out);
std::unique_ptr<Node> make_row(RowSpec spec);
std::unique_ptr<Node> make_matmul(MatmulSpec spec);
// Makes the bf16 rows that a product of x reads, where the instruction set wants them.
std::unique_ptr<Node> make_narrow(Value x, int64_t narrow);
std::unique_ptr<Node> make_heads(HeadsSpec spec);
std::unique_ptr<Node> make_rope(RopeSpec spec);
std::unique_ptr<Node> make_short_conv(ShortConvSpec spec);
std::unique_ptr<Node> make_scan(ScanSpec spec);
std::unique_ptr<Node> make_group(GroupSpec spec);
std::unique_ptr<Node> make_streams(StreamsSpec spec);
// Store k and v (unless shared), attend, merge: up to three nodes. With the number of the `call`
// among those of a sweep attention goes in turns, as blocks come that are not in memory.
void add_attention(NodeList& list, AttentionSpec spec, std::optional<int> call);
void add_top_keys(NodeList& list, TopKeysSpec spec);

// The most that Arena::partials comes to for so many sequences of so many positions.
int64_t partials_bytes(int64_t heads, int64_t kv_heads, int64_t v_dim, int threads,
                       int64_t sequences, int64_t positions);

// Applies a row function to columns [c0, c1) of one row (whole rows for norms); c0 and c1 are
// multiples of kActBlock or the row's end.
void apply_row(const Context& c, const RowSpec& s, int64_t row, int64_t c0, int64_t c1,
               float* scratch);

}  // namespace strata
