// What the nodes of a mixture of experts share.
//
// A pair is a row and one expert that it chose. Pairs are numbered by expert, those of one expert
// by row, so that each expert's weights are read once a step, for all its rows at a time. An output
// is the sum over its row's experts in the order of their numbers: which rows share a step, how the
// work is cut, and which experts are in memory first, changes no bit of it.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/nodes.h"

namespace strata {

inline constexpr int64_t kExpertChunks = 8;   // for each thread
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Where things lie in the workspace of a step of so many rows.
struct ExpertsPlaces {
  ExpertsPlaces(const ExpertsSpec& s, int64_t rows) {
    const int64_t pairs = rows * s.top_k;
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t place = at;
      at += whole_lines(bytes);
      return place;
    };
    chosen = take(pairs * 4);
    weight = take(pairs * 4);
    order = take(pairs * 4);
    first = take((s.experts + 1) * 4);
    middle = take(pairs * s.middle_stride());
    narrow = take(s.down_act() == ActKind::bf16
                      ? pairs * static_cast<int64_t>(act_row_bytes(ActKind::bf16, s.ffn))
                      : 0);
    bytes = at;
  }
  int64_t chosen, weight;   // by row: its experts in rising order, and their weights
  int64_t order;            // of each pair: its place in `chosen`
  int64_t first;            // of each expert: its first pair; and the number of pairs
  int64_t middle, narrow;   // of each pair: what the down product reads
  int64_t bytes;
};

// What the nodes of one Op share.
struct ExpertsStep {
  explicit ExpertsStep(ExpertsSpec spec) : s(std::move(spec)) {
    for (auto* list : {&active, &worked, &ready}) list->reserve(static_cast<size_t>(s.experts));
    if (!s.up.weight) weights.resize(static_cast<size_t>(s.experts));
  }

  template <class T> T* at(const Context& c, int64_t place) const {
    return reinterpret_cast<T*>(c.arena->data() + s.work + place);
  }

  ExpertsSpec s;
  int64_t rows = 0;
  std::optional<ExpertsPlaces> places;
  bool grouped = false;
  std::vector<int32_t> active;   // experts that some row chose
  std::vector<int32_t> worked;   // those of them whose gates and ups are worked on,
  std::vector<int32_t> ready;    // and whose downs are
  // Of experts that are in memory for a while: where gate, up and down lie.
  std::vector<std::array<const uint8_t*, 3>> weights;
};

// The experts that a row chooses by its logits, in rising order; `score` has room for twice as many
// numbers as there are logits, and for the groups, and holds the scores afterwards.
void choose_experts(const ExpertsSpec& s, const float* logits, float* score, int32_t* chosen);
// Chooses the experts of each row.
std::unique_ptr<Node> make_route(std::shared_ptr<ExpertsStep> now);
// Numbers pairs by expert, once a step.
void group_pairs(const Context& c, ExpertsStep& now);

}  // namespace strata
