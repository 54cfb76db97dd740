// Mixtures of experts: routing, the chosen experts' gates and ups, their downs with the weighted sum.
//
// A pair is a row and one expert that it chose. Pairs are numbered by expert, those of one expert by
// row, so that each expert's weights are read once a step, for all its rows at a time. An output is
// the sum over its row's experts in the order of their numbers: which rows share a step, and how the
// work is cut, changes no bit of it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/nodes.h"

namespace strata {
namespace {

constexpr int64_t kChunksPerThread = 8;
// Rows of one expert that pass over a chunk of its weights together.
constexpr int64_t kRowBlock = 64;
// Panels of a chunk: what comes out of them for kRowBlock rows stays in the second-level cache.
constexpr int64_t kMostPanels = 16;
// Rows that are routed by whoever opens the phase: sharing them out would take longer.
constexpr int64_t kFewRows = 2;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Where things lie in the workspace of a step of so many rows.
struct Places {
  Places(const ExpertsSpec& s, int64_t rows) {
    const int64_t pairs = rows * s.top_k;
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t place = at;
      at += lines(bytes);
      return place;
    };
    chosen = take(pairs * 4);
    weight = take(pairs * 4);
    order = take(pairs * 4);
    first = take((s.experts + 1) * 4);
    middle = take(pairs * s.middle_stride());
    narrow = take(s.down_act() == ActKind::bf16
                      ? pairs * static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn))
                      : 0);
    bytes = at;
  }
  int64_t chosen, weight;   // by row: its experts in rising order, and their weights
  int64_t order;            // of each pair: its place in `chosen`
  int64_t first;            // of each expert: its first pair; and the number of pairs
  int64_t middle, narrow;   // of each pair: what the down product reads
  int64_t bytes;
};

// What the nodes of one Op share.
struct Run {
  explicit Run(ExpertsSpec spec) : s(std::move(spec)) { active.reserve(static_cast<size_t>(s.experts)); }

  template <class T> T* at(const Context& c, int64_t place) const {
    return reinterpret_cast<T*>(c.arena->data() + s.work + place);
  }

  ExpertsSpec s;
  int64_t rows = 0;
  std::optional<Places> places;
  bool grouped = false;
  std::vector<int32_t> active;   // experts that some row chose
};

class RouteNode final : public Node {
 public:
  explicit RouteNode(std::shared_ptr<Run> run) : run_(std::move(run)) {}

  int64_t begin(const Context& c) override {
    Run& run = *run_;
    run.rows = c.rows(run.s.x);
    run.places.emplace(run.s, run.rows);
    run.grouped = false;
    if (run.rows > kFewRows) {
      each_ = std::max<int64_t>(1, run.rows / (kChunksPerThread * c.threads));
      return ceil_div(run.rows, each_);
    }
    for (int64_t r = 0; r < run.rows; ++r) route(c, r, 0);
    return 0;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const int64_t end = std::min((index + 1) * each_, run_->rows);
    for (int64_t r = index * each_; r < end; ++r) route(c, r, thread);
  }

 private:
  void route(const Context& c, int64_t row, int thread) const {
    const ExpertsSpec& s = run_->s;
    const float* logits = c.f32(s.logits, row);
    float* score = c.arena->scratch(thread);
    float* ranked = score + s.experts;
    scores(logits, s.experts, s.scoring, score);
    const float* by = s.select_logits ? logits : score;
    for (int64_t e = 0; e < s.experts; ++e) {
      ranked[e] = s.selection.empty() ? by[e] : by[e] + s.selection[static_cast<size_t>(e)];
    }
    if (s.groups > 1) drop_groups(ranked, ranked + s.experts);
    auto* chosen = run_->at<int32_t>(c, run_->places->chosen) + row * s.top_k;
    auto* weight = run_->at<float>(c, run_->places->weight) + row * s.top_k;
    for (int64_t k = 0; k < s.top_k; ++k) {
      const int64_t e = best(ranked, s.experts);
      chosen[k] = static_cast<int32_t>(e);
      ranked[e] = kTaken;
    }
    std::sort(chosen, chosen + s.top_k);
    for (int64_t k = 0; k < s.top_k; ++k) weight[k] = score[chosen[k]];
    if (s.softmax_chosen) scores(weight, s.top_k, Scoring::softmax, weight);
    const float factor = s.scale;
    if (s.renormalise) {
      double total = 0;
      for (int64_t k = 0; k < s.top_k; ++k) total += static_cast<double>(weight[k]);
      const float bound = std::max(static_cast<float>(total), s.least_sum);
      for (int64_t k = 0; k < s.top_k; ++k) weight[k] = weight[k] / bound;
    }
    for (int64_t k = 0; k < s.top_k; ++k) weight[k] *= factor;
    std::memset(c.f32(s.out, row), 0, static_cast<size_t>(s.out.width) * sizeof(float));
  }

  // Below every number that can be chosen; NaN counts as below those, and above what is taken.
  static constexpr float kTaken = -std::numeric_limits<float>::infinity();

  // The first of the largest that is not taken.
  static int64_t best(const float* x, int64_t n) {
    int64_t found = -1;
    for (int64_t i = 0; i < n; ++i) {
      if (x[i] == kTaken) continue;
      if (found < 0 || x[i] > x[found] || (std::isnan(x[found]) && !std::isnan(x[i]))) found = i;
    }
    return std::max<int64_t>(found, 0);
  }

  static void scores(const float* x, int64_t n, Scoring scoring, float* out) {
    switch (scoring) {
      case Scoring::none: std::copy(x, x + n, out); break;
      case Scoring::softmax: {
        const double top = static_cast<double>(*std::max_element(x, x + n));
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - top);
        for (int64_t i = 0; i < n; ++i) {
          out[i] = static_cast<float>(std::exp(static_cast<double>(x[i]) - top) / sum);
        }
        break;
      }
      case Scoring::sigmoid:
        for (int64_t i = 0; i < n; ++i) {
          out[i] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(x[i]))));
        }
        break;
      case Scoring::sqrt_softplus:
        for (int64_t i = 0; i < n; ++i) {
          const double v = static_cast<double>(x[i]);
          out[i] = static_cast<float>(
              std::sqrt(std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v)))));
        }
        break;
    }
  }

  void drop_groups(float* ranked, float* worth) const {
    const ExpertsSpec& s = run_->s;
    const int64_t each = s.experts / s.groups;
    float* const gone = worth + s.groups;
    std::fill(gone, gone + s.groups, 0.0f);
    for (int64_t g = 0; g < s.groups; ++g) {
      const float* x = ranked + g * each;
      const int64_t top = best(x, each);
      worth[g] = x[top];
      if (s.group_top2 && each > 1) {
        float second = kTaken;
        for (int64_t i = 0; i < each; ++i) {
          if (i != top) second = std::max(second, x[i]);
        }
        worth[g] += second;
      }
    }
    // The groups that are not among the best, one after the other: the last of the least goes.
    for (int64_t dropped = 0; dropped < s.groups - s.groups_kept; ++dropped) {
      int64_t least = -1;
      for (int64_t g = 0; g < s.groups; ++g) {
        if (gone[g] != 0) continue;
        if (least < 0 || !(worth[g] > worth[least])) least = g;
      }
      gone[least] = 1;
      std::fill(ranked + least * each, ranked + (least + 1) * each, kTaken);
    }
  }

  std::shared_ptr<Run> run_;
  int64_t each_ = 1;
};

// Numbers pairs by expert, once a step.
void group(const Context& c, Run& run) {
  if (run.grouped) return;
  const ExpertsSpec& s = run.s;
  const int64_t pairs = run.rows * s.top_k;
  const auto* chosen = run.at<int32_t>(c, run.places->chosen);
  auto* first = run.at<int32_t>(c, run.places->first);
  auto* order = run.at<int32_t>(c, run.places->order);
  std::fill(first, first + s.experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p) ++first[chosen[p] + 1];
  run.active.clear();
  for (int64_t e = 0; e < s.experts; ++e) {
    if (first[e + 1] > 0) run.active.push_back(static_cast<int32_t>(e));
    first[e + 1] += first[e];
  }
  for (int64_t p = 0; p < pairs; ++p) order[first[chosen[p]]++] = static_cast<int32_t>(p);
  for (int64_t e = s.experts; e > 0; --e) first[e] = first[e - 1];
  first[0] = 0;
  run.grouped = true;
}

// Panels [panel0, panel1) of one expert's matrix, as far as they are in memory.
struct Slice {
  int32_t expert;
  int64_t panel0, panel1;
};

// What both products have in common: which slices there are, and multiplying with one.
class ExpertProduct : public Node {
 protected:
  explicit ExpertProduct(std::shared_ptr<Run> run) : run_(std::move(run)) {}

  // The slices of all experts that some row chose, within the panels that `c` has.
  void find_slices(const Context& c, const WeightPtr& whole, int64_t panels_each) {
    slices_.clear();
    const PanelView all{0, 0, run_->s.experts * panels_each,
                        whole ? whole->bytes.data() : nullptr};
    const PanelView& view = whole ? all : (*c.tile)[0];
    for (const int32_t e : run_->active) {
      const int64_t begin = std::max(view.panel0, e * panels_each);
      const int64_t end = std::min(view.panel1, (e + 1) * panels_each);
      if (begin < end) slices_.push_back({e, begin - e * panels_each, end - e * panels_each});
    }
  }

  // out[r, columns of panel0 .. panel1) for rows r of acts, which lie one after the other.
  void multiply(const Context& c, const ExpertsPart& part, int view, int64_t n, int64_t k,
                const Slice& slice, int64_t panel0, int64_t panel1, const uint8_t* acts,
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
    const MatmulFn matmul = c.matrix->matmul(part.format);
    const int64_t base = slice.expert * panels(n);   // panels before this expert's
    if (part.weight) {
      const int64_t bytes = static_cast<int64_t>(packed_bytes(part.format, kPanel, k));
      a.weight = part.weight->bytes.data() + base * bytes;
      a.fetch_end = slice.panel1;
      matmul(a, 0, rows, panel0, panel1, scratch);
      return;
    }
    const PanelView& v = (*c.tile)[static_cast<size_t>(view)];
    const int64_t row_bytes = v.place->stored_row_bytes();
    const int64_t bytes = v.place->panel_bytes();
    auto* const packed = reinterpret_cast<uint8_t*>(scratch + matmul_scratch_floats(k));
    const int64_t step = packed_together(bytes);
    for (int64_t at = panel0; at < panel1; at += step) {
      const int64_t end = std::min(at + step, panel1);
      v.place->pack_panels(v.base + (base + at - v.panel0) * kPanel * row_bytes, base + at,
                           base + end, packed);
      a.weight = packed - at * bytes;
      a.fetch_end = end;
      matmul(a, 0, rows, at, end, scratch);
    }
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

  std::shared_ptr<Run> run_;
  std::vector<Slice> slices_;
};

class GateUpNode final : public ExpertProduct {
 public:
  explicit GateUpNode(std::shared_ptr<Run> run) : ExpertProduct(std::move(run)) {
    const ExpertsSpec& s = run_->s;
    slices_.reserve(static_cast<size_t>(s.experts));
    starts_.reserve(static_cast<size_t>(s.experts) + 1);
    act_ = format_info(s.up.format)->act;
    row_bytes_ = act_ == ActKind::q8 ? static_cast<int64_t>(act_row_bytes(ActKind::q8, s.x.width))
                                     : lines(s.x.width * 4);
  }

  int64_t begin(const Context& c) override {
    if (run_->rows == 0) return 0;
    group(c, *run_);
    const ExpertsSpec& s = run_->s;
    find_slices(c, s.up.weight, panels(s.ffn));
    int64_t units = 0;
    for (const Slice& slice : slices_) units += slice.panel1 - slice.panel0;
    grain_ = std::clamp<int64_t>(units / (kChunksPerThread * c.threads), 1, kMostPanels);
    grain_ = ceil_div(grain_, 2) * 2;   // a quantisation block is two panels wide
    starts_.assign(1, 0);
    for (const Slice& slice : slices_) {
      starts_.push_back(starts_.back() + ceil_div(slice.panel1 - slice.panel0, grain_));
    }
    return starts_.back();
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const ExpertsSpec& s = run_->s;
    const auto number =
        std::upper_bound(starts_.begin(), starts_.end(), index) - starts_.begin() - 1;
    const Slice& slice = slices_[static_cast<size_t>(number)];
    const int64_t p0 = slice.panel0 + (index - starts_[static_cast<size_t>(number)]) * grain_;
    const int64_t p1 = std::min(p0 + grain_, slice.panel1);
    const auto* first = run_->at<int32_t>(c, run_->places->first) + slice.expert;
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
        multiply(c, *s.gate, 0, s.ffn, s.x.width, slice, p0, p1, acts, row_bytes_, narrow, count,
                 gate, columns, scratch);
      }
      multiply(c, s.up, s.gate ? 1 : 0, s.ffn, s.x.width, slice, p0, p1, acts, row_bytes_, narrow,
               count, up, columns, scratch);
      for (int64_t i = 0; i < count; ++i) {
        activate(c, slice.expert, pair + i, p0 * kPanel, columns, gate + i * columns,
                 up + i * columns);
      }
    }
  }

 private:
  // The rows of x of some pairs, one after the other.
  void gather(const Context& c, int64_t pair, int64_t count, uint8_t* to, const uint8_t** acts,
              const uint8_t** narrow) const {
    const ExpertsSpec& s = run_->s;
    const auto* order = run_->at<int32_t>(c, run_->places->order);
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
    const ExpertsSpec& s = run_->s;
    const auto* order = run_->at<int32_t>(c, run_->places->order);
    const float factor =
        s.weigh_input ? run_->at<float>(c, run_->places->weight)[order[pair]] : 1.0f;
    finish(s.up, expert, s.ffn, factor, c0, n, up);
    if (s.gate) finish(*s.gate, expert, s.ffn, factor, c0, n, gate);
    const ActKind act = s.down_act();
    uint8_t* const middle = run_->at<uint8_t>(c, run_->places->middle) + pair * s.middle_stride();
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
                                middle);
    }
  }

  void clamped(const StepKernels& k, float* gate, float* up, int64_t n, float* out) const {
    constexpr float kAlpha = 1.702f;
    const ExpertsSpec& s = run_->s;
    const float most = s.limit;
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

  ActKind act_;
  int64_t row_bytes_, grain_ = 1;
  std::vector<int64_t> starts_;   // of each slice: its first chunk; and their number
};

// Chunks are ranges of columns, each through all experts, so that an output is added up in order.
class DownNode final : public ExpertProduct {
 public:
  explicit DownNode(std::shared_ptr<Run> run) : ExpertProduct(std::move(run)) {
    slices_.reserve(static_cast<size_t>(run_->s.experts));
  }

  int64_t begin(const Context& c) override {
    if (run_->rows == 0) return 0;
    const ExpertsSpec& s = run_->s;
    find_slices(c, s.down.weight, panels(s.out.width));
    if (slices_.empty()) return 0;
    first_ = panels(s.out.width);
    int64_t end = 0;
    for (const Slice& slice : slices_) {
      first_ = std::min(first_, slice.panel0);
      end = std::max(end, slice.panel1);
    }
    grain_ = std::clamp<int64_t>((end - first_) / (kChunksPerThread * c.threads), 1, kMostPanels);
    if (run_->rows > 1) grain_ = ceil_div(grain_, 2) * 2;   // many rows take two panels at a time
    return ceil_div(end - first_, grain_);
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const ExpertsSpec& s = run_->s;
    float* const scratch = c.arena->scratch(thread);
    float* const made = scratch + s.down_scratch();
    const auto* order = run_->at<int32_t>(c, run_->places->order);
    const auto* firsts = run_->at<int32_t>(c, run_->places->first);
    const auto* weight = run_->at<float>(c, run_->places->weight);
    const uint8_t* middle = run_->at<uint8_t>(c, run_->places->middle);
    const auto narrow_bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn));
    const bool twice = s.down_act() == ActKind::bf16 && c.matrix->narrow_row != nullptr;
    for (const Slice& slice : slices_) {
      const int64_t p0 = std::max(first_ + index * grain_, slice.panel0);
      const int64_t p1 = std::min(first_ + (index + 1) * grain_, slice.panel1);
      if (p0 >= p1) continue;
      const int64_t c0 = p0 * kPanel;
      const int64_t columns = std::min(p1 * kPanel, s.out.width) - c0;
      for (int64_t pair = firsts[slice.expert]; pair < firsts[slice.expert + 1];
           pair += kRowBlock) {
        const int64_t count = std::min<int64_t>(kRowBlock, firsts[slice.expert + 1] - pair);
        multiply(c, s.down, 0, s.out.width, s.ffn, slice, p0, p1,
                 middle + pair * s.middle_stride(), s.middle_stride(),
                 twice ? run_->at<uint8_t>(c, run_->places->narrow) + pair * narrow_bytes : nullptr,
                 count, made, columns, scratch);
        for (int64_t i = 0; i < count; ++i) {
          float* y = made + i * columns;
          finish(s.down, slice.expert, s.out.width, 1.0f, c0, columns, y);
          const float w = s.weigh_input ? 1.0f : weight[order[pair + i]];
          float* out = c.f32(s.out, order[pair + i] / s.top_k) + c0;
          for (int64_t j = 0; j < columns; ++j) out[j] += w * y[j];
        }
      }
    }
  }

 private:
  int64_t first_ = 0, grain_ = 1;
};

// The middle as bf16, where the down product reads it so.
class NarrowMiddleNode final : public Node {
 public:
  explicit NarrowMiddleNode(std::shared_ptr<Run> run) : run_(std::move(run)) {}

  int64_t begin(const Context& c) override {
    if (c.matrix->narrow_row == nullptr) return 0;
    const int64_t pairs = run_->rows * run_->s.top_k;
    each_ = std::max<int64_t>(1, pairs / (kChunksPerThread * c.threads));
    return ceil_div(pairs, each_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const ExpertsSpec& s = run_->s;
    const int64_t end = std::min((index + 1) * each_, run_->rows * s.top_k);
    const auto bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn));
    for (int64_t p = index * each_; p < end; ++p) {
      c.matrix->narrow_row(
          run_->at<float>(c, run_->places->middle + p * s.middle_stride()), s.ffn,
          reinterpret_cast<uint16_t*>(run_->at<uint8_t>(c, run_->places->narrow) + p * bytes));
    }
  }

 private:
  std::shared_ptr<Run> run_;
  int64_t each_ = 1;
};

int64_t packing_floats(Format format, int64_t k) {
  return (packing_bytes(static_cast<int64_t>(packed_bytes(format, kPanel, k))) + 3) / 4;
}

// Floats of scratch before what a product makes.
int64_t product_floats(Format format, int64_t k, bool streams) {
  return ceil_div(matmul_scratch_floats(k) + (streams ? packing_floats(format, k) : 0), 16) * 16;
}

}  // namespace

ActKind ExpertsSpec::down_act() const { return format_info(down.format)->act; }

int64_t ExpertsSpec::middle_stride() const {
  return down_act() == ActKind::q8 ? static_cast<int64_t>(act_row_bytes(ActKind::q8, ffn))
                                   : lines(ffn * 4);
}

int64_t ExpertsSpec::gate_scratch() const {
  const int64_t most = product_floats(up.format, x.width, !up.weight);
  return gate ? std::max(most, product_floats(gate->format, x.width, !gate->weight)) : most;
}

int64_t ExpertsSpec::down_scratch() const {
  return product_floats(down.format, ffn, !down.weight);
}

int64_t ExpertsSpec::scratch_floats() const {
  const int64_t made = kRowBlock * kMostPanels * kPanel;
  const auto q8 = static_cast<int64_t>(act_row_bytes(ActKind::q8, x.width));
  const auto bf16 = static_cast<int64_t>(act_row_bytes(ActKind::bf16, x.width));
  const int64_t row = format_info(up.format)->act == ActKind::q8 ? q8 : lines(x.width * 4) + bf16;
  const int64_t gating = gate_scratch() + 2 * made + kRowBlock * row / 4;
  return std::max({gating, down_scratch() + made, 2 * (experts + groups)});
}

int64_t ExpertsSpec::work_bytes(int64_t rows) const { return Places(*this, rows).bytes; }

namespace {

ExpertsSpec outline(int64_t experts, int64_t width, int64_t ffn, int64_t top_k, int up, int down) {
  ExpertsSpec s{};
  s.x.width = width;
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

int64_t experts_scratch(int64_t experts, int64_t width, int64_t ffn, int up, int down,
                        bool streams) {
  ExpertsSpec s = outline(experts, width, ffn, 1, up, down);
  if (streams) return s.scratch_floats();
  const auto none = std::make_shared<PackedWeight>(Format::F32, 1, 1);
  s.up.weight = s.down.weight = none;
  return s.scratch_floats();
}

ExpertNodes make_experts(ExpertsSpec spec) {
  const bool narrow = spec.down_act() == ActKind::bf16;
  auto run = std::make_shared<Run>(std::move(spec));
  ExpertNodes nodes;
  nodes.route = std::make_unique<RouteNode>(run);
  nodes.gate_up = std::make_unique<GateUpNode>(run);
  if (narrow) nodes.narrow = std::make_unique<NarrowMiddleNode>(run);
  nodes.down = std::make_unique<DownNode>(run);
  return nodes;
}

}  // namespace strata
