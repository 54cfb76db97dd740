// Which expert gives way to another one that is needed. `strata.plan.expert_policies` has the same policies
// in Python, where recorded visits are replayed: both choose alike, to the last bit of a score.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace strata {

// Experts have numbers over all layers, in the order of layers.
class ExpertPolicy {
 public:
  virtual ~ExpertPolicy() = default;
  // A step comes to a layer; one that is not behind the last one begins a new sweep.
  virtual void visit(int layer) = 0;
  // The visit uses this one.
  virtual void use(int64_t expert) = 0;
  // Which of these, at least one, gives way.
  virtual size_t choose(const std::vector<int64_t>& experts) const = 0;
};

// The least frequently used one, where a use counts the less the longer it is ago. Uses count from
// the end of their sweep on, so that no layer is ahead of others because its turn came before; and
// of equals the one goes whose layer is the last to come again. Experts that all are used in every
// sweep, more than there is room for, are so found as often as room allows, where the least recently
// used one would always have gone just before it is needed.
class DecayingFrequency final : public ExpertPolicy {
 public:
  // `layer_of` each expert; `decay` is what a use is worth after each sweep of what it was.
  explicit DecayingFrequency(std::vector<int32_t> layer_of, double decay = kDecay);
  void visit(int layer) override;
  void use(int64_t expert) override;
  size_t choose(const std::vector<int64_t>& experts) const override;

  // What uses so far are worth now, of each expert; and such numbers as those of uses before.
  std::vector<double> scores() const;
  void begin_with(const std::vector<double>& scores);
  // Uses lose worth by this from now on.
  void set_decay(double decay) { decay_ = decay; }
  double decay() const { return decay_; }

  static constexpr double kDecay = 0.99;

 private:
  const std::vector<int32_t> layer_of_;
  double decay_;
  const int32_t layers_;
  int layer_ = -1;
  double gain_ = 1;                // what a use of this sweep is worth beside those before
  std::vector<double> scores_;
  std::vector<int64_t> used_;      // in this sweep
};

}  // namespace strata
