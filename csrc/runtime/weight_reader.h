// Weights on their way from a file into panels: exact reads, direct or buffered, and packing.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/storage.h"

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

// How the rows of a weight lie in its file.
enum class Storage : int32_t {
  rows = 0,      // one after the other, in the block format
  columns = 1,   // transposed plain numbers: lines of `stored_width`, our rows are columns of them
  scaled = 2,    // rows of 8-bit floats; their scales are `factors`
};

// An [n, k] weight as a file has it.
struct WeightPlace {
  std::shared_ptr<const WeightFile> file;
  int64_t offset;
  Format format;
  int64_t n, k;
  Storage storage = Storage::rows;
  int64_t stored_width = 0, first_column = 0;
  // Scale of row r, block b of 128: factors[r / factor_rows * factor_stride + (b or 0)], with b
  // where the stride is more than 1.
  std::vector<float> factors;
  int64_t factor_rows = 1, factor_stride = 1;

  int64_t row_bytes() const;     // of a row in the form that `pack` takes
  int64_t panel_bytes() const;   // of a packed panel
  // Bytes that panels [panel0, panel1) take in the file.
  int64_t file_bytes(int64_t panel0, int64_t panel1) const;
  int64_t end() const;           // of the file's bytes that it takes
  // Panels that may be read at a time, so that `staging` stays about `request_bytes`; at least 1.
  int64_t panels_at_once(int64_t request_bytes) const;
  // Bytes of staging that reading so many panels at a time takes.
  int64_t staging(int64_t panels_at_once) const;
  // Reads panels [panel0, panel1) and packs them to `out`, where panel0 begins.
  void read_panels(int64_t panel0, int64_t panel1, uint8_t* out, uint8_t* staging,
                   ReadCounters& counters) const;

  // The same in two steps. Reads the rows of panels into `slot`, aligned to kBufferAlign, with room
  // for what alignment adds, and returns where they begin; the scratch, aligned as well, is only
  // used meanwhile.
  const uint8_t* read_rows(int64_t panel0, int64_t panel1, uint8_t* slot, uint8_t* scratch,
                           ReadCounters& counters) const;
  int64_t slot_bytes(int64_t panel0, int64_t panel1) const;
  int64_t scratch_bytes() const;
  // Packs panels to `out`, where panel0 begins, from their rows as `read_rows` gave them.
  void pack_panels(const uint8_t* rows, int64_t panel0, int64_t panel1, uint8_t* out) const;
  // Whether the rows are not yet what the kernels read.
  bool packs() const { return format_info(format)->panelled || storage == Storage::scaled; }
  int64_t stored_row_bytes() const { return storage == Storage::scaled ? k : row_bytes(); }

 private:
  const uint8_t* rows_of(int64_t row0, int64_t rows, uint8_t* staging,
                         ReadCounters& counters) const;
  int64_t lines_bytes() const;   // of staging for stored lines
  // Rows put together from lines of the file, and from codes and their scales.
  void gather(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
              ReadCounters& counters) const;
  void put_scales(const uint8_t* codes, int64_t row0, int64_t rows, uint8_t* out) const;
};
using WeightPlacePtr = std::shared_ptr<const WeightPlace>;

// Panels of so many bytes that a thread packs before it multiplies with them: an even number that
// still is in the second-level cache then.
inline int64_t packed_together(int64_t panel_bytes) {
  constexpr int64_t kBytes = 128 << 10;
  return std::max<int64_t>(2, kBytes / panel_bytes / 2 * 2);
}
// Bytes that they take.
inline int64_t packing_bytes(int64_t panel_bytes) {
  return packed_together(panel_bytes) * panel_bytes;
}

// What threads read into before it is packed: one buffer, so that it is made of huge pages although
// the part of each thread is smaller than one.
class Staging {
 public:
  Staging(int64_t each, int threads)
      : each_(aligned(each)), bytes_(static_cast<size_t>(size(each, threads)), false,
                                     WeightFile::kBufferAlign) {}
  uint8_t* of(int thread) { return bytes_.data() + thread * each_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  // Bytes that it takes, for parts of `each`.
  static int64_t size(int64_t each, int threads) {
    constexpr auto kPage = static_cast<int64_t>(AlignedBytes::kHugePage);
    return (aligned(each) * threads + kPage - 1) / kPage * kPage;
  }

 private:
  static int64_t aligned(int64_t bytes) {
    constexpr int64_t kTo = WeightFile::kBufferAlign;
    return (bytes + kTo - 1) / kTo * kTo;
  }

  int64_t each_;
  AlignedBytes bytes_;
};

// Row `row` of a table that stays on disk, as floats: the bits of KernelTable::unpack_row.
void read_row(const WeightPlace& place, const KernelTable& kernels, int64_t row, float* out,
              ReadCounters& counters);

// Called about every kCheckEvery while a caller waits; throws to end the wait.
using Check = std::function<void()>;
inline constexpr std::chrono::milliseconds kCheckEvery{50};

struct WeightLoad {
  WeightPlacePtr place;
  std::shared_ptr<PackedWeight> weight;
};
// Reads whole weights into packed form with `threads` reads of at most `request_bytes` at a time.
void load_weights(const std::vector<WeightLoad>& loads, int threads, int64_t request_bytes,
                  const Check& check, ReadCounters& counters);

// For tests: what happens to reads from now on. Counting starts anew; 0 is never.
struct ReadFaults {
  int64_t delay_us = 0;    // every read waits a random time up to this
  int64_t seed = 0;
  int64_t fail_at = 0;     // the n-th read gives an I/O error
  int64_t cut_at = 0;      // the n-th read ends before its end
  int64_t die_at = 0;      // the thread of the n-th read ends by something unforeseen
};
void set_read_faults(const ReadFaults& faults);

}  // namespace strata
