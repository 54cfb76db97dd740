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

// Each tile is a function of its own: compilers need far longer for all of them in one.
#define STRATA_APART static __attribute__((noinline))

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
// Far enough that memory answers in time at full bandwidth, near enough to stay in the first level.
inline constexpr int64_t kPrefetchBytes = 8192;

// Vectors that the 16 rows of a panel make.
inline constexpr int kPanelParts = kPanel / kWidth;

struct Range {
  int64_t begin, end;     // blocks (of codes) or steps (of floats) along K
  bool first, last;
  const uint8_t* limit;   // end of the weights that may be wanted: nothing is fetched from there on
};

template <int kBytes>
STRATA_INLINE void prefetch_ahead(const uint8_t* p, const Range& range) {
  const uint8_t* ahead = range.limit - p > kPrefetchBytes ? p + kPrefetchBytes : p;
#pragma GCC unroll 16
  for (int line = 0; line < kBytes; line += 64) prefetch(ahead + line);
}

// kRows rows of activations with kTileParts * kWidth rows of one panel, from part `part0` on.
template <Format kFormat, int kRows, int kTileParts>
STRATA_APART void tile(const MatmulArgs& a, const Range& range, int64_t row, int64_t panel,
                        int part0, float* sums) {
  using W = Weights<kFormat>;
  const uint8_t* block = a.weight + (panel * (a.k / W::kElements) + range.begin) * W::kBlock;
  const ActBlock* acts[kRows];
  F32v acc[kRows][kTileParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acts[r] = reinterpret_cast<const ActBlock*>(a.acts + (row + r) * a.act_stride);
#pragma GCC unroll 4
    for (int t = 0; t < kTileParts; ++t) {
      acc[r][t] = range.first ? vzero() : vload(sums + r * kPanel + (part0 + t) * kWidth);
    }
  }
  int64_t at = range.begin * W::kSubs;
  for (int64_t b = range.begin; b < range.end; ++b, block += W::kBlock) {
    typename W::template Head<kTileParts> head;
    W::head(block, part0, head);
    const uint8_t* p = block + W::kHead;
    for (int sub = 0; sub < W::kSubs; ++sub, ++at, p += W::kSub) {
      prefetch_ahead<W::kSub>(p, range);
#pragma GCC unroll 4
      for (int t = 0; t < kTileParts; ++t) {
        U8v codes[8];
        F32v scale[2], minimum[2];
        W::codes(p, part0 + t, codes);
        W::scales(head, t, p, sub, part0 + t, scale, minimum);
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
            F32v& sum = acc[r][t];
            sum = vfma(vcvt_f32(dot), vmul(scale[i], act_scale), sum);
            if constexpr (W::kMinima) sum = vfma(minimum[i], vset(x.dsum[which]), sum);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kTileParts; ++t) {
      const int lane = (part0 + t) * kWidth;
      if (range.last) finish(a, row + r, panel * kPanel + lane, acc[r][t]);
      else vstore(sums + r * kPanel + lane, acc[r][t]);
    }
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
  const uint8_t* limit =
      a.weight + (panel1 > a.fetch_end ? panel1 : a.fetch_end) * blocks * W::kBlock;
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
        const Range range = {begin, end, begin == 0, end == blocks, limit};
        row_tiles<kTileRows>(first, last, [&](auto rows, int64_t row) {
          // With few rows memory is the limit: the whole panel at once, so that it is read once.
          constexpr int kTogether = rows.value <= 2 && kVectors ? kPanelParts : 1;
          for (int part = 0; part < kPanelParts; part += kTogether) {
            tile<kFormat, rows.value, kTogether>(a, range, row, panel, part,
                                                 scratch + (row - first) * kPanel);
          }
        });
      }
    }
  }
}

// Float weights: a step is what one vector load brings, one element along K (two of BF16). Steps
// go to two running sums in turn, which hides the latency of the fma in a single row.
inline constexpr int kSums = 2;
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

// Rows at a time, so that their sums fit in scratch: those wait only where K is longer than a range
// (256 steps of F32 at least), and 64 floats a row then take less than 16 K + 1024.
inline constexpr int64_t kMaxFloatStep = 72;

// What the tiles of float weights share: panels and activation rows, by their distance in bytes.
struct FloatRows {
  const uint8_t* weight;
  int64_t panel_bytes;
  const uint8_t* x;
  int64_t stride;
  const uint8_t* limit;   // as in Range
};

// kRows rows of activations, the first of them `row0`, with kUnits units: kWidth weight rows, one
// part of a panel each, counted through all panels.
template <class W, int kRows, int kUnits>
STRATA_APART void tile_float(const MatmulArgs& a, const FloatRows& f, const Range& range,
                              int64_t row0, int64_t r0, int64_t unit, int64_t column,
                              float* sums) {
  const uint8_t* w[kUnits];
  int part[kUnits];
  const uint8_t* x[kRows];
  constexpr int kAll = kUnits * kSums;   // sums of a row: unit u has kSums of them, from u * kSums
  F32v acc[kRows][kAll];
#pragma GCC unroll 16
  for (int u = 0; u < kUnits; ++u) {
    w[u] = f.weight + (unit + u) / kPanelParts * f.panel_bytes;
    part[u] = static_cast<int>((unit + u) % kPanelParts);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    x[r] = f.x + (r0 + r) * f.stride;
#pragma GCC unroll 16
    for (int i = 0; i < kAll; ++i) {
      acc[r][i] = range.first ? vzero() : vload(sums + (r * kAll + i) * kWidth);
    }
  }
  // `count` elements at step k into sum `turn`; fewer than kStep only where K is odd.
  const auto step = [&](int64_t k, auto turn, auto count) {
    const auto each = [&](auto add) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int u = 0; u < kUnits; ++u) {
          F32v& sum = acc[r][u * kSums + turn.value];
          sum = add(x[r], u, sum);
        }
      }
    };
    if constexpr (W::kStep == 1) {
      F32v v[kUnits];
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) v[u] = load_weight(W{}, w[u] + k * W::kBytes, part[u]);
      each([&](const uint8_t* row, int u, F32v sum) {
        return vfma(v[u], vset(reinterpret_cast<const float*>(row)[k]), sum);
      });
    } else if constexpr (kBf16Dot) {
      each([&](const uint8_t* row, int u, F32v sum) {
        const uint16_t* two = reinterpret_cast<const uint16_t*>(w[u] + k * W::kBytes);
        return vdot_bf16(sum, two + 2 * part[u] * kWidth,
                         reinterpret_cast<const uint16_t*>(row) + 2 * k);
      });
    } else {
      F32v even[kUnits], odd[kUnits];
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) {
        const I32v two =
            vload_i32(reinterpret_cast<const int32_t*>(w[u] + k * W::kBytes) + part[u] * kWidth);
        even[u] = vcast_f32(vshl_i32<16>(two));
        odd[u] = vcast_f32(vand_i32(two, vset_i32(static_cast<int32_t>(0xffff0000u))));
      }
      each([&](const uint8_t* row, int u, F32v sum) {
        const float* pair = reinterpret_cast<const float*>(row) + 2 * k;
        sum = vfma(even[u], vset(pair[0]), sum);
        if constexpr (count.value == 2) sum = vfma(odd[u], vset(pair[1]), sum);
        return sum;
      });
    }
  };
  // Rows of floats end at K; rows in scratch are padded with a zero.
  const bool odd_end = W::kStep == 2 && !kBf16Dot && range.last && a.k % 2 != 0;
  const int64_t end = range.end - (odd_end ? 1 : 0);
  constexpr int kUnroll = 4;   // ranges begin at multiples of it, and so at the first sum
  int64_t k = range.begin;
  for (; k + kUnroll <= end; k += kUnroll) {
    // Units that share a panel share its lines.
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; u += kPanelParts) {
      prefetch_ahead<kUnroll * W::kBytes>(w[u] + k * W::kBytes, range);
    }
    unrolled<0, kUnroll>([&](auto i) {
      step(k + i.value, Index<i.value % kSums>{}, Index<W::kStep>{});
    });
  }
  unrolled<0, kUnroll - 1>([&](auto i) {
    if (k < end) step(k++, Index<i.value % kSums>{}, Index<W::kStep>{});
  });
  if (odd_end) step(k, Index<0>{}, Index<1>{});
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    if (range.last) {
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) {
        const F32v sum = vadd(acc[r][u * kSums], acc[r][u * kSums + 1]);
        finish(a, row0 + r, column + u * kWidth, sum);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kAll; ++i) vstore(sums + (r * kAll + i) * kWidth, acc[r][i]);
    }
  }
}

// Output columns from `column` on, whose weights are the units [0, units) of f; output rows from
// `row0` on. `sums` is scratch for rows * 4 * kWidth floats.
template <class W>
static void rows_by_units(const MatmulArgs& a, const FloatRows& f, int64_t row0, int64_t rows,
                          int64_t units, int64_t column, float* sums) {
  const int64_t steps = (a.k + W::kStep - 1) / W::kStep;
  constexpr int64_t kRangeSteps = kRangeBytes / W::kBytes;
  constexpr int kRows = kFloatRows / kSums;
  const int64_t along = rows > kRows ? kRangeSteps : steps;
  const auto all_rows = [&](auto count, int64_t unit) {
    for (int64_t begin = 0; begin < steps; begin += along) {
      const int64_t end = begin + along < steps ? begin + along : steps;
      const Range range = {begin, end, begin == 0, end == steps, f.limit};
      row_tiles<kRows>(0, rows, [&](auto tile_rows, int64_t r) {
        tile_float<W, tile_rows.value, count.value>(a, f, range, row0 + r, r, unit,
                                                    column + unit * kWidth,
                                                    sums + r * count.value * kSums * kWidth);
      });
    }
  };
  // Two units at a time, so that each broadcast of an activation serves two multiplications; with a
  // single row one panel, so that memory is read in one stream.
  int64_t unit = 0;
  if (rows == 1) {
    for (; unit < units; unit += kPanelParts) all_rows(Index<kPanelParts>{}, unit);
    return;
  }
  for (; unit + 2 <= units; unit += 2) all_rows(Index<2>{}, unit);
  for (; unit < units; ++unit) all_rows(Index<1>{}, unit);
}

// Activations of BF16 weights, where those are multiplied in pairs: rounded to bf16 in scratch.
inline constexpr int64_t kNarrowRows = 48;
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
  constexpr bool kNarrow = W::kStep == 2 && kBf16Dot;
  const int64_t panel_bytes = (a.k + W::kStep - 1) / W::kStep * W::kBytes;
  const int64_t x_bytes = kNarrow ? narrow_stride(a.k) : 4 * a.k;
  int64_t step = kActCacheBytes / x_bytes / kFloatRows * kFloatRows;
  if (step < kFloatRows) step = kFloatRows;
  if (kNarrow && step > kNarrowRows) step = kNarrowRows;
  if (step > kMaxFloatStep) step = kMaxFloatStep;
  for (int64_t row = row0; row < row1; row += step) {
    const int64_t rows = row + step < row1 ? step : row1 - row;
    FloatRows f = {a.weight + panel0 * panel_bytes, panel_bytes, a.acts + row * a.act_stride,
                   a.act_stride,
                   a.weight + (panel1 > a.fetch_end ? panel1 : a.fetch_end) * panel_bytes};
    float* sums = scratch;
    if constexpr (kNarrow) {
      for (int64_t r = 0; r < rows; ++r) {
        narrow_row(reinterpret_cast<const float*>(f.x + r * f.stride), a.k,
                   reinterpret_cast<uint16_t*>(scratch) + r * (x_bytes / 2));
      }
      f.x = reinterpret_cast<const uint8_t*>(scratch);
      f.stride = x_bytes;
      sums = scratch + rows * (x_bytes / 4);
    }
    rows_by_units<W>(a, f, row, rows, (panel1 - panel0) * kPanelParts, panel0 * kPanel, sums);
  }
}

// The rows of the file, 16 at a time decoded to a panel of floats.
template <Format kFormat>
static void matmul_decoded(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                           int64_t panel1, float* scratch) {
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    decode_panel(kFormat, a.weight, a.n, a.k, panel, scratch);
    for (int64_t row = row0; row < row1; row += kMaxFloatStep) {
      const int64_t rows = row + kMaxFloatStep < row1 ? kMaxFloatStep : row1 - row;
      const FloatRows f = {reinterpret_cast<const uint8_t*>(scratch), 64 * a.k,
                           a.acts + row * a.act_stride, a.act_stride,
                           reinterpret_cast<const uint8_t*>(scratch + kPanel * a.k)};
      rows_by_units<WeightsF32>(a, f, row, rows, kPanel / kWidth, panel * kPanel,
                                scratch + kPanel * a.k);
    }
  }
}

}  // namespace strata::STRATA_ISA
