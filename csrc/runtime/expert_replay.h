// What a cache of experts does on recorded visits, without weights: the loop of ExpertCache under
// any policy. `tests/support/expert_policies.py` has the same in Python, one line after the other.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/expert_policy.h"

namespace strata {

struct Visits {
  std::vector<int32_t> experts;   // of each layer
  std::vector<Visit> all;

  // std::invalid_argument where numbers do not fit each other.
  void check() const;
};

struct Replayed {
  int64_t hits = 0, misses = 0;
};

// By name: `frequency` (with `decay` a row), `recent`, `static` (by `uses` of each expert of all
// layers), `belady`, and `mixed`: half of the slots for those used most, frequency for the others.
std::unique_ptr<ExpertPolicy> make_policy(const std::string& name, const Visits& visits,
                                          int64_t slots, double decay,
                                          const std::vector<int64_t>& uses);

// Hits and misses of the visits from `counted` on; those before bring the slots into a usual state. At
// most `sure` slots are for what the next layer is sure to need.
Replayed replay(const Visits& visits, int64_t slots, int64_t sure, int64_t counted,
                ExpertPolicy& policy);

}  // namespace strata
