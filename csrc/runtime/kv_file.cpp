#include "runtime/kv_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/fail_points.h"

namespace strata {
namespace {

// A file that nobody else can open.
int open_unnamed(const std::string& directory) {
#ifdef O_TMPFILE
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
  if (fd >= 0 || errno == ENOENT || errno == EACCES || errno == EROFS) return fd;
#endif
  std::string name = directory + "/.strata-kv-XXXXXX";
  const int named = ::mkstemp(name.data());
  if (named < 0) return named;
  ::unlink(name.c_str());
  ::fcntl(named, F_SETFD, FD_CLOEXEC);
  return named;
}

}  // namespace

KvFile::KvFile(std::string directory, int64_t bytes) : directory_(std::move(directory)) {
  fd_ = open_unnamed(directory_);
  if (fd_ < 0) {
    throw ReadError("KV on disk: no file can be made in " + directory_ + ": " +
                    std::strerror(errno) + "; name another directory");
  }
  int failure = 0;
  if (fails(FailPoint::write)) failure = ENOSPC;
#ifdef __linux__
  if (failure == 0 && ::fallocate(fd_, 0, 0, bytes) != 0) failure = errno;
#endif
  // Where room cannot be taken ahead, a write finds out.
  if (failure == EOPNOTSUPP || failure == ENOSYS) failure = 0;
  if (failure == 0 && ::ftruncate(fd_, bytes) != 0) failure = errno;
  if (failure != 0) {
    ::close(fd_);
    throw ReadError("KV on disk takes " + std::to_string((bytes + 999999) / 1000000) + "MB in " +
                    directory_ + ": " + std::strerror(failure) +
                    "; make room, name another directory or ask for a smaller context");
  }
#ifdef O_DIRECT
  const int flags = ::fcntl(fd_, F_GETFL);
  direct_ = flags >= 0 && ::fcntl(fd_, F_SETFL, flags | O_DIRECT) == 0;
#endif
}

KvFile::~KvFile() { ::close(fd_); }

void KvFile::drop_cached(int64_t offset, int64_t bytes) const {
#ifdef POSIX_FADV_DONTNEED
  if (!direct_) ::posix_fadvise(fd_, offset, bytes, POSIX_FADV_DONTNEED);
#endif
}

void KvFile::read(int64_t offset, int64_t bytes, uint8_t* to, ReadCounters& counters) const {
  struct Inside {
    explicit Inside(BusyClock& c) : clock(c) { clock.enter(); }
    ~Inside() { clock.leave(); }
    BusyClock& clock;
  } inside(counters.busy);
  const bool cut = meet_read_fault("KV on disk", offset);
  for (int64_t at = 0; at < bytes;) {
    const ssize_t got =
        cut ? 0 : ::pread(fd_, to + at, static_cast<size_t>(bytes - at), offset + at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw ReadError("KV on disk cannot be read in " + directory_ + ": " +
                      (got < 0 ? std::strerror(errno) : "the file ends before its end"));
    }
    at += got;
  }
  drop_cached(offset, bytes);
  ++counters.reads;
  counters.wanted += bytes;
  counters.from_disk += bytes;
}

void KvFile::write(int64_t offset, int64_t bytes, const uint8_t* from) const {
  int failure = fails(FailPoint::write) ? ENOSPC : 0;
  for (int64_t at = 0; failure == 0 && at < bytes;) {
    const ssize_t put = ::pwrite(fd_, from + at, static_cast<size_t>(bytes - at), offset + at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      failure = put < 0 ? errno : ENOSPC;
      break;
    }
    at += put;
  }
  if (failure != 0) {
    throw ReadError("KV cannot be written to disk in " + directory_ + ": " +
                    std::strerror(failure) + "; make room there and ask again");
  }
#ifdef __linux__
  // What is not written yet cannot be dropped.
  if (!direct_) ::sync_file_range(fd_, offset, bytes, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
#endif
  drop_cached(offset, bytes);
}

}  // namespace strata
