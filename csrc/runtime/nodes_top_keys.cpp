#include "runtime/nodes_top_keys.h"

#include <algorithm>

namespace strata {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The positions of the keys that weigh most for a row, or for each of its heads, in whole blocks,
// rising; all that come before it where these are no more, with -1 behind them. Of two blocks that
// weigh the same the later.
class PickNode final : public Node {
 public:
  explicit PickNode(TopKeysSpec spec) : s_(std::move(spec)), most_(s_.out.width / s_.choices) {}

  int64_t begin(const Context& c) override {
    int64_t positions = 0;
    for (const Span& span : c.step->spans) positions = std::max(positions, span.past + span.rows);
    // Of each thread: of a key its weight, for each choice, and the number of its block.
    room_ = ceil_div(positions, kKvBlock) * kKvBlock;
    if (positions > most_)
      work_ = c.arena->choice(static_cast<size_t>(4 * room_ * (s_.choices + 1) * c.threads));
    return c.step->tokens_count;
  }

  void chunk(const Context& c, int64_t row, int thread) override {
    const auto& spans = c.step->spans;
    const Span& span = *std::find_if(spans.begin(), spans.end(), [&](const Span& s) {
      return row >= s.row && row < s.row + s.rows;
    });
    const int64_t keys = span.past + row - span.row + 1;
    float* const out = c.f32(s_.out, row);
    if (keys <= most_) {
      for (int64_t i = 0; i < s_.out.width; ++i)
        out[i] = i % most_ < keys ? static_cast<float>(i % most_) : -1.0f;
      return;
    }
    float* const weights = reinterpret_cast<float*>(work_) + room_ * (s_.choices + 1) * thread;
    auto* const order = reinterpret_cast<int32_t*>(weights + room_ * s_.choices);
    const AttentionArgs a = attention_arguments(c, s_.keys, span);
    attend_kernels(c, s_.keys)
        .weigh_keys(a, s_.weighed ? c.f32(s_.weights, row) : nullptr, row - span.row, keys,
                    c.arena->scratch(thread), weights);
    const int64_t stride = ceil_div(keys, kKvBlock) * kKvBlock;
    for (int64_t i = 0; i < s_.choices; ++i)
      pick(weights + i * stride, keys, order, out + i * most_);
  }

 private:
  // The weights of blocks take the places of those of the first keys.
  void pick(float* weights, int64_t keys, int32_t* order, float* out) const {
    const int64_t count = ceil_div(keys, s_.block), top = most_ / s_.block;
    for (int64_t i = 0; i < count; ++i) {
      float most = -__builtin_huge_valf();   // what is no number comes in no order
      for (int64_t j = i * s_.block; j < std::min((i + 1) * s_.block, keys); ++j)
        if (weights[j] > most) most = weights[j];
      weights[i] = i + s_.local >= count ? __builtin_huge_valf() : most;
      order[i] = static_cast<int32_t>(i);
    }
    std::nth_element(order, order + top, order + count, [&](int32_t x, int32_t y) {
      return weights[x] != weights[y] ? weights[x] > weights[y] : x > y;
    });
    std::sort(order, order + top);
    int64_t n = 0;
    for (int64_t i = 0; i < top; ++i) {
      for (int64_t j = order[i] * s_.block; j < std::min((order[i] + 1) * s_.block, keys); ++j)
        out[n++] = static_cast<float>(j);
    }
    std::fill(out + n, out + most_, -1.0f);
  }

  TopKeysSpec s_;
  int64_t most_;
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
