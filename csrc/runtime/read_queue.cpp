#include "runtime/read_queue.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <string>

#include "runtime/fail_points.h"

namespace strata {
namespace {

// Of so many threads one reads what is for idle ones.
constexpr int kSparing = 4;

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// Asks for short turns: a thread that asks the disk for the next read is late if the threads that
// multiply have their turns out first. Systems that know no such wish (Linux before 6.12) go on as
// they are, and nobody's share of the processors changes.
void take_short_turns() {
#if defined(__linux__) && defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
  struct Attributes {   // sched_attr of linux/sched/types.h, as it was at first
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } a{};
  constexpr uint64_t kTurnNs = 100'000;   // the least that there is
  if (::syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) != 0) return;
  constexpr uint32_t kUsual = 0;   // SCHED_OTHER: of the others `runtime` is something else
  if (a.policy != kUsual) return;
  a.size = sizeof a;
  a.runtime = kTurnNs;
  ::syscall(SYS_sched_setattr, 0, &a, 0);
#endif
}

}  // namespace

ReadQueue::ReadQueue(int threads, uint8_t* scratch, int64_t scratch_each, int64_t most_bytes)
    : threads_(threads), scratch_(scratch), scratch_each_(scratch_each), most_bytes_(most_bytes) {
  idle_since_ = Clock::now();
  alive_ = threads_;
  try {
    for (int i = 0; i < threads_; ++i) start_thread(team_, [this, i] { work(i); });
  } catch (...) {
    // Fewer threads do as well, but for none.
    std::lock_guard<std::mutex> hold(lock_);
    alive_ -= threads_ - static_cast<int>(team_.size());
    if (team_.empty()) throw;
  }
}

ReadQueue::~ReadQueue() {
  {
    std::lock_guard<std::mutex> hold(lock_);
    stop_ = true;
  }
  wanted_.notify_all();
  for (std::thread& t : team_) t.join();
}

void ReadQueue::submit(ReadBatch* batch, Urgency urgency) {
  {
    std::lock_guard<std::mutex> hold(lock_);
    about_to_allocate(sizeof batch);
    std::deque<ReadBatch*>* const queues[] = {&urgent_, &open_, &soon_, &spare_};
    queues[static_cast<int>(urgency)]->push_back(batch);
    batch->claimed_ = batch->done_ = 0;
    batch->failure_ = nullptr;
  }
  wanted_.notify_one();
}

size_t ReadQueue::hasten(ReadBatch* batch) {
  size_t begun;
  {
    std::lock_guard<std::mutex> hold(lock_);
    begun = batch->claimed_;
    auto* const from = std::find(soon_.begin(), soon_.end(), batch) == soon_.end() ? &spare_ : &soon_;
    if (std::find(from->begin(), from->end(), batch) == from->end()) return begun;
    urgent_.push_back(batch);
    std::erase(*from, batch);
  }
  wanted_.notify_one();
  return begun;
}

void ReadQueue::forget(ReadBatch* batch) {
  std::erase(open_, batch);
  std::erase(urgent_, batch);
  std::erase(soon_, batch);
  std::erase(spare_, batch);
}

// Where a batch stands first of which something is to be read now; nullptr when there is none, or
// enough under way.
std::deque<ReadBatch*>* ReadQueue::next() {
  if (!urgent_.empty()) return &urgent_;
  if (open_.empty()) {
    if (!soon_.empty()) return &soon_;
    // What is wanted next would have to wait for what is under way then.
    const bool free = !spare_.empty() && sparing_ < std::max(1, alive_ / kSparing);
    return free ? &spare_ : nullptr;
  }
  ReadBatch* const batch = open_.front();
  const bool few =
      under_way_ == 0 || under_way_ <= most_bytes_ - batch->bytes(batch->claimed_);
  return few ? &open_ : nullptr;
}

void ReadQueue::work(int thread) {
  take_short_turns();
  uint8_t* const scratch = scratch_ + thread * scratch_each_;
  std::unique_lock<std::mutex> hold(lock_);
  while (!stop_) {
    std::deque<ReadBatch*>* const from = next();
    if (from == nullptr) {
      if (++idle_ == alive_) idle_since_ = Clock::now();
      wanted_.wait(hold);
      if (idle_-- == alive_) idle_s_ += seconds(Clock::now() - idle_since_);
      continue;
    }
    ReadBatch* const batch = from->front();
    const size_t read = batch->claimed_++;
    if (batch->claimed_ == batch->reads()) from->pop_front();
    const int64_t bytes = batch->bytes(read);
    const bool spares = from == &spare_ || from == &soon_;
    sparing_ += spares;
    ++busy_;
    under_way_ += bytes;
    // Whoever takes something up wakes the next one, as long as there is more.
    if (idle_ > 0 && next() != nullptr) wanted_.notify_one();
    hold.unlock();
    fetching_.enter();
    std::exception_ptr failure;
    bool dies = false;
    try {
      batch->read(read, scratch);
    } catch (const ReadError&) {
      failure = std::current_exception();
    } catch (const std::exception& e) {
      failure = std::make_exception_ptr(ReadError(
          std::string("a thread that read weights ended: ") + e.what() + "; load the model again"));
      dies = true;
    }
    fetching_.leave();
    hold.lock();
    --busy_;
    sparing_ -= spares;
    under_way_ -= bytes;
    ++batch->done_;
    if (failure) {
      batch->failure_ = failure;
      failed_ = true;
      // What is left of it is of no use.
      forget(batch);
    }
    if (failure || batch->done_ == batch->reads() || busy_ == sparing_ || withdrawing_ > 0) {
      ready_.notify_all();
    }
    if (dies) break;
  }
  --alive_;
  ready_.notify_all();
  wanted_.notify_all();
}

void ReadQueue::wait(const ReadBatch& batch, const Check& check) {
  std::unique_lock<std::mutex> hold(lock_);
  const Clock::time_point start = Clock::now();
  for (;;) {
    if (batch.failure_) std::rethrow_exception(batch.failure_);
    if (batch.done_ == batch.reads()) break;
    if (alive_ == 0) {
      throw ReadError("no thread that reads weights is left; load the model again");
    }
    if (ready_.wait_for(hold, kCheckEvery) == std::cv_status::timeout) {
      hold.unlock();
      check();
      hold.lock();
    }
  }
  waited_s_ += seconds(Clock::now() - start);
}

bool ReadQueue::complete(const ReadBatch& batch) const {
  std::lock_guard<std::mutex> hold(lock_);
  if (batch.failure_) std::rethrow_exception(batch.failure_);
  return batch.done_ == batch.reads();
}

void ReadQueue::withdraw(ReadBatch* batch) {
  std::unique_lock<std::mutex> hold(lock_);
  forget(batch);
  ++withdrawing_;
  ready_.wait(hold, [&] { return batch->done_ == batch->claimed_; });
  --withdrawing_;
}

size_t ReadQueue::abandon(ReadBatch* batch) {
  std::lock_guard<std::mutex> hold(lock_);
  forget(batch);
  return batch->claimed_;
}

bool ReadQueue::quiet(const ReadBatch& batch) const {
  std::lock_guard<std::mutex> hold(lock_);
  return batch.done_ == batch.claimed_;
}

void ReadQueue::drop() {
  std::unique_lock<std::mutex> hold(lock_);
  open_.clear();
  urgent_.clear();
  ready_.wait(hold, [&] { return busy_ == sparing_; });
  failed_ = false;
}

bool ReadQueue::failed() const {
  std::lock_guard<std::mutex> hold(lock_);
  return failed_;
}

ReadQueue::Times ReadQueue::times() const {
  std::lock_guard<std::mutex> hold(lock_);
  double idle = idle_s_;
  if (alive_ > 0 && idle_ == alive_) idle += seconds(Clock::now() - idle_since_);
  return {waited_s_, idle, fetching_.seconds()};
}

}  // namespace strata
