// What the system may refuse: memory, threads, room in a file. Tests let the n-th be refused.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace strata {

// Memory of this many bytes could not be had: one line for the user.
class AllocationError : public std::bad_alloc {
 public:
  explicit AllocationError(size_t bytes);
  const char* what() const noexcept override { return message_; }

 private:
  char message_[192];   // in place: there may be no memory for a string
};

// A thread could not be started: one line for the user.
class ThreadStartError : public std::runtime_error {
 public:
  explicit ThreadStartError(const char* why);
};

enum class FailPoint : int { allocation = 0, thread = 1, write = 2 };
inline constexpr int kFailPoints = 3;

// From now on the n-th point of this kind (from 1) fails, and with `always` all that follow it too.
// 0 ends that.
void fail_after(FailPoint kind, int64_t n, bool always);
// Whether a point of this kind has failed since.
bool has_failed(FailPoint kind);

namespace detail {
extern std::atomic<bool> fail_points_on;
bool count_fail_point(FailPoint kind);
}  // namespace detail

// Whether the point that is passed here shall fail.
inline bool fails(FailPoint kind) {
  if (!detail::fail_points_on.load(std::memory_order_relaxed)) [[likely]] return false;
  return detail::count_fail_point(kind);
}

// Where a container is about to take a large size.
inline void about_to_allocate(size_t bytes) {
  if (fails(FailPoint::allocation)) throw AllocationError(bytes);
}

// Starts one more thread of a team, or throws ThreadStartError.
template <class... Work>
void start_thread(std::vector<std::thread>& team, Work&&... work) {
  try {
    if (fails(FailPoint::thread)) {
      throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    }
    team.emplace_back(std::forward<Work>(work)...);
  } catch (const std::system_error& e) {
    throw ThreadStartError(e.what());
  }
}

}  // namespace strata
