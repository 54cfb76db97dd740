#include "runtime/thread_team.h"

#include <algorithm>

#include "runtime/fail_points.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace strata {
namespace {

// About 50 us: longer than the gap between two Segments, shorter than a time slice.
constexpr int kIdleSpins = 2000;
// Some 300 us more, in which anybody else may have the core: a token is chosen meanwhile, and a
// thread that sleeps comes late to the next step.
constexpr int kIdleYields = 1000;
// Within a job the next phase is some microseconds away; past that somebody else has our core.
constexpr int kPhaseSpins = 400;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int threads)
    : ranges_(std::min(static_cast<uint32_t>(threads), kMaxRanges)) {
  try {
    for (int i = 1; i < threads; ++i) start_thread(workers_, [this, i] { worker(i); });
  } catch (...) {
    end();
    throw;
  }
}

ThreadTeam::~ThreadTeam() { end(); }

void ThreadTeam::end() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (auto& t : workers_) t.join();
}

// Opens the first phase from `phase` on that has chunks; ends the job when there is none left.
void ThreadTeam::open_from(TeamJob& job, int phase, int thread) {
  for (; phase < job.phases(); ++phase) {
    const int64_t chunks = job.begin(phase);
    if (chunks == 0) continue;
    if (chunks == 1) {   // nothing to share out: not worth a barrier
      job.chunk(phase, 0, thread);
      continue;
    }
    if (++running_number_ == 0) ++running_number_;  // 0 means that no phase was ever opened
    const uint32_t number = running_number_;
    Slot& slot = slots_[number % kSlots];
    slot.job.store(&job, std::memory_order_relaxed);
    slot.phase.store(phase, std::memory_order_relaxed);
    slot.chunks.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    // The last range is never empty: the phase cannot end before all tickets are out.
    for (uint32_t r = 0; r < ranges_; ++r) {
      const uint32_t first = range_begin(static_cast<uint64_t>(chunks), r);
      tickets_[r].value.store(make_ticket(number, first), std::memory_order_release);
    }
    return;
  }
  finished_.store(1, std::memory_order_release);
}

// Claims and runs one chunk; false when there was none to claim.
bool ThreadTeam::work_once(int thread) {
  for (uint32_t i = 0; i < ranges_; ++i) {
    if (claim((static_cast<uint32_t>(thread) + i) % ranges_, thread)) return true;
  }
  return false;
}

bool ThreadTeam::claim(uint32_t range, int thread) {
  std::atomic<uint64_t>& value = tickets_[range].value;
  uint64_t ticket = value.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t number = static_cast<uint32_t>(ticket >> 32);
    const uint32_t next = static_cast<uint32_t>(ticket);
    Slot& slot = slots_[number % kSlots];
    TeamJob* job = slot.job.load(std::memory_order_relaxed);
    const int phase = slot.phase.load(std::memory_order_relaxed);
    const uint32_t chunks = slot.chunks.load(std::memory_order_relaxed);
    if (number == 0 || next >= range_begin(chunks, range + 1)) return false;
    if (!value.compare_exchange_weak(ticket, make_ticket(number, next + 1),
                                     std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    job->chunk(phase, next, thread);
    const uint32_t done = done_.fetch_add(1, std::memory_order_acq_rel) + 1;
    if (done == chunks) open_from(*job, phase + 1, thread);
    return true;
  }
}

void ThreadTeam::run(TeamJob& job) {
  finished_.store(0, std::memory_order_relaxed);
  wake_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_.notify_all();
  open_from(job, 0, 0);
  int spins = 0;
  while (finished_.load(std::memory_order_acquire) == 0) {
    if (work_once(0)) {
      spins = 0;
    } else if (++spins < kPhaseSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadTeam::worker(int thread) {
  int spins = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint32_t seen = wake_.load(std::memory_order_seq_cst);
    if (work_once(thread)) {
      spins = 0;
      continue;
    }
    if (++spins < kIdleSpins) {
      relax();
      continue;
    }
    if (spins < kIdleSpins + kIdleYields || finished_.load(std::memory_order_acquire) == 0) {
      std::this_thread::yield();
      continue;
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(seen, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    spins = 0;
  }
}

}  // namespace strata
