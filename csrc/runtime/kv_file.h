// A file without a name that holds keys and values: gone with the process, however that ends.
#pragma once
#include <cstdint>
#include <string>

#include "runtime/weight_file.h"

namespace strata {

// Safe from several threads. Offsets, sizes and memory are multiples of kAlign; reads and writes go
// past the page cache where the file system can, and leave nothing in it otherwise.
class KvFile {
 public:
  // In a directory, with its room taken at once. ReadError if that cannot be had.
  KvFile(std::string directory, int64_t bytes);
  ~KvFile();
  KvFile(const KvFile&) = delete;
  KvFile& operator=(const KvFile&) = delete;

  void read(int64_t offset, int64_t bytes, uint8_t* to, ReadCounters& counters) const;
  void write(int64_t offset, int64_t bytes, const uint8_t* from) const;
  bool direct() const { return direct_; }

  static constexpr int64_t kAlign = WeightFile::kBufferAlign;

 private:
  void drop_cached(int64_t offset, int64_t bytes) const;

  std::string directory_;
  bool direct_ = false;
  int fd_ = -1;
};

}  // namespace strata
