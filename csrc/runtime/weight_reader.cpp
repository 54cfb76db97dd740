#include "runtime/weight_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <thread>

#include "runtime/fail_points.h"

namespace strata {
namespace {

constexpr int64_t kPage = WeightFile::kBufferAlign;
// Transposed weights are read in whole stored rows, this many bytes at a time.
constexpr int64_t kColumnsRead = 128 << 10;
constexpr int64_t kScaledBlock = 128;
constexpr int64_t kScaledBytes = kScaledBlock + sizeof(float);

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

// Waits or throws as asked; true if the read shall find the file's end.
bool meet_fault(const std::string& path, int64_t offset) {
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

}  // namespace

void set_read_faults(const ReadFaults& faults) {
  std::lock_guard<std::mutex> hold(g_faults.lock);
  g_faults.faults = faults;
  g_faults.reads = 0;
  g_faults.random = static_cast<uint64_t>(faults.seed);
  g_faults.on = faults.delay_us > 0 || faults.fail_at > 0 || faults.cut_at > 0 || faults.die_at > 0;
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
  const bool cut = meet_fault(path_, offset);
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

int64_t WeightPlace::row_bytes() const {
  const FormatInfo& info = *format_info(format);
  return k / info.elements * info.bytes;
}

int64_t WeightPlace::panel_bytes() const {
  return static_cast<int64_t>(packed_bytes(format, kPanel, k));
}

int64_t WeightPlace::file_bytes(int64_t panel0, int64_t panel1) const {
  const int64_t rows = std::min(panel1 * kPanel, n) - panel0 * kPanel;
  return rows * stored_row_bytes();
}

int64_t WeightPlace::end() const {
  switch (storage) {
    case Storage::rows: return offset + n * row_bytes();
    case Storage::scaled: return offset + n * k;
    case Storage::columns: return offset + stored_width * row_bytes();
  }
  return 0;
}

int64_t WeightPlace::panels_at_once(int64_t request_bytes) const {
  int64_t room = request_bytes;
  if (storage == Storage::columns) room -= kColumnsRead;
  // Bytes of the file and, beside them, the same with their scales put in.
  if (storage == Storage::scaled) room /= 2;
  return std::clamp<int64_t>(room / (kPanel * row_bytes()), 1, panels(n));
}

int64_t WeightPlace::lines_bytes() const {
  return WeightFile::span(std::max(kColumnsRead, stored_width * row_bytes() / k));
}

int64_t WeightPlace::staging(int64_t panels_at_once) const {
  const int64_t rows = std::min(panels_at_once * kPanel, n);
  const int64_t bytes = rows * row_bytes();
  switch (storage) {
    case Storage::rows: return WeightFile::span(bytes);
    case Storage::scaled: return WeightFile::span(rows * k) + bytes;
    case Storage::columns: return lines_bytes() + bytes;
  }
  return 0;
}

void WeightPlace::gather(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
                         ReadCounters& counters) const {
  const int64_t element = row_bytes() / k;
  const int64_t stored = stored_width * element;
  const int64_t at_once = std::max<int64_t>(1, kColumnsRead / stored);
  for (int64_t i0 = 0; i0 < k; i0 += at_once) {
    const int64_t count = std::min(at_once, k - i0);
    const uint8_t* from = file->read(offset + i0 * stored, count * stored, lines, counters);
    from += (first_column + row0) * element;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(out + (r * k + i0 + i) * element, from + i * stored + r * element,
                    static_cast<size_t>(element));
      }
    }
  }
}

void WeightPlace::put_scales(const uint8_t* codes, int64_t row0, int64_t rows,
                             uint8_t* out) const {
  const int64_t blocks = k / kScaledBlock;
  for (int64_t r = 0; r < rows; ++r) {
    const float* scales = factors.data() + (row0 + r) / factor_rows * factor_stride;
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* block = out + (r * blocks + b) * kScaledBytes;
      std::memcpy(block, scales + (factor_stride > 1 ? b : 0), sizeof(float));
      std::memcpy(block + sizeof(float), codes + r * k + b * kScaledBlock, kScaledBlock);
    }
  }
}

// The bytes of some rows in the form that `pack` takes.
const uint8_t* WeightPlace::rows_of(int64_t row0, int64_t rows, uint8_t* staging,
                                    ReadCounters& counters) const {
  if (storage == Storage::rows) {
    return file->read(offset + row0 * row_bytes(), rows * row_bytes(), staging, counters);
  }
  if (storage == Storage::scaled) {
    uint8_t* out = staging + WeightFile::span(rows * k);
    put_scales(file->read(offset + row0 * k, rows * k, staging, counters), row0, rows, out);
    return out;
  }
  uint8_t* out = staging + lines_bytes();
  gather(row0, rows, staging, out, counters);
  return out;
}

void WeightPlace::read_panels(int64_t panel0, int64_t panel1, uint8_t* out, uint8_t* staging,
                              ReadCounters& counters) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t rows = std::min(panel1 * kPanel, n) - row0;
  const uint8_t* source = rows_of(row0, rows, staging, counters);
  // Panels are independent of each other: these rows are a matrix of their own.
  pack(usual_kernels(), format, source, rows, k, out, 0, panel1 - panel0);
}

int64_t WeightPlace::slot_bytes(int64_t panel0, int64_t panel1) const {
  return round_up(file_bytes(panel0, panel1), kPage) + kPage;
}

int64_t WeightPlace::scratch_bytes() const {
  return storage == Storage::columns ? lines_bytes() : 0;
}

const uint8_t* WeightPlace::read_rows(int64_t panel0, int64_t panel1, uint8_t* slot,
                                      uint8_t* scratch, ReadCounters& counters) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t rows = std::min(panel1 * kPanel, n) - row0;
  if (storage == Storage::columns) {
    gather(row0, rows, scratch, slot, counters);
    return slot;
  }
  const int64_t row = stored_row_bytes();
  return file->read(offset + row0 * row, rows * row, slot, counters);
}

void WeightPlace::pack_panels(const uint8_t* rows, int64_t panel0, int64_t panel1,
                              uint8_t* out) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t count = std::min(panel1 * kPanel, n) - row0;
  if (storage == Storage::scaled) {
    put_scales(rows, row0, count, out);
  } else {
    pack(usual_kernels(), format, rows, count, k, out, 0, panel1 - panel0);
  }
}

void read_row(const WeightPlace& place, const KernelTable& kernels, int64_t row, float* out,
              ReadCounters& counters) {
  // A panel of one row: through the same code as a whole table, and so to the same bits.
  AlignedBytes buffer(static_cast<size_t>(WeightFile::span(place.row_bytes())), false,
                      WeightFile::kBufferAlign);
  AlignedBytes panel(packed_bytes(place.format, 1, place.k), false);
  const uint8_t* source = place.file->read(place.offset + row * place.row_bytes(),
                                           place.row_bytes(), buffer.data(), counters);
  pack(place.format, source, 1, place.k, panel.data(), 0, 1);
  kernels.unpack_row(place.format, panel.data(), 1, place.k, 0, out);
}

void load_weights(const std::vector<WeightLoad>& loads, int threads, int64_t request_bytes,
                  const Check& check, ReadCounters& counters) {
  struct Read {
    const WeightLoad* load;
    int64_t panel0, panel1;
  };
  std::vector<Read> reads;
  int64_t staging = 0;
  for (const WeightLoad& l : loads) {
    const int64_t step = l.place->panels_at_once(request_bytes);
    staging = std::max(staging, l.place->staging(step));
    for (int64_t p = 0; p < panels(l.place->n); p += step) {
      reads.push_back({&l, p, std::min(p + step, panels(l.place->n))});
    }
  }
  std::mutex lock;
  std::condition_variable ended;
  std::exception_ptr failure;
  size_t next = 0;
  int running = static_cast<int>(std::min<size_t>(static_cast<size_t>(threads), reads.size()));
  Staging buffers(staging, running);
  const auto work = [&](int thread) {
    try {
      for (;;) {
        std::unique_lock<std::mutex> hold(lock);
        if (failure || next == reads.size()) break;
        const Read r = reads[next++];
        hold.unlock();
        const WeightPlace& place = *r.load->place;
        place.read_panels(r.panel0, r.panel1,
                          r.load->weight->bytes.data() + r.panel0 * place.panel_bytes(),
                          buffers.of(thread), counters);
      }
    } catch (...) {
      std::lock_guard<std::mutex> hold(lock);
      if (!failure) failure = std::current_exception();
    }
    std::lock_guard<std::mutex> hold(lock);
    --running;
    ended.notify_all();
  };
  std::vector<std::thread> team;
  const auto join = [&] {
    for (std::thread& t : team) t.join();
  };
  try {
    for (int i = 0, all = running; i < all; ++i) start_thread(team, work, i);
  } catch (...) {
    // Threads that could not be started; those that were must not outlive what they work on.
    {
      std::lock_guard<std::mutex> hold(lock);
      if (!failure) failure = std::current_exception();
    }
    join();
    throw;
  }
  std::unique_lock<std::mutex> hold(lock);
  while (running > 0) {
    if (ended.wait_for(hold, kCheckEvery, [&] { return running == 0; }) || failure) continue;
    hold.unlock();
    try {
      check();
      hold.lock();
    } catch (...) {
      hold.lock();
      failure = std::current_exception();
    }
  }
  hold.unlock();
  join();
  if (failure) std::rethrow_exception(failure);
  for (const WeightLoad& l : loads) l.place->file->check_unchanged();
}

}  // namespace strata
