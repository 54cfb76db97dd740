// Codes of the formats that keep the file's rows: integers of 8 bits and float scales, made for the
// products as they are needed. Baseline C++: words of eight codes at a time.
#pragma once
#include "kernels/layout.h"

namespace strata {

// Where the codes of a panel go: for every 32 elements and every `width` lanes (a unit) 32 * width
// bytes of codes, four neighbours along K of each lane together, then `parts` floats a lane.
struct CodesTo {
  uint8_t* at;
  int64_t unit_bytes;   // from the first lanes of a panel to the next ones
  int width;            // lanes of a vector
  bool biased;          // codes are stored as unsigned bytes, 128 more than they are
};

// Blocks [begin, end) of the 16 rows of a panel of an [n, k] weight; rows beyond n are zero.
void unpack_file_rows(Format f, const uint8_t* rows, int64_t n, int64_t k, int64_t panel,
                      int64_t begin, int64_t end, const CodesTo& to);

}  // namespace strata
