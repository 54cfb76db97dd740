// The products of a mixture of experts: the chosen ones' gates and ups, and their downs with the
// weighted sum.
#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/experts_step.h"

namespace strata {
namespace {

// Rows of one expert that pass over a chunk of its weights together.
constexpr int64_t kRowBlock = 64;
// Panels of a chunk: what comes out of them for kRowBlock rows stays in the second-level cache.
constexpr int64_t kMostPanels = 16;

enum Part : size_t { kGate = 0, kUp = 1, kDown = 2 };

// What both products have in common: multiplying with a part of one expert's matrix.
class ExpertProduct : public Node {
 protected:
  explicit ExpertProduct(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {}

  // out[r, columns of panel0 .. panel1) for rows r of acts, which lie one after the other.
  void multiply(const Context& c, const ExpertsPart& part, Part which, int64_t n, int64_t k,
                int32_t expert, int64_t panel0, int64_t panel1, const uint8_t* acts,
                int64_t act_stride, const uint8_t* narrow, int64_t rows, float* out,
                int64_t out_stride, float* scratch) const {
    MatmulArgs a{};
    a.n = n;
    a.k = k;
    a.acts = acts;
    a.act_stride = act_stride;
    a.out = out - panel0 * kPanel;
    a.out_stride = out_stride;
    if (narrow != nullptr) {
      a.narrow = narrow;
      a.narrow_stride = static_cast<int64_t>(act_row_bytes(ActKind::bf16, k));
    }
    a.weight = now_->weights.empty()
                   ? part.weight->bytes.data() +
                         expert * static_cast<int64_t>(packed_bytes(part.format, panels(n) * kPanel, k))
                   : now_->weights[static_cast<size_t>(expert)][which];
    a.fetch_end = panels(n);
    c.matrix->matmul(part.format)(a, 0, rows, panel0, panel1, scratch);
  }

  // y = y * scale + bias
  static void finish(const ExpertsPart& part, int32_t expert, int64_t n, float factor, int64_t c0,
                     int64_t count, float* y) {
    const float scale =
        (part.scale.empty() ? 1.0f : part.scale[static_cast<size_t>(expert)]) * factor;
    if (scale != 1.0f) {
      for (int64_t i = 0; i < count; ++i) y[i] *= scale;
    }
    if (!part.bias.empty()) {
      const float* bias = part.bias.data() + expert * n + c0;
      for (int64_t i = 0; i < count; ++i) y[i] += bias[i];
    }
  }

  std::shared_ptr<ExpertsStep> now_;
};

class GateUpNode final : public ExpertProduct {
 public:
  explicit GateUpNode(std::shared_ptr<ExpertsStep> now) : ExpertProduct(std::move(now)) {
    const ExpertsSpec& s = now_->s;
    act_ = format_info(s.up.format)->act;
    row_bytes_ = act_ == ActKind::q8 ? static_cast<int64_t>(act_row_bytes(ActKind::q8, s.x.width))
                                     : whole_lines(s.x.width * 4);
  }

  int64_t begin(const Context& c) override {
    if (now_->rows == 0) return 0;
    group_pairs(c, *now_);
    const auto count = static_cast<int64_t>(now_->worked.size());
    const int64_t each = panels(now_->s.ffn);
    grain_ = std::clamp<int64_t>(count * each / (kExpertChunks * c.threads), 1, kMostPanels);
    grain_ = ceil_div(grain_, 2) * 2;   // a quantisation block is two panels wide
    chunks_each_ = ceil_div(each, grain_);
    return count * chunks_each_;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const ExpertsSpec& s = now_->s;
    const int32_t expert = now_->worked[static_cast<size_t>(index / chunks_each_)];
    const int64_t p0 = index % chunks_each_ * grain_;
    const int64_t p1 = std::min(p0 + grain_, panels(s.ffn));
    const auto* first = now_->at<int32_t>(c, now_->places->first) + expert;
    float* const scratch = c.arena->scratch(thread);
    float* const gate = scratch + s.gate_scratch();
    float* const up = gate + kRowBlock * kMostPanels * kPanel;
    auto* const gathered = reinterpret_cast<uint8_t*>(up + kRowBlock * kMostPanels * kPanel);
    for (int64_t pair = first[0]; pair < first[1]; pair += kRowBlock) {
      const int64_t count = std::min<int64_t>(kRowBlock, first[1] - pair);
      const int64_t columns = std::min(p1 * kPanel, s.ffn) - p0 * kPanel;
      const uint8_t *acts, *narrow;
      gather(c, pair, count, gathered, &acts, &narrow);
      if (s.gate) {
        multiply(c, *s.gate, kGate, s.ffn, s.x.width, expert, p0, p1, acts, row_bytes_, narrow,
                 count, gate, columns, scratch);
      }
      multiply(c, s.up, kUp, s.ffn, s.x.width, expert, p0, p1, acts, row_bytes_, narrow, count, up,
               columns, scratch);
      for (int64_t i = 0; i < count; ++i) {
        activate(c, expert, pair + i, p0 * kPanel, columns, gate + i * columns,
                 up + i * columns);
      }
    }
  }

 private:
  // The rows of x of some pairs, one after the other.
  void gather(const Context& c, int64_t pair, int64_t count, uint8_t* to, const uint8_t** acts,
              const uint8_t** narrow) const {
    const ExpertsSpec& s = now_->s;
    const auto* order = now_->at<int32_t>(c, now_->places->order);
    const bool twice = act_ == ActKind::bf16 && c.matrix->narrow_row != nullptr;
    const auto row = [&](int64_t i) { return order[pair + i] / s.top_k; };
    const auto from = [&](int64_t r) {
      return act_ == ActKind::q8 ? c.q8(s.x, r) : reinterpret_cast<const uint8_t*>(c.f32(s.x, r));
    };
    *narrow = nullptr;
    if (count == 1) {
      *acts = from(row(0));
      if (twice) *narrow = c.narrow(s.narrow, s.x, row(0));
      return;
    }
    const int64_t own = act_ == ActKind::q8 ? row_bytes_ : s.x.width * 4;
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * row_bytes_, from(row(i)), static_cast<size_t>(own));
    }
    *acts = to;
    if (!twice) return;
    to += kRowBlock * row_bytes_;
    *narrow = to;
    const auto bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.x.width));
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * bytes, c.narrow(s.narrow, s.x, row(i)), static_cast<size_t>(bytes));
    }
  }

  // act(gate) * up of columns from c0 on, in the form that the next product reads.
  void activate(const Context& c, int32_t expert, int64_t pair, int64_t c0, int64_t n, float* gate,
                float* up) const {
    const ExpertsSpec& s = now_->s;
    const auto* order = now_->at<int32_t>(c, now_->places->order);
    const float factor =
        s.weigh_input ? now_->at<float>(c, now_->places->weight)[order[pair]] : 1.0f;
    finish(s.up, expert, s.ffn, factor, c0, n, up);
    if (s.gate) finish(*s.gate, expert, s.ffn, factor, c0, n, gate);
    const ActKind act = s.down_act();
    uint8_t* const middle = now_->at<uint8_t>(c, now_->places->middle) + pair * s.middle_stride();
    float* const out = act == ActKind::q8 ? up : reinterpret_cast<float*>(middle) + c0;
    const StepKernels& k = *c.step_kernels;
    if (!s.gate) {
      k.activate(s.activation, up, n, out);
    } else if (s.clamp == Clamp::none) {
      k.glu(s.activation, gate, up, n, out);
    } else {
      clamped(k, gate, up, n, out);
    }
    if (act == ActKind::q8) {
      c.matrix->quantize_blocks(out - c0, s.ffn, c0 / kActBlock, ceil_div(c0 + n, kActBlock),
                                middle, nullptr);
    }
  }

  void clamped(const StepKernels& k, float* gate, float* up, int64_t n, float* out) const {
    constexpr float kAlpha = 1.702f;
    const ExpertsSpec& s = now_->s;
    const float most = s.limit;
    if (s.clamp == Clamp::situ) {
      situ(k, gate, up, n, out);
      return;
    }
    for (int64_t i = 0; i < n; ++i) up[i] = std::clamp(up[i], -most, most);
    if (s.clamp == Clamp::silu) {
      k.activate(Activation::silu, gate, n, gate);
      for (int64_t i = 0; i < n; ++i) out[i] = std::min(gate[i], most) * up[i];
      return;
    }
    for (int64_t i = 0; i < n; ++i) gate[i] = std::min(gate[i], most);
    if (s.clamp == Clamp::oai) {
      for (int64_t i = 0; i < n; ++i) gate[i] *= kAlpha;
      for (int64_t i = 0; i < n; ++i) up[i] = (up[i] + 1.0f) / kAlpha;
    }
    k.glu(Activation::silu, gate, up, n, out);
  }

  void situ(const StepKernels& k, float* gate, float* up, int64_t n, float* out) const {
    constexpr int64_t kSome = 256;
    const ExpertsSpec& s = now_->s;
    if (s.up_limit > 0) k.softcap(up, s.up_limit, n, up);
    for (int64_t i = 0; i < n; i += kSome) {
      const int64_t count = std::min(kSome, n - i);
      float sigmoid[kSome];
      k.activate(Activation::sigmoid, gate + i, count, sigmoid);
      k.softcap(gate + i, s.limit, count, gate + i);
      k.multiply(gate + i, sigmoid, count, gate + i);
    }
    k.multiply(gate, up, n, out);
  }

  ActKind act_;
  int64_t row_bytes_, grain_ = 1, chunks_each_ = 1;
};

// Chunks are ranges of columns, each through all experts, so that an output is added up in order.
class DownNode final : public ExpertProduct {
 public:
  explicit DownNode(std::shared_ptr<ExpertsStep> now) : ExpertProduct(std::move(now)) {}

  int64_t begin(const Context& c) override {
    if (now_->rows == 0 || now_->ready.empty()) return 0;
    const int64_t all = panels(now_->s.out.width);
    grain_ = std::clamp<int64_t>(all / (kExpertChunks * c.threads), 1, kMostPanels);
    if (now_->rows > 1) grain_ = ceil_div(grain_, 2) * 2;   // many rows take two panels at a time
    return ceil_div(all, grain_);
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const ExpertsSpec& s = now_->s;
    float* const scratch = c.arena->scratch(thread);
    float* const made = scratch + s.down_scratch();
    const auto* order = now_->at<int32_t>(c, now_->places->order);
    const auto* firsts = now_->at<int32_t>(c, now_->places->first);
    const auto* weight = now_->at<float>(c, now_->places->weight);
    const uint8_t* middle = now_->at<uint8_t>(c, now_->places->middle);
    const auto narrow_bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn));
    const bool twice = s.down_act() == ActKind::bf16 && c.matrix->narrow_row != nullptr;
    const int64_t p0 = index * grain_;
    const int64_t p1 = std::min(p0 + grain_, panels(s.out.width));
    const int64_t c0 = p0 * kPanel;
    const int64_t columns = std::min(p1 * kPanel, s.out.width) - c0;
    for (const int32_t expert : now_->ready) {
      for (int64_t pair = firsts[expert]; pair < firsts[expert + 1]; pair += kRowBlock) {
        const int64_t count = std::min<int64_t>(kRowBlock, firsts[expert + 1] - pair);
        multiply(c, s.down, kDown, s.out.width, s.ffn, expert, p0, p1,
                 middle + pair * s.middle_stride(), s.middle_stride(),
                 twice ? now_->at<uint8_t>(c, now_->places->narrow) + pair * narrow_bytes : nullptr,
                 count, made, columns, scratch);
        for (int64_t i = 0; i < count; ++i) {
          float* y = made + i * columns;
          finish(s.down, expert, s.out.width, 1.0f, c0, columns, y);
          const float w = s.weigh_input ? 1.0f : weight[order[pair + i]];
          float* out = c.f32(s.out, order[pair + i] / s.top_k) + c0;
          for (int64_t j = 0; j < columns; ++j) out[j] += w * y[j];
        }
      }
    }
  }

 private:
  int64_t grain_ = 1;
};

// The middle as bf16, where the down product reads it so. Chunks are some of an expert's rows.
class NarrowMiddleNode final : public Node {
 public:
  explicit NarrowMiddleNode(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {
    starts_.reserve(static_cast<size_t>(now_->s.experts) + 1);
  }

  int64_t begin(const Context& c) override {
    if (c.matrix->narrow_row == nullptr) return 0;
    const auto* first = now_->at<int32_t>(c, now_->places->first);
    int64_t pairs = 0;
    for (const int32_t e : now_->worked) pairs += first[e + 1] - first[e];
    each_ = std::max<int64_t>(1, pairs / (kExpertChunks * c.threads));
    starts_.assign(1, 0);
    for (const int32_t e : now_->worked) {
      starts_.push_back(starts_.back() + ceil_div(first[e + 1] - first[e], each_));
    }
    return starts_.back();
  }

  void chunk(const Context& c, int64_t index, int) override {
    const ExpertsSpec& s = now_->s;
    const auto number =
        std::upper_bound(starts_.begin(), starts_.end(), index) - starts_.begin() - 1;
    const auto* first = now_->at<int32_t>(c, now_->places->first) +
                        now_->worked[static_cast<size_t>(number)];
    const int64_t begin = first[0] + (index - starts_[static_cast<size_t>(number)]) * each_;
    const int64_t end = std::min<int64_t>(begin + each_, first[1]);
    const auto bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn));
    for (int64_t p = begin; p < end; ++p) {
      c.matrix->narrow_row(
          now_->at<float>(c, now_->places->middle + p * s.middle_stride()), s.ffn,
          reinterpret_cast<uint16_t*>(now_->at<uint8_t>(c, now_->places->narrow) + p * bytes));
    }
  }

 private:
  std::shared_ptr<ExpertsStep> now_;
  int64_t each_ = 1;
  std::vector<int64_t> starts_;   // of each expert: its first chunk; and their number
};

// Gates and ups of experts as they come, downs of as many as are there without a gap.
class CachedTurns final : public ExpertTurns {
 public:
  explicit CachedTurns(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {
    taken_.reserve(static_cast<size_t>(now_->s.experts));
    here_.reserve(static_cast<size_t>(now_->s.experts));
  }

  void attach(std::shared_ptr<ExpertCache> cache, int layer) override {
    cache_ = std::move(cache);
    layer_ = layer;
  }

  void begin(const Context& c) override {
    finished_ = 0;
    now_->active.clear();
    if (now_->rows > 0) group_pairs(c, *now_);
    here_.assign(now_->active.size(), 0);
    const int32_t* const chosen =
        now_->rows > 0 ? now_->at<int32_t>(c, now_->places->chosen) : nullptr;
    cache_->begin(layer_, now_->active, chosen, now_->rows, now_->s.top_k);
  }

  bool next(const std::function<void()>& check) override {
    ExpertsStep& step = *now_;
    cache_->finished(finished_);
    if (finished_ == step.active.size()) {
      cache_->verify();
      cache_->look_ahead();
      return false;
    }
    taken_.clear();
    cache_->take(taken_, check);
    step.worked.clear();
    step.ready.clear();
    for (const int32_t place : taken_) {
      const int32_t expert = step.active[static_cast<size_t>(place)];
      auto& at = step.weights[static_cast<size_t>(expert)];
      size_t part = 0;
      at[kGate] = step.s.gate ? cache_->weight(place, part++) : nullptr;
      at[kUp] = cache_->weight(place, part++);
      at[kDown] = cache_->weight(place, part);
      step.worked.push_back(expert);
      here_[static_cast<size_t>(place)] = 1;
    }
    for (; finished_ < here_.size() && here_[finished_]; ++finished_) {
      step.ready.push_back(step.active[finished_]);
    }
    return true;
  }

  void end() override { cache_->end(); }

 private:
  std::shared_ptr<ExpertsStep> now_;
  std::shared_ptr<ExpertCache> cache_;
  int layer_ = -1;
  size_t finished_ = 0;
  std::vector<int32_t> taken_;
  std::vector<uint8_t> here_;
};

// Floats of scratch before what a product makes.
int64_t product_floats(int64_t k) { return ceil_div(matmul_scratch_floats(k), 16) * 16; }

}  // namespace

ActKind ExpertsSpec::down_act() const { return format_info(down.format)->act; }

int64_t ExpertsSpec::middle_stride() const {
  return down_act() == ActKind::q8 ? static_cast<int64_t>(act_row_bytes(ActKind::q8, ffn))
                                   : whole_lines(ffn * 4);
}

int64_t ExpertsSpec::gate_scratch() const { return product_floats(x.width); }

int64_t ExpertsSpec::down_scratch() const { return product_floats(ffn); }

int64_t ExpertsSpec::scratch_floats() const {
  const int64_t made = kRowBlock * kMostPanels * kPanel;
  const auto q8 = static_cast<int64_t>(act_row_bytes(ActKind::q8, x.width));
  const auto bf16 = static_cast<int64_t>(act_row_bytes(ActKind::bf16, x.width));
  const int64_t row = format_info(up.format)->act == ActKind::q8 ? q8 : whole_lines(x.width * 4) + bf16;
  const int64_t gating = gate_scratch() + 2 * made + kRowBlock * row / 4;
  return std::max({gating, down_scratch() + made, 2 * (logits.width + groups),
                   foresee_scratch(x.width, logits.width)});
}

int64_t ExpertsSpec::work_bytes(int64_t rows) const { return ExpertsPlaces(*this, rows).bytes; }

namespace {

ExpertsSpec outline(int64_t experts, int64_t width, int64_t ffn, int64_t top_k, int up, int down) {
  ExpertsSpec s{};
  s.x.width = width;
  s.logits.width = experts;
  s.experts = experts;
  s.ffn = ffn;
  s.top_k = top_k;
  s.groups = experts;   // at most
  s.up.format = static_cast<Format>(up);
  s.down.format = static_cast<Format>(down);
  return s;
}

}  // namespace

int64_t experts_work(int64_t experts, int64_t ffn, int64_t top_k, int down, int64_t rows) {
  return outline(experts, ffn, ffn, top_k, down, down).work_bytes(rows);
}

int64_t experts_scratch(int64_t experts, int64_t width, int64_t ffn, int up, int down) {
  return outline(experts, width, ffn, 1, up, down).scratch_floats();
}

ExpertNodes make_experts(ExpertsSpec spec) {
  const bool narrow = spec.down_act() == ActKind::bf16;
  const bool cached = !spec.up.weight;
  auto now = std::make_shared<ExpertsStep>(std::move(spec));
  ExpertNodes nodes;
  nodes.route = make_route(now);
  nodes.gate_up = std::make_unique<GateUpNode>(now);
  if (narrow) nodes.narrow = std::make_unique<NarrowMiddleNode>(now);
  nodes.down = std::make_unique<DownNode>(now);
  if (cached) nodes.turns = std::make_shared<CachedTurns>(now);
  return nodes;
}

}  // namespace strata
