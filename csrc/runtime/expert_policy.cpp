#include "runtime/expert_policy.h"

#include <algorithm>
#include <utility>

namespace strata {
namespace {

// What is worth less is worth nothing: numbers so small are slow.
constexpr double kNothing = 1e-100;

double faded(double worth, double by) {
  worth *= by;
  return worth < kNothing ? 0 : worth;
}

}  // namespace

DecayingFrequency::DecayingFrequency(std::vector<int32_t> layer_of, double decay)
    : layer_of_(std::move(layer_of)),
      decay_(decay),
      layers_(layer_of_.empty() ? 0 : layer_of_.back() + 1),
      scores_(layer_of_.size(), 0.0),
      rows_(static_cast<size_t>(layers_), 0.0) {
  for (int32_t layer = 0; layer <= layers_; ++layer) {
    const auto at = std::lower_bound(layer_of_.begin(), layer_of_.end(), layer);
    first_.push_back(static_cast<size_t>(at - layer_of_.begin()));
  }
}

void DecayingFrequency::visit(int layer, int64_t rows) {
  layer_ = layer;
  if (rows == 0) return;
  // Multiplied one after the other, as Python does.
  double fade = 1, worth = 0;
  for (int64_t row = 0; row < rows; ++row) {
    worth += fade;
    fade *= decay_;
  }
  worth_ = worth / static_cast<double>(rows);
  const auto at = static_cast<size_t>(layer);
  for (size_t e = first_[at]; e < first_[at + 1]; ++e) scores_[e] = faded(scores_[e], fade);
  rows_[at] = faded(rows_[at], fade);
  rows_[at] += worth_ * static_cast<double>(rows);
}

void DecayingFrequency::use(int64_t expert, int64_t choices) {
  scores_[static_cast<size_t>(expert)] += worth_ * static_cast<double>(choices);
}

// Worth of rows is the same everywhere, so that shares of layers can be compared.
void DecayingFrequency::begin_with(const std::vector<double>& scores) {
  scores_ = scores;
  const auto most = std::max_element(scores_.begin(), scores_.end());
  std::fill(rows_.begin(), rows_.end(), most == scores_.end() ? 0 : *most);
}

double DecayingFrequency::share(size_t expert) const {
  const double rows = rows_[static_cast<size_t>(layer_of_[expert])];
  return rows > 0 ? scores_[expert] / rows : 0;
}

size_t DecayingFrequency::choose(const std::vector<int64_t>& experts) const {
  size_t found = 0;
  double least = 0;
  int32_t farthest = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto e = static_cast<size_t>(experts[i]);
    const int32_t ahead = layer_of_[e] - layer_;
    const int32_t away = ahead > 0 ? ahead : ahead + layers_;
    const double score = share(e);
    const bool less = score < least || (score == least && away > farthest);
    if (i > 0 && !less && (score != least || away != farthest || experts[i] > experts[found])) {
      continue;
    }
    found = i;
    least = score;
    farthest = away;
  }
  return found;
}

}  // namespace strata
