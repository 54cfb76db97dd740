#include "runtime/weight_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "runtime/fail_points.h"

namespace strata {
namespace {

constexpr int64_t kPage = WeightFile::kBufferAlign;

int64_t round_down(int64_t n, int64_t to) { return n / to * to; }
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

FileIdentity identity_of(const struct stat& s) {
#ifdef __APPLE__
  const struct timespec& changed = s.st_mtimespec;
#else
  const struct timespec& changed = s.st_mtim;
#endif
  return {static_cast<uint64_t>(s.st_dev), static_cast<uint64_t>(s.st_ino),
          static_cast<int64_t>(s.st_size),
          static_cast<int64_t>(changed.tv_sec) * 1000000000 + changed.tv_nsec};
}

// The faults that tests ask for.
struct FaultState {
  std::atomic<bool> on{false};
  std::mutex lock;
  ReadFaults faults;
  int64_t reads = 0;
  uint64_t random = 0;
};
FaultState g_faults;

// What a disk that is so many times slower would take in addition to what a read took.
void take_longer(std::chrono::steady_clock::time_point since) {
  if (!g_faults.on.load(std::memory_order_relaxed)) return;
  int64_t times = 0;
  {
    std::lock_guard<std::mutex> hold(g_faults.lock);
    times = g_faults.faults.slow_times;
  }
  if (times > 1) {
    std::this_thread::sleep_for((std::chrono::steady_clock::now() - since) * (times - 1));
  }
}

}  // namespace

bool meet_read_fault(const std::string& path, int64_t offset) {
  if (!g_faults.on.load(std::memory_order_relaxed)) return false;
  int64_t delay = 0, number = 0;
  ReadFaults f;
  {
    std::lock_guard<std::mutex> hold(g_faults.lock);
    f = g_faults.faults;
    number = ++g_faults.reads;
    g_faults.random = g_faults.random * 6364136223846793005u + 1442695040888963407u;
    if (f.delay_us > 0) delay = static_cast<int64_t>((g_faults.random >> 33) % (f.delay_us + 1));
  }
  if (delay > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
  if (number == f.fail_at) {
    throw ReadError(path + " cannot be read at byte " + std::to_string(offset) + ": " +
                    std::strerror(EIO));
  }
  if (number == f.die_at) throw AllocationError(0);
  return number == f.cut_at;
}

void set_read_faults(const ReadFaults& faults) {
  std::lock_guard<std::mutex> hold(g_faults.lock);
  g_faults.faults = faults;
  g_faults.reads = 0;
  g_faults.random = static_cast<uint64_t>(faults.seed);
  g_faults.on = faults.delay_us > 0 || faults.fail_at > 0 || faults.cut_at > 0 ||
                faults.die_at > 0 || faults.slow_times > 0;
}

void BusyClock::enter() {
  std::lock_guard<std::mutex> hold(lock_);
  if (inside_++ == 0) since_ = Clock::now();
}

void BusyClock::leave() {
  std::lock_guard<std::mutex> hold(lock_);
  if (--inside_ == 0) total_ += std::chrono::duration<double>(Clock::now() - since_).count();
}

double BusyClock::seconds() const {
  std::lock_guard<std::mutex> hold(lock_);
  if (inside_ == 0) return total_;
  return total_ + std::chrono::duration<double>(Clock::now() - since_).count();
}

WeightFile::WeightFile(std::string path, const FileIdentity& expected, bool direct,
                       bool drop_behind)
    : path_(std::move(path)), identity_(expected), direct_(direct), drop_behind_(drop_behind) {
#ifdef O_DIRECT
  if (direct_) fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
#endif
  // Some file systems (tmpfs before Linux 6.6, some network ones) have no direct reads.
  if (fd_ < 0) {
    direct_ = false;
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (fd_ < 0) throw ReadError(path_ + " cannot be opened: " + std::strerror(errno));
#ifdef POSIX_FADV_RANDOM
  // Reads are large and known in advance; guessing further ahead would only fill the page cache.
  if (!direct_) ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
#endif
#ifdef STATX_DIOALIGN
  struct statx s {};
  if (direct_ && ::statx(fd_, "", AT_EMPTY_PATH, STATX_DIOALIGN, &s) == 0 &&
      s.stx_dio_offset_align > 0 && s.stx_dio_offset_align <= kPage &&
      s.stx_dio_mem_align <= kPage) {
    align_ = s.stx_dio_offset_align;
  }
#endif
  try {
    check_unchanged();
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

WeightFile::~WeightFile() { ::close(fd_); }

void WeightFile::check_unchanged() const {
  struct stat held {}, named {};
  if (::fstat(fd_, &held) != 0) {
    throw ReadError(path_ + " cannot be looked at: " + std::strerror(errno));
  }
  // A file that was deleted is still whole; one that was put in its place is another model.
  const bool there = ::stat(path_.c_str(), &named) == 0;
  if (identity_of(held) == identity_ &&
      (!there || (named.st_dev == held.st_dev && named.st_ino == held.st_ino))) {
    return;
  }
  throw ReadError(path_ + " was changed or replaced while it was in use; load the model again");
}

const uint8_t* WeightFile::read(int64_t offset, int64_t bytes, uint8_t* buffer,
                                ReadCounters& counters) const {
  const int64_t first = direct_ ? round_down(offset, align_) : offset;
  const int64_t end = direct_ ? round_up(offset + bytes, align_) : offset + bytes;
  struct Inside {
    explicit Inside(BusyClock& c) : clock(c) { clock.enter(); }
    ~Inside() { clock.leave(); }
    BusyClock& clock;
  } inside(counters.busy);
  const bool cut = meet_read_fault(path_, offset);
  const auto since = std::chrono::steady_clock::now();
  int64_t at = first;
  while (at < end) {
    const ssize_t got =
        cut ? 0 : ::pread(fd_, buffer + (at - first), static_cast<size_t>(end - at), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw ReadError(path_ + " cannot be read at byte " + std::to_string(at) + ": " +
                      std::strerror(errno));
    }
    if (got == 0) break;
    counters.from_disk += got;
    at += got;
    // A direct read may end between blocks only at the end of the file.
    if (direct_ && at % align_ != 0) break;
  }
  if (at < offset + bytes) {
    throw ReadError(path_ + " ends at byte " + std::to_string(std::max(at, first)) + ", but " +
                    std::to_string(offset + bytes - at) +
                    " more were there when it was opened: the file changed; download or copy it "
                    "again");
  }
#ifdef POSIX_FADV_DONTNEED
  if (!direct_ && drop_behind_) {
    const int64_t page = round_down(offset, kPage);
    ::posix_fadvise(fd_, page, round_up(end, kPage) - page, POSIX_FADV_DONTNEED);
  }
#endif
  take_longer(since);
  ++counters.reads;
  counters.wanted += bytes;
  return buffer + (offset - first);
}

int64_t WeightFile::cached_bytes() const {
#ifdef __linux__
  constexpr int64_t kWindow = int64_t{1} << 30;
  int64_t pages = 0;
  std::vector<unsigned char> seen(static_cast<size_t>(kWindow / kPage));
  for (int64_t at = 0; at < identity_.size; at += kWindow) {
    const auto bytes = static_cast<size_t>(std::min(kWindow, identity_.size - at));
    void* map = ::mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, fd_, at);
    if (map == MAP_FAILED) continue;
    if (::mincore(map, bytes, seen.data()) == 0) {
      const int64_t count = round_up(static_cast<int64_t>(bytes), kPage) / kPage;
      for (int64_t i = 0; i < count; ++i) pages += seen[static_cast<size_t>(i)] & 1;
    }
    ::munmap(map, bytes);
  }
  return pages * kPage;
#else
  return 0;
#endif
}

}  // namespace strata
