// Loads the weights that stay: whole, packed, by several threads through a small staging.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/read_queue.h"
#include "runtime/weight_place.h"

namespace strata {

struct WeightLoad {
  WeightPlacePtr place;
  std::shared_ptr<PackedWeight> weight;
  int64_t panel = 0;   // of the weight, where the place's first one goes
};
// Reads whole weights into packed form with `threads` reads of at most `request_bytes` at a time.
// `check` is called now and then and may throw. ReadError if a file fails, or is another one by now.
void load_weights(const std::vector<WeightLoad>& loads, int threads, int64_t request_bytes,
                  const Check& check, ReadCounters& counters);

}  // namespace strata
