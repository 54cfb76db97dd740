// Reads that several threads do ahead of whoever waits for them.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/storage.h"
#include "runtime/weight_file.h"

namespace strata {

// Called about every kCheckEvery while a caller waits; throws to end the wait.
using Check = std::function<void()>;
inline constexpr std::chrono::milliseconds kCheckEvery{50};

// Reads that are asked for, and waited for, together: those of one tile, or of all that is loaded.
class ReadBatch {
 public:
  ReadBatch() = default;
  virtual ~ReadBatch() = default;
  ReadBatch(const ReadBatch&) = delete;
  ReadBatch& operator=(const ReadBatch&) = delete;

  virtual size_t reads() const = 0;
  virtual int64_t bytes(size_t read) const = 0;   // that it takes from the file
  // Does one of them, on a thread of the queue and with that thread's scratch.
  virtual void read(size_t read, uint8_t* scratch) = 0;

 private:
  friend class ReadQueue;
  size_t claimed_ = 0, done_ = 0;   // under the queue's lock
  std::exception_ptr failure_;
};

// What a batch waits for: nothing, its turn, that all that has a turn is read, or that there is nothing
// else to read.
enum class Urgency { now, turn, soon, idle };

// Threads that read batches in the order in which they were submitted, those first that are urgent.
// As many reads are under way as there are threads, but no more than `most_bytes` of them.
class ReadQueue {
 public:
  // `scratch` is that of thread 0; each has `scratch_each` bytes.
  ReadQueue(int threads, uint8_t* scratch, int64_t scratch_each, int64_t most_bytes);
  // Ends when the reads that are under way have.
  ~ReadQueue();
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;

  // The batch stays where it is until it was waited for without an error, was withdrawn, or all were
  // dropped. One that is wanted `now` comes before all others, and however much is under way; one
  // that is sure to be wanted `soon` comes after those that have a turn; and one for `idle` threads is
  // taken up while nothing else waits, by few of them.
  void submit(ReadBatch* batch, Urgency urgency = Urgency::turn);
  // A batch that was submitted for later is wanted now. Returns how many of its reads were done or
  // under way.
  size_t hasten(ReadBatch* batch);
  // Waits until all of a batch is read. ReadError if some of it cannot be.
  void wait(const ReadBatch& batch, const Check& check);
  // Whether all of a batch is read. ReadError if some of it cannot be.
  bool complete(const ReadBatch& batch) const;
  // Forgets a batch, once those of its reads that are under way have ended.
  void withdraw(ReadBatch* batch);
  // The same, but those reads go on: the batch stays where it is until it is `quiet`. Returns how
  // many of its reads were done or are under way.
  size_t abandon(ReadBatch* batch);
  bool quiet(const ReadBatch& batch) const;
  // Forgets all batches but those for later, once the reads of others that are under way have ended.
  void drop();
  // Whether a read failed since batches were dropped.
  bool failed() const;

  struct Times {
    double waited_s;    // somebody waited for a batch
    double idle_s;      // no thread had anything to do
    double fetching_s;  // some thread read
  };
  Times times() const;

 private:
  using Clock = std::chrono::steady_clock;

  std::deque<ReadBatch*>* next();
  void forget(ReadBatch* batch);
  void work(int thread);

  const int threads_;
  uint8_t* const scratch_;
  const int64_t scratch_each_, most_bytes_;

  mutable std::mutex lock_;
  std::condition_variable ready_;     // a batch is complete, or all is quiet, or a thread has ended
  std::condition_variable wanted_;    // there is something to read, or all shall end
  // Of which something is still to be taken up.
  std::deque<ReadBatch*> urgent_, open_, soon_, spare_;
  bool stop_ = false, failed_ = false;
  int withdrawing_ = 0;
  int busy_ = 0, alive_ = 0, idle_ = 0;
  int sparing_ = 0;                   // threads that read what is for later
  int64_t under_way_ = 0;             // bytes that are being read
  Clock::time_point idle_since_;
  BusyClock fetching_;
  double waited_s_ = 0, idle_s_ = 0;
  std::vector<std::thread> team_;
};

// Threads with what they read into and what they count: those of everything that comes from the disk
// while a model runs.
class Readers {
 public:
  // `each` bytes of scratch for every thread.
  Readers(int threads, int64_t each, int64_t most_bytes)
      : scratch_(static_cast<size_t>(scratch_bytes(threads, each)), false,
                 WeightFile::kBufferAlign),
        queue(threads, scratch_.data(), scratch_bytes(1, each), most_bytes),
        scratch_each(each) {}

  // What they take beside stacks.
  static int64_t scratch_bytes(int threads, int64_t each) {
    constexpr int64_t kTo = WeightFile::kBufferAlign;
    return (each + kTo - 1) / kTo * kTo * threads;
  }

 private:
  AlignedBytes scratch_;

 public:
  ReadCounters counters;
  ReadQueue queue;   // after what its threads use
  const int64_t scratch_each;
};

}  // namespace strata
