#include "runtime/sweep_order.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace strata {

SweepOrder::SweepOrder(std::vector<int> tiles) : tiles_(std::move(tiles)), every_(tiles_.size()) {
  std::iota(every_.begin(), every_.end(), 0);
}

void SweepOrder::advance() {
  if (++tile_ < tiles_[static_cast<size_t>(track())]) return;
  tile_ = 0;
  if (++position_ < reading().size()) return;
  position_ = 0;
  ++reading_sweep_;
}

bool SweepOrder::begin(std::vector<int> order) {
  bool serves = left_ == 0;
  ++sweep_;
  if (reading_sweep_ > sweep_) {
    serves = serves && order == every_;
  } else if (serves) {
    const auto read = every_.begin() + static_cast<int64_t>(position_) + 1;
    serves = order.size() > position_ && std::equal(every_.begin(), read, order.begin());
  }
  order_ = std::move(order);
  left_ = 0;
  for (const int track : order_) left_ += tiles_[static_cast<size_t>(track)];
  return serves;
}

void SweepOrder::rewind() {
  reading_sweep_ = sweep_;
  position_ = 0;
  tile_ = 0;
}

}  // namespace strata
