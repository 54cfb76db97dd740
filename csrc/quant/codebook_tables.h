// The grids of IQ1 to IQ3 as floats, and which of their points lie near any point of their levels.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace strata {

constexpr int kNear = 16;   // grid points that are tried for a group of values

struct Codebook {
  int dims;                      // 8 or 4 values a point
  int count;                     // points
  std::vector<float> levels;     // that a coordinate may have, ascending
  std::vector<float> points;     // [count, dims]
  std::vector<uint16_t> near;    // [levels^dims, kNear], nearest first
};

// Made at the first call for a format whose grid was handed over; nullptr for any other.
const Codebook* codebook_of(Format f);

}  // namespace strata
