// Files that hold weights: exact reads, direct or buffered, of a file that is still the same.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace strata {

// A file that could not be read or is no longer the one that was opened: one line for the user.
class ReadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What tells a file from one that was put in its place or written over.
struct FileIdentity {
  uint64_t device, inode;
  int64_t size, mtime_ns;
  bool operator==(const FileIdentity&) const = default;
};

// Time during which at least one of several threads is inside.
class BusyClock {
 public:
  void enter();
  void leave();
  double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  mutable std::mutex lock_;
  int inside_ = 0;
  Clock::time_point since_;
  double total_ = 0;
};

// Counted where the system is called: `from_disk` includes what alignment adds at both ends.
struct ReadCounters {
  std::atomic<int64_t> wanted{0}, from_disk{0}, reads{0};
  BusyClock busy;
};

// A file that holds weights. `direct` reads go past the page cache, buffered ones leave nothing in
// it when `drop_behind` is set. Safe from several threads.
class WeightFile {
 public:
  WeightFile(std::string path, const FileIdentity& expected, bool direct, bool drop_behind);
  ~WeightFile();
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  // Reads bytes [offset, offset + bytes) and returns where they begin within `buffer`, which is
  // aligned to kBufferAlign and holds `span(bytes)` bytes. ReadError if they are not all there.
  const uint8_t* read(int64_t offset, int64_t bytes, uint8_t* buffer, ReadCounters& counters) const;
  static int64_t span(int64_t bytes) { return bytes + 2 * kBufferAlign; }
  // ReadError if the path names another file by now, or if this one was written to or cut.
  void check_unchanged() const;
  bool direct() const { return direct_; }
  const std::string& path() const { return path_; }
  // Bytes of it that lie in the page cache, whoever brought them there.
  int64_t cached_bytes() const;

  static constexpr int64_t kBufferAlign = 4096;

 private:
  std::string path_;
  FileIdentity identity_;
  bool direct_, drop_behind_;
  int64_t align_ = kBufferAlign;
  int fd_ = -1;
};

// For tests: what happens to reads from now on. Counting starts anew; 0 is never.
struct ReadFaults {
  int64_t delay_us = 0;    // every read waits a random time up to this
  int64_t seed = 0;
  int64_t fail_at = 0;     // the n-th read gives an I/O error
  int64_t cut_at = 0;      // the n-th read ends before its end
  int64_t die_at = 0;      // the thread of the n-th read ends by something unforeseen
  int64_t slow_times = 0;  // every read of a file takes this many times what it takes
};
void set_read_faults(const ReadFaults& faults);
// Where something is read: waits or throws as asked; true if the read shall find the file's end.
bool meet_read_fault(const std::string& path, int64_t offset);

}  // namespace strata
