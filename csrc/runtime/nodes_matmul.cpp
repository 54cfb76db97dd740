#include <algorithm>

#include "runtime/nodes.h"

namespace strata {
namespace {

// Chunks a thread: small enough to share out when a neighbour takes a core, large enough that a
// claim (some hundred nanoseconds) is lost in it.
constexpr int64_t kChunksPerThread = 8;
// Rows that pass over the weights together: each pass reads them from memory again.
constexpr int64_t kRowBlock = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class MatmulNode final : public Node {
 public:
  explicit MatmulNode(MatmulSpec spec) : s_(std::move(spec)) {
    for (size_t i = 0; i < s_.parts.size(); ++i) {
      const MatmulPart& p = s_.parts[i];
      if (p.weight) {
        whole_.push_back({static_cast<int>(i), 0, panels(p.n), p.weight->bytes.data()});
      }
    }
    kind_ = format_info(s_.parts[0].format)->act;
    act_stride_ = kind_ == ActKind::q8
                      ? Context::q8_bytes(s_.x)
                      : s_.x.width * static_cast<int64_t>(sizeof(float));
    rest_ = kind_ == ActKind::q8 && s_.x.planes == 2;
  }

  int64_t begin(const Context& c) override {
    rows_ = c.rows(s_.x);
    if (rows_ == 0) return 0;
    views_ = whole_.empty() ? c.tile : &whole_;
    row_block_ = ceil_div(rows_, ceil_div(rows_, kRowBlock));
    // What has to be packed first is packed once for all rows.
    chunk_rows_ = whole_.empty() ? rows_ : row_block_;
    row_blocks_ = ceil_div(rows_, chunk_rows_);
    int64_t units = 0;
    for (const PanelView& v : *views_) {
      units += v.panel1 - v.panel0;
      if (s_.glu) break;
    }
    grain_ = std::max<int64_t>(1, units * row_blocks_ / (kChunksPerThread * c.threads));
    grain_ = std::min(grain_, units);
    // A quantisation block is two panels wide, and many rows take two panels at a time.
    if (s_.glu || rows_ << rest_ > 1) grain_ = ceil_div(grain_, 2) * 2;
    per_block_ = 0;
    for (const PanelView& v : *views_) {
      per_block_ += ceil_div(v.panel1 - v.panel0, grain_);
      if (s_.glu) break;
    }
    return per_block_ * row_blocks_;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const int64_t row0 = index / per_block_ * chunk_rows_;
    const int64_t row1 = std::min(row0 + chunk_rows_, rows_);
    int64_t unit = index % per_block_;
    float* scratch = c.arena->scratch(thread);
    for (const PanelView& v : *views_) {
      const int64_t units = ceil_div(v.panel1 - v.panel0, grain_);
      if (unit >= units) {
        unit -= units;
        continue;
      }
      const int64_t p0 = v.panel0 + unit * grain_;
      const int64_t p1 = std::min(p0 + grain_, v.panel1);
      multiply(c, v, row0, row1, p0, p1, scratch);
      if (s_.glu) {
        multiply(c, (*views_)[1], row0, row1, p0, p1, scratch);
        const int64_t c0 = p0 * kPanel;
        const int64_t c1 = std::min(p1 * kPanel, s_.parts[0].n);
        for (int64_t r = row0; r < row1; ++r) apply_row(c, *s_.glu, r, c0, c1, scratch);
      }
      return;
    }
  }

 private:
  void multiply(const Context& c, const PanelView& v, int64_t row0, int64_t row1, int64_t panel0,
                int64_t panel1, float* scratch) const {
    const MatmulPart& p = s_.parts[static_cast<size_t>(v.part)];
    MatmulArgs a{};
    a.n = p.n;
    a.k = s_.x.width / s_.groups;
    a.acts = kind_ == ActKind::q8 ? c.q8(s_.x, 0)
                                  : reinterpret_cast<const uint8_t*>(c.f32(s_.x, 0));
    a.act_stride = act_stride_;
    a.rest = rest_;
    a.out = c.f32(p.out, 0);
    a.out_stride = p.out.width;
    a.bias = p.bias.empty() ? nullptr : p.bias.data();
    a.residual = p.residual ? c.f32(*p.residual, 0) : nullptr;
    a.residual_stride = p.residual ? p.residual->width : 0;
    if (s_.narrow != Value::kNone && c.matrix->narrow_row != nullptr) {
      a.narrow = c.narrow(s_.narrow, s_.x, 0);
      a.narrow_stride = static_cast<int64_t>(act_row_bytes(ActKind::bf16, s_.x.width));
    }
    const MatmulFn matmul = c.matrix->matmul(p.format);
    const auto rows = [&](const MatmulArgs& args, int64_t p0, int64_t p1) {
      for (int64_t r = row0; r < row1; r += row_block_) {
        matmul(args, r << rest_, std::min(r + row_block_, row1) << rest_, p0, p1, scratch);
      }
    };
    const auto product = [&](int64_t p0, int64_t p1) {
      if (s_.groups == 1) {
        rows(a, p0, p1);
        return;
      }
      const int64_t each = p.n / kPanel / s_.groups;
      for (int64_t at = p0; at < p1;) {
        const int64_t group = at / each;
        const int64_t end = std::min((group + 1) * each, p1);
        MatmulArgs part = a;
        part.acts += group * (kind_ == ActKind::q8 ? a.k / kActBlock * sizeof(ActBlock)
                                                   : static_cast<size_t>(a.k) * sizeof(float));
        if (part.narrow != nullptr) part.narrow += group * a.k * sizeof(uint16_t);
        rows(part, at, end);
        at = end;
      }
    };
    if (v.place == nullptr) {
      a.weight = v.base;
      // A thread goes on with the chunk that follows: reading ahead does not end with this one.
      a.fetch_end = v.panel1;
      product(panel0, panel1);
      return;
    }
    // Packed into a cache, not into the ring buffer: what came from the disk is read from memory once.
    uint8_t* const packed = reinterpret_cast<uint8_t*>(scratch + matmul_scratch_floats(a.k));
    const int64_t row_bytes = v.place->stored_row_bytes();
    const int64_t step = packed_together(v.place->panel_bytes());
    for (int64_t at = panel0; at < panel1; at += step) {
      const int64_t end = std::min(at + step, panel1);
      v.place->pack_panels(v.base + (at - v.panel0) * kPanel * row_bytes, at, end, packed);
      a.weight = packed - at * v.place->panel_bytes();
      a.fetch_end = end;
      product(at, end);
    }
  }

  MatmulSpec s_;
  ActKind kind_;
  int64_t act_stride_, rest_;
  std::vector<PanelView> whole_;                // of resident weights
  const std::vector<PanelView>* views_ = nullptr;
  int64_t rows_ = 0, row_block_ = 1, chunk_rows_ = 1, row_blocks_ = 1, grain_ = 1, per_block_ = 1;
};

class NarrowNode final : public Node {
 public:
  NarrowNode(Value x, int64_t place) : x_(x), place_(place) {}

  int64_t begin(const Context& c) override {
    if (c.matrix->narrow_row == nullptr) return 0;
    rows_ = std::max<int64_t>(1, c.rows(x_) / (kChunksPerThread * c.threads));
    return ceil_div(c.rows(x_), rows_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(x_));
    for (int64_t r = index * rows_; r < end; ++r) {
      c.matrix->narrow_row(c.f32(x_, r), x_.width,
                           reinterpret_cast<uint16_t*>(c.narrow(place_, x_, r)));
    }
  }

 private:
  Value x_;
  int64_t place_;
  int64_t rows_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_narrow(Value x, int64_t narrow) {
  return std::make_unique<NarrowNode>(x, narrow);
}

std::unique_ptr<Node> make_matmul(MatmulSpec spec) {
  return std::make_unique<MatmulNode>(std::move(spec));
}

}  // namespace strata
