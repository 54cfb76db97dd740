#include "runtime/row_cache.h"

#include <algorithm>
#include <cstring>

namespace strata {
namespace {

uint64_t key_of(int64_t table, int64_t row) {
  return (static_cast<uint64_t>(table) * RowCache::kMostRows + static_cast<uint64_t>(row)) + 1;
}

// The last step of MurmurHash3 by Appleby, without which neighbouring rows would share few sets.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

}  // namespace

RowCache::RowCache(int64_t bytes, int64_t row_bytes)
    : row_bytes_(row_bytes),
      sets_(bytes / (kWays * (row_bytes + static_cast<int64_t>(sizeof(Entry))))),
      data_(static_cast<size_t>(sets_ * kWays * (row_bytes + static_cast<int64_t>(sizeof(Entry)))),
            true) {}

RowCache::Entry* RowCache::set_of(uint64_t key) {
  const uint64_t set = mixed(key) % static_cast<uint64_t>(sets_);
  return reinterpret_cast<Entry*>(data_.data()) + set * kWays;
}

uint8_t* RowCache::row_of(const Entry* entry) {
  const auto* first = reinterpret_cast<const Entry*>(data_.data());
  return data_.data() + rows() * static_cast<int64_t>(sizeof(Entry)) + (entry - first) * row_bytes_;
}

bool RowCache::find(int64_t table, int64_t row, int64_t bytes, uint8_t* out) {
  if (sets_ == 0) return false;
  const uint64_t key = key_of(table, row);
  const std::lock_guard<std::mutex> guard(lock_);
  Entry* set = set_of(key);
  Entry* found = std::find_if(set, set + kWays, [&](const Entry& e) { return e.key == key; });
  if (found == set + kWays) return false;
  found->used = ++now_;
  std::memcpy(out, row_of(found), static_cast<size_t>(bytes));
  ++hits_;
  return true;
}

void RowCache::put(int64_t table, int64_t row, int64_t bytes, const uint8_t* data) {
  if (sets_ == 0) return;
  const uint64_t key = key_of(table, row);
  const std::lock_guard<std::mutex> guard(lock_);
  Entry* set = set_of(key);
  // Another thread may have read the same row meanwhile.
  Entry* to = std::find_if(set, set + kWays, [&](const Entry& e) { return e.key == key; });
  if (to == set + kWays) {
    to = std::min_element(set, set + kWays,
                          [](const Entry& a, const Entry& b) { return a.used < b.used; });
  }
  *to = {key, ++now_};
  std::memcpy(row_of(to), data, static_cast<size_t>(bytes));
}

}  // namespace strata
