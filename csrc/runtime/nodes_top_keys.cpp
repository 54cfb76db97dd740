#include "runtime/nodes_top_keys.h"

#include <algorithm>

namespace strata {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The positions of the keys that weigh most for a row, rising; all that come before it where these
// are no more, with -1 behind them. Of two that weigh the same the later.
class PickNode final : public Node {
 public:
  explicit PickNode(TopKeysSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    int64_t positions = 0;
    for (const Span& span : c.step->spans) positions = std::max(positions, span.past + span.rows);
    // Of each thread: of a key its weight and its number.
    room_ = ceil_div(positions, kKvBlock) * kKvBlock;
    if (positions > s_.out.width)
      work_ = c.arena->choice(static_cast<size_t>(8 * room_ * c.threads));
    return c.step->tokens_count;
  }

  void chunk(const Context& c, int64_t row, int thread) override {
    const auto& spans = c.step->spans;
    const Span& span = *std::find_if(spans.begin(), spans.end(), [&](const Span& s) {
      return row >= s.row && row < s.row + s.rows;
    });
    const int64_t keys = span.past + row - span.row + 1, most = s_.out.width;
    float* const out = c.f32(s_.out, row);
    if (keys <= most) {
      for (int64_t i = 0; i < most; ++i) out[i] = i < keys ? static_cast<float>(i) : -1.0f;
      return;
    }
    float* const weights = reinterpret_cast<float*>(work_ + 8 * room_ * thread);
    auto* const order = reinterpret_cast<int32_t*>(weights + room_);
    const AttentionArgs a = attention_arguments(c, s_.keys, span);
    attend_kernels(c, s_.keys)
        .weigh_keys(a, c.f32(s_.weights, row), row - span.row, keys, c.arena->scratch(thread),
                    weights);
    for (int64_t i = 0; i < keys; ++i) {
      order[i] = static_cast<int32_t>(i);
      if (weights[i] != weights[i]) weights[i] = -__builtin_huge_valf();   // no number: in no order
    }
    std::nth_element(order, order + most, order + keys, [&](int32_t x, int32_t y) {
      return weights[x] != weights[y] ? weights[x] > weights[y] : x > y;
    });
    std::sort(order, order + most);
    for (int64_t i = 0; i < most; ++i) out[i] = static_cast<float>(order[i]);
  }

 private:
  TopKeysSpec s_;
  uint8_t* work_ = nullptr;
  int64_t room_ = 0;
};

class MaskNode final : public Node {
 public:
  MaskNode(Value positions, std::shared_ptr<Cut> cut)
      : positions_(positions), cut_(std::move(cut)) {}

  int64_t begin(const Context& c) override {
    blocks_ = 1;
    for (const Span& span : c.step->spans)
      blocks_ = std::max(blocks_, ceil_div(span.past + span.rows, kKvBlock));
    const int64_t rows = c.step->tokens_count, words = ceil_div(blocks_, 64);
    masks_ = reinterpret_cast<uint64_t*>(
        c.arena->choice(static_cast<size_t>(8 * rows * (blocks_ + words))));
    chosen_ = masks_ + rows * blocks_;
    cut_->masks = masks_;
    cut_->mask_words = blocks_;
    cut_->chosen = chosen_;
    cut_->chosen_words = words;
    return rows;
  }

  void chunk(const Context& c, int64_t row, int) override {
    uint64_t* const masks = masks_ + row * blocks_;
    uint64_t* const chosen = chosen_ + row * cut_->chosen_words;
    std::fill(masks, masks + blocks_, uint64_t{0});
    std::fill(chosen, chosen + cut_->chosen_words, uint64_t{0});
    const float* const positions = c.f32(positions_, row);
    for (int64_t i = 0; i < positions_.width && positions[i] >= 0.0f; ++i) {
      const auto key = static_cast<int64_t>(positions[i]), block = key / kKvBlock;
      if (block >= blocks_) break;
      masks[block] |= uint64_t{1} << (key % kKvBlock);
      chosen[block / 64] |= uint64_t{1} << (block % 64);
    }
  }

 private:
  const Value positions_;
  std::shared_ptr<Cut> cut_;
  uint64_t *masks_ = nullptr, *chosen_ = nullptr;
  int64_t blocks_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_mask(Value positions, std::shared_ptr<Cut> cut) {
  return std::make_unique<MaskNode>(positions, std::move(cut));
}

void add_top_keys(NodeList& list, TopKeysSpec spec) {
  list.add(make_store(spec.keys));
  list.add(std::make_unique<PickNode>(std::move(spec)));
}

}  // namespace strata
