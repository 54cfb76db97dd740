// Which experts a row chooses, and with what weights.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/experts_step.h"

namespace strata {
namespace {

// Rows that are routed by whoever opens the phase: sharing them out would take longer.
constexpr int64_t kFewRows = 2;

// Below every number that can be chosen; NaN counts as below those, and above what is taken.
constexpr float kTaken = -std::numeric_limits<float>::infinity();

// The first of the largest that is not taken.
int64_t best(const float* x, int64_t n) {
  int64_t found = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == kTaken) continue;
    if (found < 0 || x[i] > x[found] || (std::isnan(x[found]) && !std::isnan(x[i]))) found = i;
  }
  return std::max<int64_t>(found, 0);
}

// A softmax over what is left and near its largest, x[top]: the weight of that.
float among_near(const float* x, int64_t n, int64_t top, float jitter) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == kTaken || (x[top] - x[i]) / std::max(std::abs(x[i]), x[top]) > jitter) continue;
    sum += std::exp(static_cast<double>(x[i]) - static_cast<double>(x[top]));
  }
  return static_cast<float>(1 / sum);
}

void scores(const float* x, int64_t n, Scoring scoring, float* out) {
  switch (scoring) {
    case Scoring::sparsemixer:
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

void drop_groups(const ExpertsSpec& s, float* ranked, float* worth) {
  const int64_t each = s.logits.width / s.groups;
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

}  // namespace

void choose_experts(const ExpertsSpec& s, const float* logits, float* score, int32_t* chosen) {
  const int64_t count = s.logits.width;
  float* ranked = score + count;
  scores(logits, count, s.scoring, score);
  const float* by = s.select_logits ? logits : score;
  for (int64_t e = 0; e < count; ++e) {
    ranked[e] = s.selection.empty() ? by[e] : by[e] + s.selection[static_cast<size_t>(e)];
  }
  if (s.groups > 1) drop_groups(s, ranked, ranked + count);
  for (int64_t k = 0; k < s.top_k; ++k) {
    const int64_t e = best(ranked, count);
    if (s.scoring == Scoring::sparsemixer) score[e] = among_near(ranked, count, e, s.jitter);
    chosen[k] = static_cast<int32_t>(e / s.shared_by);
    ranked[e] = kTaken;
  }
  std::sort(chosen, chosen + s.top_k);
}

namespace {

class RouteNode final : public Node {
 public:
  explicit RouteNode(std::shared_ptr<ExpertsStep> now) : now_(std::move(now)) {}

  int64_t begin(const Context& c) override {
    ExpertsStep& now = *now_;
    now.rows = c.rows(now.s.x);
    now.places.emplace(now.s, now.rows);
    now.grouped = false;
    if (now.rows > kFewRows) {
      each_ = std::max<int64_t>(1, now.rows / (kExpertChunks * c.threads));
      return ceil_div(now.rows, each_);
    }
    for (int64_t r = 0; r < now.rows; ++r) route(c, r, 0);
    return 0;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const int64_t end = std::min((index + 1) * each_, now_->rows);
    for (int64_t r = index * each_; r < end; ++r) route(c, r, thread);
  }

 private:
  void route(const Context& c, int64_t row, int thread) const {
    const ExpertsSpec& s = now_->s;
    float* score = c.arena->scratch(thread);
    auto* chosen = now_->at<int32_t>(c, now_->places->chosen) + row * s.top_k;
    auto* weight = now_->at<float>(c, now_->places->weight) + row * s.top_k;
    choose_experts(s, c.f32(s.logits, row), score, chosen);
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

  std::shared_ptr<ExpertsStep> now_;
  int64_t each_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_route(std::shared_ptr<ExpertsStep> now) {
  return std::make_unique<RouteNode>(std::move(now));
}

void group_pairs(const Context& c, ExpertsStep& now) {
  if (now.grouped) return;
  const ExpertsSpec& s = now.s;
  const int64_t pairs = now.rows * s.top_k;
  const auto* chosen = now.at<int32_t>(c, now.places->chosen);
  auto* first = now.at<int32_t>(c, now.places->first);
  auto* order = now.at<int32_t>(c, now.places->order);
  std::fill(first, first + s.experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p) ++first[chosen[p] + 1];
  now.active.clear();
  for (int64_t e = 0; e < s.experts; ++e) {
    if (first[e + 1] > 0) now.active.push_back(static_cast<int32_t>(e));
    first[e + 1] += first[e];
  }
  for (int64_t p = 0; p < pairs; ++p) order[first[chosen[p]]++] = static_cast<int32_t>(p);
  for (int64_t e = s.experts; e > 0; --e) first[e] = first[e - 1];
  first[0] = 0;
  now.grouped = true;
  if (now.weights.empty()) now.worked = now.ready = now.active;
}

}  // namespace strata
