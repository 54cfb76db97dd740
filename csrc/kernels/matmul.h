// Matrix products of activation rows with packed weights: one template for all integer formats, one
// for the float ones, and one that decodes whole rows of the rare formats.
//
// Every output is one lane that runs along K alone: an exact integer dot product of 16 or 32
// elements, then one fma into the lane. How many rows, panels or threads share the work therefore
// cannot change a bit of it.
#pragma once
#include "kernels/decode.h"
#include "kernels/weights.h"

namespace strata::STRATA_ISA {

// Activations of one pass over the weights: they stay in the second-level cache.
inline constexpr int64_t kActCacheBytes = 384 * 1024;

STRATA_INLINE void finish(const MatmulArgs& a, int64_t row, int64_t column, F32v acc) {
  const int64_t left = a.n - column;
  float* out = a.out + row * a.out_stride + column;
  const float* bias = a.bias ? a.bias + column : nullptr;
  const float* residual = a.residual ? a.residual + row * a.residual_stride + column : nullptr;
  if (left >= kWidth) {
    if (bias) acc = vadd(acc, vload(bias));
    if (residual) acc = vadd(acc, vload(residual));
    vstore(out, acc);
  } else if (left > 0) {
    const int n = static_cast<int>(left);
    if (bias) acc = vadd(acc, vload_n(bias, n));
    if (residual) acc = vadd(acc, vload_n(residual, n));
    vstore_n(out, acc, n);
  }
}

// A product is made in ranges of K whose weights stay in the first-level cache while all rows pass
// by; between two ranges the sums wait in scratch, so the order along K is the same as without.
inline constexpr int64_t kRangeBytes = 16 * 1024;

struct Range {
  int64_t begin, end;   // in blocks or elements along K
  bool first, last;
};

// kRows rows of activations with kWidth rows of one panel.
template <Format kFormat, int kRows>
static inline void tile(const MatmulArgs& a, const Range& range, int64_t row, int64_t panel,
                        int part, float* sums) {
  using W = Weights<kFormat>;
  const uint8_t* block = a.weight + (panel * (a.k / W::kElements) + range.begin) * W::kBlock;
  const ActBlock* acts[kRows];
  F32v acc[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acts[r] = reinterpret_cast<const ActBlock*>(a.acts + (row + r) * a.act_stride);
    acc[r] = range.first ? vzero() : vload(sums + r * kPanel);
  }
  int64_t at = range.begin * W::kSubs;
  for (int64_t b = range.begin; b < range.end; ++b, block += W::kBlock) {
    typename W::Head head;
    W::head(block, part, head);
    const uint8_t* p = block + W::kHead;
    for (int sub = 0; sub < W::kSubs; ++sub, ++at, p += W::kSub) {
      U8v codes[8];
      F32v scale[2], minimum[2];
#pragma GCC unroll 16
      for (int line = 0; line < W::kSub; line += 64) prefetch(p + 2048 + line);
      W::codes(p, part, codes);
      W::scales(head, p, sub, part, scale, minimum);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const ActBlock& x = acts[r][at];
        const F32v act_scale = vset(x.scale);
#pragma GCC unroll 2
        for (int i = 0; i < W::kParts; ++i) {
          constexpr int groups = 8 / W::kParts;
          const int which = W::kParts == 1 ? 2 : i;
          const I32v start =
              W::kZero ? vshl_i32<W::kZeroShift>(vset_i32(x.nsum[which])) : vset_i32(0);
          const I32v dot =
              vdot<groups, W::kMaxCode>(codes + i * groups, x.q + 4 * groups * i, start);
          acc[r] = vfma(vcvt_f32(dot), vmul(scale[i], act_scale), acc[r]);
          if constexpr (W::kMinima) acc[r] = vfma(minimum[i], vset(x.dsum[which]), acc[r]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (range.last) finish(a, row + r, panel * kPanel + part * kWidth, acc[r]);
    else vstore(sums + r * kPanel, acc[r]);
  }
}

// Calls f(Index<R>, row) for tiles of R rows that cover [row0, row1), the largest first.
template <int kRows, class F> STRATA_INLINE void row_tiles(int64_t row0, int64_t row1, F f) {
  for (; row0 + kRows <= row1; row0 += kRows) f(Index<kRows>{}, row0);
  if constexpr (kRows > 1) row_tiles<kRows % 3 == 0 ? kRows * 2 / 3 : kRows / 2>(row0, row1, f);
}

template <Format kFormat>
static void matmul_codes(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, float* scratch) {
  using W = Weights<kFormat>;
  const int64_t blocks = a.k / W::kElements;
  constexpr int64_t kRangeBlocks = kRangeBytes > W::kBlock ? kRangeBytes / W::kBlock : 1;
  int64_t step = kActCacheBytes / (a.k * 2) / kTileRows * kTileRows;
  if (step < kTileRows) step = kTileRows;
  if (step > 2 * a.k) step = 2 * a.k;   // their sums must fit in scratch
  for (int64_t first = row0; first < row1; first += step) {
    const int64_t last = first + step < row1 ? first + step : row1;
    const int64_t along = last - first > kTileRows ? kRangeBlocks : blocks;
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      for (int64_t begin = 0; begin < blocks; begin += along) {
        const int64_t end = begin + along < blocks ? begin + along : blocks;
        const Range range = {begin, end, begin == 0, end == blocks};
        row_tiles<kTileRows>(first, last, [&](auto rows, int64_t row) {
          float* sums = scratch + (row - first) * kPanel;
          for (int part = 0; part < kPanel / kWidth; ++part) {
            tile<kFormat, rows.value>(a, range, row, panel, part, sums + part * kWidth);
          }
        });
      }
    }
  }
}

// Float weights: a step is what one vector load brings, one element along K (two of BF16).
struct WeightsF32 {
  static constexpr int kStep = 1;
  static constexpr int kBytes = 64;   // of a step, 16 rows
};
struct WeightsF16 {
  static constexpr int kStep = 1;
  static constexpr int kBytes = 32;
};
struct WeightsBf16 {
  static constexpr int kStep = 2;
  static constexpr int kBytes = 64;
};

STRATA_INLINE F32v load_weight(WeightsF32, const uint8_t* p, int part) {
  return vload(reinterpret_cast<const float*>(p) + part * kWidth);
}
STRATA_INLINE F32v load_weight(WeightsF16, const uint8_t* p, int part) {
  return vload_f16(reinterpret_cast<const uint16_t*>(p) + part * kWidth);
}

// kRows rows of activations with kUnits groups of kWidth weight rows, which follow one another at
// `unit`: panels have kPanel / kWidth units each. Rows of x are `stride` bytes apart.
template <class W, int kRows, int kUnits>
static inline void tile_float(const MatmulArgs& a, const uint8_t* weight, int64_t panel_bytes,
                              const uint8_t* x, int64_t stride, int64_t row, int64_t unit,
                              int64_t column) {
  constexpr int kPanelUnits = kPanel / kWidth;
  const uint8_t* w[kUnits];
  int part[kUnits];
  const uint8_t* acts[kRows];
  F32v acc[kRows][kUnits];
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) {
    w[u] = weight + (unit + u) / kPanelUnits * panel_bytes;
    part[u] = static_cast<int>((unit + u) % kPanelUnits);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acts[r] = x + r * stride;
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u) acc[r][u] = vzero();
  }
  if constexpr (W::kStep == 1) {
    for (int64_t k = 0; k < a.k; ++k) {
      F32v v[kUnits];
#pragma GCC unroll 8
      for (int u = 0; u < kUnits; ++u) v[u] = load_weight(W{}, w[u] + k * W::kBytes, part[u]);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32v b = vset(reinterpret_cast<const float*>(acts[r])[k]);
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) acc[r][u] = vfma(v[u], b, acc[r][u]);
      }
    }
  } else if constexpr (kBf16Dot) {
    for (int64_t k = 0; k < (a.k + 1) / 2; ++k) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const uint16_t* pair = reinterpret_cast<const uint16_t*>(acts[r]) + 2 * k;
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) {
          const uint16_t* two = reinterpret_cast<const uint16_t*>(w[u] + k * W::kBytes);
          acc[r][u] = vdot_bf16(acc[r][u], two + 2 * part[u] * kWidth, pair);
        }
      }
    }
  } else {
    const I32v odd = vset_i32(static_cast<int32_t>(0xffff0000u));
    for (int64_t k = 0; k < a.k; k += 2) {
      F32v even_w[kUnits], odd_w[kUnits];
#pragma GCC unroll 8
      for (int u = 0; u < kUnits; ++u) {
        const I32v two = vload_i32(
            reinterpret_cast<const int32_t*>(w[u] + k / 2 * W::kBytes) + part[u] * kWidth);
        even_w[u] = vcast_f32(vshl_i32<16>(two));
        odd_w[u] = vcast_f32(vand_i32(two, odd));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const float* row_x = reinterpret_cast<const float*>(acts[r]) + k;
        const F32v b0 = vset(row_x[0]);
        const F32v b1 = vset(k + 1 < a.k ? row_x[1] : 0.0f);
#pragma GCC unroll 8
        for (int u = 0; u < kUnits; ++u) {
          acc[r][u] = vfma(odd_w[u], b1, vfma(even_w[u], b0, acc[r][u]));
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u) finish(a, row + r, column + u * kWidth, acc[r][u]);
  }
}

// Rows and units of a float tile: accumulators, one vector a unit and a broadcast in registers.
inline constexpr int kFloatRows = kWidth == 8 ? 6 : 8;
inline constexpr int kFloatUnits = 2;

// Output columns from `column` on, whose weights are the units [0, units) at `weight`.
template <class W>
static void rows_by_units(const MatmulArgs& a, const uint8_t* weight, int64_t panel_bytes,
                          const uint8_t* x, int64_t stride, int64_t row0, int64_t rows,
                          int64_t units, int64_t column) {
  int64_t unit = 0;
  const auto all_rows = [&](auto count) {
    int64_t r = 0;
    const auto go = [&](auto tile_rows) {
      for (; r + tile_rows.value <= rows; r += tile_rows.value) {
        tile_float<W, tile_rows.value, count.value>(a, weight, panel_bytes, x + r * stride, stride,
                                                    row0 + r, unit, column + unit * kWidth);
      }
    };
    go(Index<kFloatRows>{});
    go(Index<4>{});
    go(Index<2>{});
    go(Index<1>{});
  };
  for (; unit + kFloatUnits <= units; unit += kFloatUnits) all_rows(Index<kFloatUnits>{});
  for (; unit < units; ++unit) all_rows(Index<1>{});
}

// Activations of BF16 weights, where those are multiplied in pairs: rounded to bf16 in scratch.
inline constexpr int64_t kNarrowRows = 64;
STRATA_INLINE int64_t narrow_stride(int64_t k) { return (2 * k + 63) / 64 * 64; }
STRATA_INLINE void narrow_row(const float* x, int64_t k, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) store_bf16(out + i, load(x + i));
  if (i < k) {
    store_bf16_n(out + i, load_n(x + i, static_cast<int>(k - i)), static_cast<int>(k - i));
    if (k % 2) out[k] = 0;
  }
}

template <class W>
static void matmul_float(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, float* scratch) {
  constexpr int kPanelUnits = kPanel / kWidth;
  const int64_t panel_bytes = (a.k + W::kStep - 1) / W::kStep * W::kBytes;
  const uint8_t* weight = a.weight + panel0 * panel_bytes;
  constexpr bool narrow = W::kStep == 2 && kBf16Dot;
  const int64_t x_bytes = narrow ? narrow_stride(a.k) : 4 * a.k + 4;
  int64_t step = kActCacheBytes / x_bytes / kFloatRows * kFloatRows;
  if (step < kFloatRows) step = kFloatRows;
  if (narrow && step > kNarrowRows) step = kNarrowRows;
  for (int64_t row = row0; row < row1; row += step) {
    const int64_t rows = row + step < row1 ? step : row1 - row;
    const uint8_t* x = a.acts + row * a.act_stride;
    int64_t stride = a.act_stride;
    if constexpr (narrow) {
      for (int64_t r = 0; r < rows; ++r) {
        narrow_row(reinterpret_cast<const float*>(x + r * stride), a.k,
                   reinterpret_cast<uint16_t*>(scratch) + r * (x_bytes / 2));
      }
      x = reinterpret_cast<const uint8_t*>(scratch);
      stride = x_bytes;
    }
    rows_by_units<W>(a, weight, panel_bytes, x, stride, row, rows, (panel1 - panel0) * kPanelUnits,
                     panel0 * kPanel);
  }
}

// The rows of the file, 16 at a time decoded to a panel of floats.
template <Format kFormat>
static void matmul_decoded(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                           int64_t panel1, float* scratch) {
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    decode_panel(kFormat, a.weight, a.n, a.k, panel, scratch);
    rows_by_units<WeightsF32>(a, reinterpret_cast<const uint8_t*>(scratch), 64 * a.k,
                              a.acts + row0 * a.act_stride, a.act_stride, row0, row1 - row0,
                              kPanel / kWidth, panel * kPanel);
  }
}

}  // namespace strata::STRATA_ISA
