// Which expert gives way to another one that is needed. `strata.plan.expert_policies` has the same policies
// in Python, where recorded visits are replayed: both choose alike, to the last bit of a score.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace strata {

// What a step does in a layer: the experts that its rows chose, numbers within the layer in rising
// order, and by how many choices each.
struct Visit {
  int layer;
  int64_t rows;
  std::vector<int32_t> experts, uses;
};

// Experts have numbers over all layers, in the order of layers.
class ExpertPolicy {
 public:
  virtual ~ExpertPolicy() = default;
  // A step comes to a layer with so many rows.
  virtual void visit(int layer, int64_t rows) = 0;
  // The visit uses this one, by so many choices of its rows: told of all before anything is chosen.
  virtual void use(int64_t expert, int64_t choices) = 0;
  // Which of these, at least one, gives way.
  virtual size_t choose(const std::vector<int64_t>& experts) const = 0;
};

// The least frequently used one: by the share of its layer's rows that chose it, where a row counts
// the less the longer it is ago. A prompt's rows, which come together, count as they would one after
// the other. Since shares are of a layer's own rows, no layer is ahead because its turn came before;
// and of equals the one goes whose layer is the last to come again. Experts that all are used in
// every sweep, more than there is room for, are so found as often as room allows, where the least
// recently used one would always have gone just before it is needed.
class DecayingFrequency final : public ExpertPolicy {
 public:
  // `layer_of` each expert; `decay` is what a row is worth after the next one of what it was.
  explicit DecayingFrequency(std::vector<int32_t> layer_of, double decay = kDecay);
  void visit(int layer, int64_t rows) override;
  void use(int64_t expert, int64_t choices) override;
  size_t choose(const std::vector<int64_t>& experts) const override;

  // What uses so far are worth now, of each expert; and such numbers as those of uses before.
  const std::vector<double>& scores() const { return scores_; }
  void begin_with(const std::vector<double>& scores);
  // Rows lose worth by this from now on.
  void set_decay(double decay) { decay_ = decay; }
  double decay() const { return decay_; }

  static constexpr double kDecay = 0.99;

 private:
  double share(size_t expert) const;

  const std::vector<int32_t> layer_of_;
  double decay_;
  const int32_t layers_;
  int layer_ = -1;
  double worth_ = 0;               // of a row of this visit
  std::vector<double> scores_;     // of each expert
  std::vector<double> rows_;       // of each layer: what its rows are worth
  std::vector<size_t> first_;      // of each layer: its first expert; and their number
};

}  // namespace strata
