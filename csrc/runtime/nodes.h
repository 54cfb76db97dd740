// The nodes that Ops are lowered to. Each is built once with its operands and runs many times.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "runtime/executor.h"

namespace strata {

using WeightPtr = std::shared_ptr<PackedWeight>;
using Floats = std::vector<float>;   // a small parameter (norm weight, bias), owned by its node

enum class RowFunction : int32_t {
  copy = 0, rms_norm = 1, layer_norm = 2, glu = 3, activation = 4, add = 5, scale = 6, softcap = 7
};

// A function of single rows: out = f(a, b). Writes whichever forms of `out` are kept.
struct RowSpec {
  RowFunction function;
  Value a, b, out;          // b: up (glu), the other term (add); unused otherwise
  Floats weight, bias;      // norms; the weight's width is the group that is normalised
  Activation activation = Activation::silu;
  float number = 0;         // eps, factor or cap
};

struct MatmulPart {
  WeightPtr weight;
  Value out;
  Floats bias;                     // empty: none
  std::optional<Value> residual;   // added last
};

// Products of one input with one to three weights; `glu` (two parts) is applied to each range of
// columns as soon as both parts have it, while it is in the first-level cache.
struct MatmulSpec {
  Value x;
  std::vector<MatmulPart> parts;
  std::optional<RowSpec> glu;
};

struct RopeSpec {
  Value x, out;
  int64_t head_dim;
  bool interleaved;
  std::shared_ptr<RopeTable> table;
};

struct AttentionSpec {
  Value q, k, v, out;
  int64_t layer, heads, kv_heads, head_dim, window;
  float scale, softcap;
};

std::unique_ptr<Node> make_embed(WeightPtr table, float scale, Value out);
std::unique_ptr<Node> make_add_positions(Value x, WeightPtr table, int64_t offset, Value out);
std::unique_ptr<Node> make_select(Value x, Value out);
std::unique_ptr<Node> make_row(RowSpec spec);
std::unique_ptr<Node> make_matmul(MatmulSpec spec);
std::unique_ptr<Node> make_rope(RopeSpec spec);
// Store k and v, attend, merge: three nodes.
std::vector<std::unique_ptr<Node>> make_attention(AttentionSpec spec);

// Applies a row function to columns [c0, c1) of one row (whole rows for norms); c0 and c1 are
// multiples of kActBlock or the row's end.
void apply_row(const Context& c, const RowSpec& s, int64_t row, int64_t c0, int64_t c1,
               float* scratch);

}  // namespace strata
