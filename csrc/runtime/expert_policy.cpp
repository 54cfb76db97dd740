#include "runtime/expert_policy.h"

#include <utility>

namespace strata {
namespace {

constexpr double kMostGain = 1e100;

}  // namespace

DecayingFrequency::DecayingFrequency(std::vector<int32_t> layer_of, double decay)
    : layer_of_(std::move(layer_of)),
      decay_(decay),
      layers_(layer_of_.empty() ? 0 : layer_of_.back() + 1),
      scores_(layer_of_.size(), 0.0) {
  used_.reserve(layer_of_.size());
}

void DecayingFrequency::visit(int layer) {
  if (layer <= layer_) {
    for (const int64_t e : used_) scores_[static_cast<size_t>(e)] += gain_;
    used_.clear();
    gain_ /= decay_;
    if (gain_ > kMostGain) {
      for (double& score : scores_) score /= kMostGain;
      gain_ /= kMostGain;
    }
  }
  layer_ = layer;
}

void DecayingFrequency::use(int64_t expert) { used_.push_back(expert); }

std::vector<double> DecayingFrequency::scores() const {
  std::vector<double> out = scores_;
  for (const int64_t e : used_) out[static_cast<size_t>(e)] += gain_;
  for (double& score : out) score /= gain_;
  return out;
}

void DecayingFrequency::begin_with(const std::vector<double>& scores) {
  for (size_t e = 0; e < scores_.size(); ++e) scores_[e] = scores[e] * gain_;
}

size_t DecayingFrequency::choose(const std::vector<int64_t>& experts) const {
  size_t found = 0;
  double least = 0;
  int32_t farthest = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto e = static_cast<size_t>(experts[i]);
    const int32_t ahead = layer_of_[e] - layer_;
    const int32_t away = ahead > 0 ? ahead : ahead + layers_;
    const double score = scores_[e];
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
