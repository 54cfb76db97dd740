// Weights into block formats: 16 rows at a time, one vector lane a row, so that sums run along a row
// in its order and the bytes are the same on every instruction set and number of threads.
#pragma once
#include <atomic>
#include <cstdint>

#include "kernels/kernels.h"

namespace strata {

constexpr int kEncodeLanes = 16;

struct EncodeCall {
  Format format;               // what is written
  Format source;               // F32, F16 or BF16
  const uint8_t* x;            // [rows, k] of `source`
  int64_t rows;
  int64_t k;
  const float* importance;     // [k] weight of each column's squared error; nullptr: all alike
  // Error propagation (GPTQ): the upper triangular U with U^T U = H^-1, [k, k], for the columns in
  // the order in which `blocks` gives them; nullptr: each value is rounded for itself.
  const float* factor;
  const int32_t* blocks;       // [k / elements] which block comes when; nullptr: from left to right
  uint8_t* out;                // [rows, bytes of a row]
  float* decoded;              // [rows, k] what a reader will see; may be nullptr
  std::atomic<bool>* odd;      // set where a number is NaN or infinite; such rows are not encoded
};

struct EncodeTable {
  const char* name;
  // Encodes rows [16 * panel, 16 * panel + 16). `scratch` has `scratch_floats(k)` floats.
  void (*panel)(const EncodeCall& call, int64_t panel, float* scratch);
};

inline int64_t encode_scratch_floats(int64_t k) { return 2 * k * kEncodeLanes + 64; }

// Elements and bytes of a block of a format that can be written; elements is 0 for others.
struct EncodeShape {
  int elements;
  int bytes;
};
EncodeShape encode_shape(Format f);

const EncodeTable* encode_scalar();
const EncodeTable* encode_avx2();      // nullptr where this processor is of another kind
const EncodeTable* encode_avx512();
const EncodeTable* encode_neon();
// The widest that this processor runs, or the one of that name; nullptr if it cannot run here.
const EncodeTable* select_encoder(const char* name);

}  // namespace strata
