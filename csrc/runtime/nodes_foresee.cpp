// Which experts a layer will probably choose, from what goes into it: its own norm and router, before
// its attention. What comes of it is read ahead, and no bit of a result depends on it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/experts_step.h"

namespace strata {
namespace {

int64_t whole_floats(int64_t bytes) { return whole_lines(bytes) / 4; }

// Where things lie in the scratch of the first thread, behind what products take there.
struct Places {
  Places(int64_t width, int64_t logits) {
    int64_t at = ceil_div(matmul_scratch_floats(width), 16) * 16;
    const auto take = [&](int64_t floats) {
      const int64_t place = at;
      at += floats;
      return place;
    };
    x = take(Foresight::kMostRows * whole_floats(width * 4));
    row_bytes = std::max(whole_lines(static_cast<int64_t>(act_row_bytes(ActKind::q8, width))),
                         whole_lines(static_cast<int64_t>(act_row_bytes(ActKind::bf16, width))));
    other = take(Foresight::kMostRows * row_bytes / 4);
    out = take(Foresight::kMostRows * whole_floats(logits * 4));
    score = take(whole_floats(4 * logits * 4));
    floats = at;
  }
  int64_t x, other, out, score;   // rows, the same as int8 or bf16, their logits; for choosing
  int64_t row_bytes;              // of `other`
  int64_t floats;
};

// The router's logits of some rows of what goes into the layer.
class ForeseeNode final : public Node {
 public:
  explicit ForeseeNode(std::shared_ptr<Foresight> f)
      : f_(std::move(f)), act_(format_info(f_->router->format)->act) {}

  int64_t begin(const Context& c) override {
    f_->rows = 0;
    const int64_t rows = c.rows(f_->x);
    if (rows == 0 || f_->cache == nullptr || !f_->cache->foresees()) return 0;
    f_->rows = std::min(rows, Foresight::kMostRows);
    const Places places(f_->x.width, f_->router->n);
    float* const scratch = c.arena->scratch(0);
    for (int64_t i = 0; i < f_->rows; ++i) {
      float* const row = scratch + places.x + i * whole_floats(f_->x.width * 4);
      normalise(c.f32(f_->x, i * rows / f_->rows), row);
      uint8_t* const other =
          reinterpret_cast<uint8_t*>(scratch + places.other) + i * places.row_bytes;
      if (act_ == ActKind::q8) {
        c.matrix->quantize_blocks(row, f_->x.width, 0, ceil_div(f_->x.width, kActBlock), other,
                                  nullptr);
      } else if (act_ == ActKind::bf16 && c.matrix->narrow_row != nullptr) {
        c.matrix->narrow_row(row, f_->x.width, reinterpret_cast<uint16_t*>(other));
      }
    }
    const int64_t all = panels(f_->router->n);
    grain_ = std::max<int64_t>(1, all / (2 * c.threads));
    if (f_->rows > 1) grain_ = ceil_div(grain_, 2) * 2;
    return ceil_div(all, grain_);
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const Places places(f_->x.width, f_->router->n);
    float* const scratch = c.arena->scratch(0);
    const auto* other = reinterpret_cast<const uint8_t*>(scratch + places.other);
    MatmulArgs a{};
    a.n = f_->router->n;
    a.k = f_->x.width;
    a.weight = f_->router->bytes.data();
    a.acts = act_ == ActKind::q8 ? other : reinterpret_cast<const uint8_t*>(scratch + places.x);
    a.act_stride = act_ == ActKind::q8 ? places.row_bytes : whole_lines(f_->x.width * 4);
    if (act_ == ActKind::bf16 && c.matrix->narrow_row != nullptr) {
      a.narrow = other;
      a.narrow_stride = places.row_bytes;
    }
    a.out = scratch + places.out;
    a.out_stride = whole_floats(a.n * 4);
    a.bias = f_->bias.empty() ? nullptr : f_->bias.data();
    a.fetch_end = panels(a.n);
    const int64_t p0 = index * grain_;
    c.matrix->matmul(f_->router->format)(a, 0, f_->rows, p0, std::min(p0 + grain_, panels(a.n)),
                                         c.arena->scratch(thread));
  }

 private:
  void normalise(const float* x, float* to) const {
    const auto n = static_cast<size_t>(f_->x.width);
    if (f_->norm == Foresight::Norm::none) {
      std::copy(x, x + n, to);
      return;
    }
    double mean = 0, square = 0;
    if (f_->norm == Foresight::Norm::layer) {
      for (size_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]);
      mean /= static_cast<double>(n);
    }
    for (size_t i = 0; i < n; ++i) {
      const double d = static_cast<double>(x[i]) - mean;
      square += d * d;
    }
    const double scale = 1 / std::sqrt(square / static_cast<double>(n) + f_->epsilon);
    for (size_t i = 0; i < n; ++i) {
      const double y = (static_cast<double>(x[i]) - mean) * scale;
      to[i] = static_cast<float>(y) * (f_->weight.empty() ? 1.0f : f_->weight[i]) +
              (f_->shift.empty() ? 0.0f : f_->shift[i]);
    }
  }

  std::shared_ptr<Foresight> f_;
  const ActKind act_;
  int64_t grain_ = 1;
};

// Has those read that most rows would choose.
class AskNode final : public Node {
 public:
  explicit AskNode(std::shared_ptr<Foresight> f) : f_(std::move(f)) {}

  int64_t begin(const Context& c) override {
    if (f_->rows == 0) return 0;
    const ExpertsSpec& s = *f_->choice;
    const Places places(f_->x.width, f_->router->n);
    float* const scratch = c.arena->scratch(0);
    votes_.assign(static_cast<size_t>(s.experts), 0);
    chosen_.resize(static_cast<size_t>(s.top_k));
    for (int64_t i = 0; i < f_->rows; ++i) {
      const float* logits = scratch + places.out + i * whole_floats(f_->router->n * 4);
      choose_experts(s, logits, scratch + places.score, chosen_.data());
      for (const int32_t e : chosen_) ++votes_[static_cast<size_t>(e)];
    }
    likely_.clear();
    for (int64_t e = 0; e < s.experts; ++e) {
      if (votes_[static_cast<size_t>(e)] > 0) likely_.push_back(static_cast<int32_t>(e));
    }
    std::stable_sort(likely_.begin(), likely_.end(), [&](int32_t a, int32_t b) {
      return votes_[static_cast<size_t>(a)] > votes_[static_cast<size_t>(b)];
    });
    f_->cache->foresee(f_->layer, likely_);
    return 0;
  }
  void chunk(const Context&, int64_t, int) override {}

 private:
  std::shared_ptr<Foresight> f_;
  std::vector<int32_t> votes_, chosen_, likely_;
};

}  // namespace

int64_t foresee_scratch(int64_t width, int64_t logits) { return Places(width, logits).floats; }

std::unique_ptr<Node> make_foresee(std::shared_ptr<Foresight> f) {
  return std::make_unique<ForeseeNode>(std::move(f));
}

std::unique_ptr<Node> make_ask(std::shared_ptr<Foresight> f) {
  return std::make_unique<AskNode>(std::move(f));
}

}  // namespace strata
