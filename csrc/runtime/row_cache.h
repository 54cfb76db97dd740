// Rows of tables that stay on disk, kept as the file has them: those that were looked up last.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "runtime/storage.h"

namespace strata {

// In sets of some rows each, by a hash of the table's number and the row: of a full set the one goes
// that was looked up longest ago. What is found is what was put in, so that no answer depends on it.
// Safe from any thread.
class RowCache {
 public:
  // As many rows of at most `row_bytes` as there is room for in `bytes`; perhaps none.
  RowCache(int64_t bytes, int64_t row_bytes);
  RowCache(const RowCache&) = delete;
  RowCache& operator=(const RowCache&) = delete;
  // Copies a row of so many bytes to `out` if it is there.
  bool find(int64_t table, int64_t row, int64_t bytes, uint8_t* out);
  void put(int64_t table, int64_t row, int64_t bytes, const uint8_t* data);
  int64_t rows() const { return sets_ * kWays; }
  int64_t row_bytes() const { return row_bytes_; }
  int64_t nbytes() const { return static_cast<int64_t>(data_.size()); }
  int64_t hits() const { return hits_.load(); }

  static constexpr int64_t kWays = 8;
  static constexpr int64_t kMostRows = int64_t{1} << 40;   // of a table, of which there may be 2^20

 private:
  struct Entry {
    uint64_t key, used;   // 0: nothing is there
  };
  Entry* set_of(uint64_t key);
  uint8_t* row_of(const Entry* entry);

  int64_t row_bytes_, sets_;
  AlignedBytes data_;   // the entries, and behind them their rows
  uint64_t now_ = 0;
  std::atomic<int64_t> hits_{0};
  std::mutex lock_;
};

}  // namespace strata
