// The products of a mixture of experts: the chosen ones' gates and ups, and their downs with the
// weighted sum.
#include <algorithm>
#include <cstring>

#include "runtime/experts_step.h"

namespace strata {
namespace {

// Rows of one expert that pass over a chunk of its weights together.
constexpr int64_t kRowBlock = 64;
// Panels of a chunk: what comes out of them for kRowBlock rows stays in the second-level cache.
constexpr int64_t kMostPanels = 16;

// Panels [panel0, panel1) of one expert's matrix, as far as they are in memory.
struct Slice {
  int32_t expert;
  int64_t panel0, panel1;
};

// What both products have in common: which slices there are, and multiplying with one.
class ExpertProduct : public Node {
 protected:
  explicit ExpertProduct(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {}

  // The slices of all experts that some row chose, within the panels that `c` has.
  void find_slices(const Context& c, const WeightPtr& whole, int64_t panels_each) {
    slices_.clear();
    const PanelView all{0, 0, now_->s.experts * panels_each,
                        whole ? whole->bytes.data() : nullptr};
    const PanelView& view = whole ? all : (*c.tile)[0];
    for (const int32_t e : now_->active) {
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

  std::shared_ptr<ExpertsStep> now_;
  std::vector<Slice> slices_;
};

class GateUpNode final : public ExpertProduct {
 public:
  explicit GateUpNode(std::shared_ptr<ExpertsStep> now) : ExpertProduct(std::move(now)) {
    const ExpertsSpec& s = now_->s;
    slices_.reserve(static_cast<size_t>(s.experts));
    starts_.reserve(static_cast<size_t>(s.experts) + 1);
    act_ = format_info(s.up.format)->act;
    row_bytes_ = act_ == ActKind::q8 ? static_cast<int64_t>(act_row_bytes(ActKind::q8, s.x.width))
                                     : whole_lines(s.x.width * 4);
  }

  int64_t begin(const Context& c) override {
    if (now_->rows == 0) return 0;
    group_pairs(c, *now_);
    const ExpertsSpec& s = now_->s;
    find_slices(c, s.up.weight, panels(s.ffn));
    int64_t units = 0;
    for (const Slice& slice : slices_) units += slice.panel1 - slice.panel0;
    grain_ = std::clamp<int64_t>(units / (kExpertChunks * c.threads), 1, kMostPanels);
    grain_ = ceil_div(grain_, 2) * 2;   // a quantisation block is two panels wide
    starts_.assign(1, 0);
    for (const Slice& slice : slices_) {
      starts_.push_back(starts_.back() + ceil_div(slice.panel1 - slice.panel0, grain_));
    }
    return starts_.back();
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const ExpertsSpec& s = now_->s;
    const auto number =
        std::upper_bound(starts_.begin(), starts_.end(), index) - starts_.begin() - 1;
    const Slice& slice = slices_[static_cast<size_t>(number)];
    const int64_t p0 = slice.panel0 + (index - starts_[static_cast<size_t>(number)]) * grain_;
    const int64_t p1 = std::min(p0 + grain_, slice.panel1);
    const auto* first = now_->at<int32_t>(c, now_->places->first) + slice.expert;
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
                                middle);
    }
  }

  void clamped(const StepKernels& k, float* gate, float* up, int64_t n, float* out) const {
    constexpr float kAlpha = 1.702f;
    const ExpertsSpec& s = now_->s;
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
  explicit DownNode(std::shared_ptr<ExpertsStep> now) : ExpertProduct(std::move(now)) {
    slices_.reserve(static_cast<size_t>(now_->s.experts));
  }

  int64_t begin(const Context& c) override {
    if (now_->rows == 0) return 0;
    const ExpertsSpec& s = now_->s;
    find_slices(c, s.down.weight, panels(s.out.width));
    if (slices_.empty()) return 0;
    first_ = panels(s.out.width);
    int64_t end = 0;
    for (const Slice& slice : slices_) {
      first_ = std::min(first_, slice.panel0);
      end = std::max(end, slice.panel1);
    }
    grain_ = std::clamp<int64_t>((end - first_) / (kExpertChunks * c.threads), 1, kMostPanels);
    if (now_->rows > 1) grain_ = ceil_div(grain_, 2) * 2;   // many rows take two panels at a time
    return ceil_div(end - first_, grain_);
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
                 twice ? now_->at<uint8_t>(c, now_->places->narrow) + pair * narrow_bytes : nullptr,
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
  explicit NarrowMiddleNode(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {}

  int64_t begin(const Context& c) override {
    if (c.matrix->narrow_row == nullptr) return 0;
    const int64_t pairs = now_->rows * now_->s.top_k;
    each_ = std::max<int64_t>(1, pairs / (kExpertChunks * c.threads));
    return ceil_div(pairs, each_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const ExpertsSpec& s = now_->s;
    const int64_t end = std::min((index + 1) * each_, now_->rows * s.top_k);
    const auto bytes = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn));
    for (int64_t p = index * each_; p < end; ++p) {
      c.matrix->narrow_row(
          now_->at<float>(c, now_->places->middle + p * s.middle_stride()), s.ffn,
          reinterpret_cast<uint16_t*>(now_->at<uint8_t>(c, now_->places->narrow) + p * bytes));
    }
  }

 private:
  std::shared_ptr<ExpertsStep> now_;
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
                                   : whole_lines(ffn * 4);
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
  const int64_t row = format_info(up.format)->act == ActKind::q8 ? q8 : whole_lines(x.width * 4) + bf16;
  const int64_t gating = gate_scratch() + 2 * made + kRowBlock * row / 4;
  return std::max({gating, down_scratch() + made, 2 * (logits.width + groups)});
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
  auto now = std::make_shared<ExpertsStep>(std::move(spec));
  ExpertNodes nodes;
  nodes.route = make_route(now);
  nodes.gate_up = std::make_unique<GateUpNode>(now);
  if (narrow) nodes.narrow = std::make_unique<NarrowMiddleNode>(now);
  nodes.down = std::make_unique<DownNode>(now);
  return nodes;
}

}  // namespace strata
