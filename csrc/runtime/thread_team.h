// A persistent team of threads that runs jobs of dependent phases.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace strata {

// Work in phases: the chunks of a phase may run in any order on any thread, and all of them are
// done before the next phase starts.
class TeamJob {
 public:
  virtual ~TeamJob() = default;
  virtual int phases() const = 0;
  // Called once by one thread when every chunk of the phase before is done; returns the number of
  // chunks, which may be zero.
  virtual int64_t begin(int phase) = 0;
  virtual void chunk(int phase, int64_t index, int thread) = 0;
};

// Chunks are claimed, never assigned: a thread that the system has put aside holds up nobody, only
// the chunk it holds. A thread claims along a range of its own, so that it reads memory in one
// stream, and then helps with those of others. Whoever finishes the last chunk of a phase opens the
// next one, and does it alone if it has one chunk only. Threads spin for work, then yield, and at
// last sleep; between phases they only yield.
class ThreadTeam {
 public:
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs the job to its end on this team; the caller works too. One job at a time.
  void run(TeamJob& job);

 private:
  // What a claimer needs to know of a phase; a slot is rewritten only kSlots phases later, and a
  // claim that succeeds proves that the phase it read is still open.
  static constexpr uint32_t kSlots = 4;
  // Ranges of a phase; with more threads than that, some share one.
  static constexpr uint32_t kMaxRanges = 16;
  struct alignas(64) Slot {
    std::atomic<TeamJob*> job{nullptr};
    std::atomic<int> phase{0};
    std::atomic<uint32_t> chunks{0};
  };

  static constexpr uint64_t make_ticket(uint32_t phase, uint32_t next) {
    return (static_cast<uint64_t>(phase) << 32) | next;
  }
  void open_from(TeamJob& job, int phase, int thread);
  // The first chunk of a range; ranges that are not the last may be empty.
  uint32_t range_begin(uint64_t chunks, uint32_t range) const {
    return static_cast<uint32_t>(chunks * range / ranges_);
  }
  bool work_once(int thread);
  bool claim(uint32_t range, int thread);
  void worker(int thread);
  void end();

  Slot slots_[kSlots];
  struct alignas(64) Ticket {
    std::atomic<uint64_t> value{0};                  // open phase (running number), next chunk
  };
  Ticket tickets_[kMaxRanges];
  const uint32_t ranges_;
  alignas(64) std::atomic<uint32_t> done_{0};        // chunks finished in the open phase
  alignas(64) std::atomic<uint32_t> finished_{1};    // 1 when no job is running
  alignas(64) std::atomic<uint32_t> wake_{0};        // changes when a job starts or the team ends
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  uint32_t running_number_ = 0;                      // written only by the opener of a phase
  std::vector<std::thread> workers_;
};

}  // namespace strata
