#include "runtime/fail_points.h"

#include <cstdio>
#include <mutex>

namespace strata {
namespace {

struct Counter {
  int64_t left = 0;      // until the one that fails; 0 when none shall
  bool always = false, failed = false;
};
std::mutex g_lock;
Counter g_counters[kFailPoints];

}  // namespace

std::atomic<bool> detail::fail_points_on{false};

AllocationError::AllocationError(size_t bytes) {
  std::snprintf(message_, sizeof message_,
                "no memory for %.1f MB more: the system or a limit of this process (ulimit -v, the "
                "container's) has none left; free some, or set a smaller budget (--memory)",
                static_cast<double>(bytes) / 1e6);
}

ThreadStartError::ThreadStartError(const char* why)
    : std::runtime_error(std::string("a thread could not be started (") + why +
                         "): use fewer (--threads), or raise the limit of processes (ulimit -u, "
                         "the container's)") {}

void fail_after(FailPoint kind, int64_t n, bool always) {
  std::lock_guard<std::mutex> hold(g_lock);
  g_counters[static_cast<int>(kind)] = {n, always, false};
  bool on = false;
  for (const Counter& c : g_counters) on = on || c.left > 0;
  detail::fail_points_on = on;
}

bool has_failed(FailPoint kind) {
  std::lock_guard<std::mutex> hold(g_lock);
  return g_counters[static_cast<int>(kind)].failed;
}

bool detail::count_fail_point(FailPoint kind) {
  std::lock_guard<std::mutex> hold(g_lock);
  Counter& c = g_counters[static_cast<int>(kind)];
  if (c.left == 0) return false;
  if (c.left > 1) {
    --c.left;
    return false;
  }
  if (!c.always) c.left = 0;
  c.failed = true;
  return true;
}

}  // namespace strata
