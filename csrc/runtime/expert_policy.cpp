#include "runtime/expert_policy.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace strata {
namespace {

// What is worth less is worth nothing: numbers so small are slow.
constexpr double kNothing = 1e-100;

// So sure has a need to be, and so much of what was read has to have been needed; what a visit told
// counts so much less after the next one; and where it was less, one visit in so many tries again.
constexpr double kSure = 0.9, kWorth = 0.8, kRemembered = 0.995;
constexpr int64_t kTriedAgain = 17;

double faded(double worth, double by) {
  worth *= by;
  return worth < kNothing ? 0 : worth;
}

}  // namespace

void SureNext::came(int64_t asked, int64_t right) {
  asked_ = asked_ * kRemembered + static_cast<double>(asked);
  right_ = right_ * kRemembered + static_cast<double>(right);
}

bool SureNext::ask(int64_t experts, int64_t top_k, int64_t rows) {
  const double others = 1 - static_cast<double>(top_k) / static_cast<double>(experts);
  if (1 - std::pow(others, static_cast<double>(rows)) < kSure) return false;
  if (right_ < kWorth * asked_ && ++passed_ < kTriedAgain) return false;
  passed_ = 0;
  return true;
}

DecayingShares::DecayingShares(const std::vector<int32_t>& layer_of)
    : layer_of_(layer_of),
      scores_(layer_of.size(), 0.0),
      rows_(layer_of.empty() ? 0 : static_cast<size_t>(layer_of.back()) + 1, 0.0) {
  for (int32_t layer = 0; layer <= static_cast<int32_t>(rows_.size()); ++layer) {
    const auto at = std::lower_bound(layer_of.begin(), layer_of.end(), layer);
    first_.push_back(static_cast<size_t>(at - layer_of.begin()));
  }
}

void DecayingShares::visit(int layer, int64_t rows, double decay) {
  if (rows == 0) return;
  // Multiplied one after the other, as Python does.
  double fade = 1, worth = 0;
  for (int64_t row = 0; row < rows; ++row) {
    worth += fade;
    fade *= decay;
  }
  worth_ = worth / static_cast<double>(rows);
  const auto at = static_cast<size_t>(layer);
  for (size_t e = first_[at]; e < first_[at + 1]; ++e) scores_[e] = faded(scores_[e], fade);
  rows_[at] = faded(rows_[at], fade) + worth_ * static_cast<double>(rows);
}

void DecayingShares::use(int64_t expert, int64_t choices) {
  scores_[static_cast<size_t>(expert)] += worth_ * static_cast<double>(choices);
}

double DecayingShares::share(int64_t expert) const {
  const auto e = static_cast<size_t>(expert);
  const double rows = rows_[static_cast<size_t>(layer_of_[e])];
  return rows > 0 ? scores_[e] / rows : 0;
}

// Worth of rows is the same everywhere, so that shares of layers can be compared.
void DecayingShares::begin_with(const std::vector<double>& scores) {
  scores_ = scores;
  const auto most = std::max_element(scores_.begin(), scores_.end());
  std::fill(rows_.begin(), rows_.end(), most == scores_.end() ? 0 : *most);
}

DecayingFrequency::DecayingFrequency(std::vector<int32_t> layer_of, double decay)
    : layer_of_(std::move(layer_of)),
      layers_(layer_of_.empty() ? 0 : layer_of_.back() + 1),
      decay_(decay),
      slow_(layer_of_),
      fast_(layer_of_) {}

void DecayingFrequency::visit(int layer, int64_t rows) {
  layer_ = layer;
  slow_.visit(layer, rows, decay_);
  fast_.visit(layer, rows, kFast);
}

void DecayingFrequency::use(int64_t expert, int64_t choices) {
  slow_.use(expert, choices);
  fast_.use(expert, choices);
}

void DecayingFrequency::begin_with(const std::vector<double>& scores) {
  slow_.begin_with(scores);
  fast_.begin_with(scores);
}

size_t DecayingFrequency::choose(const std::vector<int64_t>& experts) const {
  size_t found = 0;
  double least = 0;
  int32_t farthest = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto e = static_cast<size_t>(experts[i]);
    const int32_t ahead = layer_of_[e] - layer_;
    const int32_t away = ahead > 0 ? ahead : ahead + layers_;
    const double score = (1 - kRecent) * slow_.share(experts[i]) + kRecent * fast_.share(experts[i]);
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
