// What the bindings of the runtime share: a team, a step, and how a wrong argument is refused.
#pragma once
#include <nanobind/ndarray.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "runtime/nodes.h"

namespace strata {

template <class T>
using Array1 = nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig,
                                 nanobind::device::cpu>;

inline void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}
// For most: no string is made where all is well.
inline void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

// The thread team with the lock that keeps its jobs apart.
struct Team {
  explicit Team(int threads) : team(threads) {}
  void run(TeamJob& job) {
    std::lock_guard<std::mutex> hold(lock);
    team.run(job);
  }
  ThreadTeam team;
  std::mutex lock;
};

// A step with its own copies of everything, so that it cannot change while it runs, checked against
// the groups and blocks of one StateStore.
struct Step {
  std::vector<int32_t> tokens, positions, logits_indices;
  std::vector<int32_t> tables;               // of all spans and groups, one after the other
  std::vector<const int32_t*> table_of;      // [spans][groups]
  StepView view{};
  int32_t max_token = -1;
  uint64_t store = 0;
};

}  // namespace strata
