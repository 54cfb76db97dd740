// Which expert gives way to another one that is needed. Tests have the same policies in
// Python, where recorded visits are replayed: both choose alike, to the last bit of a score.
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

// Whether a step is sure to need about all experts of its next layer, so that they can be read before
// its router has chosen: by how many rows choose, and by how often that was right.
class SureNext {
 public:
  // A visit needed `right` of those that had been said to be sure, `asked`.
  void came(int64_t asked, int64_t right);
  // Asked once a visit: of layers with so many experts, of which each row chooses `top_k`.
  bool ask(int64_t experts, int64_t top_k, int64_t rows);

 private:
  double asked_ = 0, right_ = 0;   // the last ones more
  int64_t passed_ = 0;             // visits for which it was not sure enough, in a row
};

// Of each expert, the share of its layer's rows that chose it, where a row counts the less the longer
// it is ago: what it is worth after the next one is `decay` of what it was. Rows that come together
// count as they would one after the other.
class DecayingShares {
 public:
  explicit DecayingShares(const std::vector<int32_t>& layer_of);
  void visit(int layer, int64_t rows, double decay);
  void use(int64_t expert, int64_t choices);
  double share(int64_t expert) const;

  // What uses so far are worth now, of each expert; and such numbers as those of uses before.
  const std::vector<double>& scores() const { return scores_; }
  void begin_with(const std::vector<double>& scores);

 private:
  const std::vector<int32_t> layer_of_;
  std::vector<size_t> first_;      // of each layer: its first expert; and their number
  std::vector<double> scores_;     // of each expert
  std::vector<double> rows_;       // of each layer: what its rows are worth
  double worth_ = 0;               // of a row of this visit
};

// The least frequently used one: by its share of rows with a slow decay, and some of that with a fast
// one, so that what is used now counts more where choices stick. Since shares are of a layer's own
// rows, no layer is ahead because its turn came before; and of equals the one goes whose layer is the
// last to come again. Experts that all are used in every sweep, more than there is room for, are so
// found as often as room allows, where the least recently used one would always have gone just before
// it is needed.
class DecayingFrequency final : public ExpertPolicy {
 public:
  // `layer_of` each expert; `decay` is the slow one.
  explicit DecayingFrequency(std::vector<int32_t> layer_of, double decay = kDecay);
  void visit(int layer, int64_t rows) override;
  void use(int64_t expert, int64_t choices) override;
  size_t choose(const std::vector<int64_t>& experts) const override;

  // Of the slow ones.
  const std::vector<double>& scores() const { return slow_.scores(); }
  void begin_with(const std::vector<double>& scores);
  // Rows lose worth by this from now on.
  void set_decay(double decay) { decay_ = decay; }
  double decay() const { return decay_; }

  static constexpr double kDecay = 0.99;
  // The fast decay, and what its shares count beside the slow ones'.
  static constexpr double kFast = 0.7, kRecent = 0.1;

 private:
  const std::vector<int32_t> layer_of_;
  const int32_t layers_;
  double decay_;
  int layer_ = -1;
  DecayingShares slow_, fast_;
};

}  // namespace strata
