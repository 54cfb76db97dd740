// Weights back to floats, bit for bit what strata.quant decodes.
#pragma once
#include "kernels/kernels.h"

namespace strata {

// A row of the file of a format that has a BookLayout.
void decode_row(Format f, const uint8_t* row, int64_t k, float* out);

// The codebook of an IQ format, nullptr where it has none or was not handed over.
const uint8_t* grid_of(Format f);

// The same as the products want it: the codes of all entries as they are added up (book_values), and
// two tables of a byte an entry: fields of two bits, four elements each, or of four bits, two each.
struct Book {
  const uint8_t* codes;
  const uint8_t* fields;
};
Book book_of(Format f);

// Row `row` of a packed weight of any format.
void unpack_row(Format f, const uint8_t* packed, int64_t n, int64_t k, int64_t row, float* out);

}  // namespace strata
