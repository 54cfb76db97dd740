// Recurrences with a matrix of state a head, and the row functions around them.
#include <algorithm>
#include <cstring>

#include "runtime/nodes.h"

namespace strata {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunksPerThread = 4;

// Chunks are sixteen columns of a head of a span, all of its rows. As for ShortConvNode, one slot is
// read and another is written.
class ScanNode final : public Node {
 public:
  explicit ScanNode(ScanSpec spec)
      : s_(std::move(spec)), blocks_((s_.v_dim + kLanes - 1) / kLanes) {}

  int64_t begin(const Context& c) override {
    return static_cast<int64_t>(c.step->spans.size()) * s_.heads * blocks_;
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t head = index / blocks_ % s_.heads;
    const int64_t column = index % blocks_ * kLanes;
    const auto lanes = static_cast<int>(std::min(kLanes, s_.v_dim - column));
    const Span& span = c.step->spans[static_cast<size_t>(index / blocks_ / s_.heads)];
    const StateStore::Layer& layer = c.state->layer(s_.layer);
    const int32_t* slots = span.tables[layer.group];
    // Of a head column after column of blocks: [head][block][k_dim][lanes].
    const auto slot = [&](int32_t i) {
      return reinterpret_cast<float*>(layer.data + i * c.state->group_of(layer).block_stride) +
             s_.k_dim * (head * s_.v_dim + column);
    };
    ScanArgs a{};
    for (size_t i = 0; i < s_.in.size(); ++i) {
      a.in[i] = c.f32(s_.in[i], span.row);
      a.stride[i] = s_.in[i].width;
    }
    for (size_t i = 0; i < s_.parameters.size(); ++i) a.parameters[i] = s_.parameters[i].data();
    a.out = c.f32(s_.out, span.row);
    a.out_stride = s_.out.width;
    a.before = slots[0] < 0 ? nullptr : slot(slots[0]);
    a.after = slot(slots[1]);
    a.rows = span.rows;
    a.heads = s_.heads;
    a.key_heads = s_.key_heads;
    a.k_dim = s_.k_dim;
    a.v_dim = s_.v_dim;
    a.tiled = s_.tiled;
    a.by_key = s_.by_key;
    c.step_kernels->scan[static_cast<int>(s_.kind)](a, head, column, lanes);
  }

 private:
  ScanSpec s_;
  int64_t blocks_;
};

class GroupNode final : public Node {
 public:
  explicit GroupNode(GroupSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t rows = c.rows(s_.out);
    rows_ = std::max<int64_t>(1, rows / (kChunksPerThread * c.threads));
    return (rows + rows_ - 1) / rows_;
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(s_.out));
    const StepKernels& k = *c.step_kernels;
    for (int64_t r = index * rows_; r < end; ++r) {
      const float* x = c.f32(s_.x, r);
      float* out = c.f32(s_.out, r);
      switch (s_.function) {
        case GroupFunction::grouped_rms_norm:
          k.grouped_rms_norm(x, s_.weight.data(), s_.eps, s_.group, s_.x.width, out);
          break;
        case GroupFunction::l2_norm: k.l2_norm(x, s_.eps, s_.factor, s_.group, s_.x.width, out); break;
        case GroupFunction::decay: k.decay(x, s_.weight.data(), s_.group, s_.x.width, out); break;
        case GroupFunction::sum: k.group_sum(x, s_.group, s_.x.width, out); break;
        case GroupFunction::softmax: k.softmax(x, s_.group, s_.x.width, out); break;
      }
    }
  }

 private:
  GroupSpec s_;
  int64_t rows_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_scan(ScanSpec spec) {
  return std::make_unique<ScanNode>(std::move(spec));
}

std::unique_ptr<Node> make_group(GroupSpec spec) {
  return std::make_unique<GroupNode>(std::move(spec));
}

}  // namespace strata
