// Products with float weights: of 32, 16 and 8 bits.
//
// Every output is two running sums along K, one for each of the steps in turn, which are added at
// the end: how many rows, panels or threads share the work cannot change a bit of it.
#pragma once
#include "kernels/matmul.h"

namespace strata::STRATA_ISA {

// Float weights: a step is what one vector load brings, one element along K (two of BF16). Steps
// go to two running sums in turn, which hides the latency of the fma in a single row.
inline constexpr int kSums = 2;
// Steps that are loaded together.
inline constexpr int kStepsTogether = 4;
template <int kStepOf, int kBytesOf> struct Steps {
  static constexpr int kStep = kStepOf;
  static constexpr int kBytes = kBytesOf;   // of a step, 16 rows
  // Bytes before a step.
  static constexpr int64_t at(int64_t step) { return step * kBytes; }
};
struct WeightsF32 : Steps<1, 64> {};
struct WeightsF16 : Steps<1, 32> {};
struct WeightsBf16 : Steps<2, 64> {};
struct WeightsF8 : Steps<1, 16> {
  // Of a block, after its scales.
  static constexpr int64_t at(int64_t step) {
    return step / kF8Block * f8_panel_bytes(kF8Block) + step % kF8Block * kBytes;
  }
};

// The weights of step `first` + i of a panel, the two of which are no multiple of kStepsTogether apart.
STRATA_INLINE F32v load_weight(WeightsF32, const uint8_t* panel, int64_t first, int i, int part) {
  return vload(reinterpret_cast<const float*>(panel + WeightsF32::at(first + i)) + part * kWidth);
}
STRATA_INLINE F32v load_weight(WeightsF16, const uint8_t* panel, int64_t first, int i, int part) {
  return vload_f16(reinterpret_cast<const uint16_t*>(panel + WeightsF16::at(first + i)) +
                   part * kWidth);
}
STRATA_INLINE F32v load_weight(WeightsF8, const uint8_t* panel, int64_t first, int i, int part) {
  const uint8_t* block = panel + first / kF8Block * f8_panel_bytes(kF8Block);
  const uint8_t* codes = block + kF8Scales + (first % kF8Block + i) * WeightsF8::kBytes;
  // Sign, exponent and mantissa to where a float has them: 2^120 too small, subnormal ones too.
  const I32v bits = vand_i32(vshl_i32<20>(vload_s8_i32(codes + part * kWidth)),
                             vset_i32(static_cast<int32_t>(0x87f00000u)));
  const F32v number = vmul(vcast_f32(bits), vset(0x1p120f));
  const F32v all_ones = vset(480.0f), nan = vcast_f32(vset_i32(0x7fc00000));
  const F32v value = vselect_lt(vabs(number), all_ones, number, nan);
  return vmul(vload(reinterpret_cast<const float*>(block) + part * kWidth), value);
}

// Rows that pass over float weights together.
inline constexpr int64_t kMostFloatRows = 128;

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
                              int64_t row0, int64_t r0, int64_t unit, int64_t column) {
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
    for (int i = 0; i < kAll; ++i) acc[r][i] = vzero();
  }
  // `count` elements at step first + i into sum `turn`; fewer than kStep only where K is odd.
  const auto step = [&](int64_t first, int i, auto turn, auto count) {
    const int64_t k = first + i;
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
      for (int u = 0; u < kUnits; ++u) v[u] = load_weight(W{}, w[u], first, i, part[u]);
      each([&](const uint8_t* row, int u, F32v sum) {
        return vfma(v[u], vset(reinterpret_cast<const float*>(row)[k]), sum);
      });
    } else if constexpr (kBf16Dot) {
      each([&](const uint8_t* row, int u, F32v sum) {
        const uint16_t* two = reinterpret_cast<const uint16_t*>(w[u] + W::at(k));
        return vdot_bf16(sum, two + 2 * part[u] * kWidth,
                         reinterpret_cast<const uint16_t*>(row) + 2 * k);
      });
    } else {
      F32v even[kUnits], odd[kUnits];
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) {
        const I32v two =
            vload_i32(reinterpret_cast<const int32_t*>(w[u] + W::at(k)) + part[u] * kWidth);
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
  // Rows of floats end at K; rows of bf16 are padded with zeros.
  const bool odd_end = W::kStep == 2 && !kBf16Dot && a.k % 2 != 0;
  const int64_t end = range.end - (odd_end ? 1 : 0);
  int64_t k = 0;
  for (; k + kStepsTogether <= end; k += kStepsTogether) {
    // Units that share a panel share its lines.
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; u += kPanelParts) {
      prefetch_ahead<kStepsTogether * W::kBytes>(w[u] + W::at(k), range);
    }
    unrolled<0, kStepsTogether>([&](auto i) {
      step(k, i.value, Index<i.value % kSums>{}, Index<W::kStep>{});
    });
  }
  unrolled<0, kStepsTogether - 1>([&](auto i) {
    if (k < end) step(k++, 0, Index<i.value % kSums>{}, Index<W::kStep>{});
  });
  if (odd_end) step(k, 0, Index<0>{}, Index<1>{});
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      const F32v sum = vadd(acc[r][u * kSums], acc[r][u * kSums + 1]);
      finish(a, row0 + r, column + u * kWidth, sum);
    }
  }
}

// Few rows: output columns from `column` on, whose weights are the units [0, units) of f.
template <class W>
static void few_rows(const MatmulArgs& a, const FloatRows& f, int64_t row0, int64_t rows,
                     int64_t units, int64_t column) {
  constexpr int kRows = kFloatRows / kSums;
  const Range range = {0, (a.k + W::kStep - 1) / W::kStep, true, true, f.limit};
  const auto all_rows = [&](auto count, int64_t unit) {
    row_tiles<kRows>(0, rows, [&](auto tile_rows, int64_t r) {
      tile_float<W, tile_rows.value, count.value>(a, f, range, row0 + r, r, unit,
                                                  column + unit * kWidth);
    });
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

// A range of a unit of float weights as many rows read it: steps of `stride` bytes. F16 and F8
// become floats first, and so does BF16 where it is not multiplied in pairs.
template <class W> struct ManyRows {
  static constexpr bool kDirect = W::kBytes == 64 && (W::kStep == 1 || kBf16Dot);
  static constexpr int kStride = kDirect ? 64 : W::kStep * kWidth * static_cast<int>(sizeof(float));
  static constexpr int64_t kSteps = 256;   // of a range; a multiple of kSums and kF8Block
  static constexpr int64_t kUnpackedFloats = kDirect ? 0 : kSteps * kStride / 4;   // of a unit
};

template <class W>
STRATA_APART void unpack_unit(const FloatRows& f, const Range& range, int64_t unit, float* to) {
  const uint8_t* w = f.weight + unit / kPanelParts * f.panel_bytes;
  const int part = static_cast<int>(unit % kPanelParts);
  for (int64_t k = range.begin; k < range.end; ++k, to += W::kStep * kWidth) {
    if constexpr (W::kStep == 1) {
      vstore(to, load_weight(W{}, w, k, 0, part));
    } else {
      const I32v two =
          vload_i32(reinterpret_cast<const int32_t*>(w + W::at(k)) + part * kWidth);
      vstore(to, vcast_f32(vshl_i32<16>(two)));
      vstore(to + kWidth, vcast_f32(vand_i32(two, vset_i32(static_cast<int32_t>(0xffff0000u)))));
    }
  }
}

// The steps of one turn (which of the running sums they go to) of a range: with one sum a row and
// unit, a load of a weight or an activation serves more products than in `tile_float`. Sums of turn 0 wait in
// scratch for those of turn 1. The same function for all weights that are alike once unpacked: kStep
// elements in kStride bytes.
template <int kStep, int kStride, int kRows, int kUnits>
STRATA_APART void tile_turn(const MatmulArgs& a, const FloatRows& f, const Range& range,
                            const uint8_t* const* weights, int turn, int64_t rows, int64_t row0,
                            int64_t r0, int64_t column, const Sums& sums) {
  const uint8_t* w[kUnits];
  const uint8_t* x[kRows];
  F32v acc[kRows][kUnits];
  constexpr int kElement = kStep == 2 && kBf16Dot ? 2 : 4;
#pragma GCC unroll 16
  for (int u = 0; u < kUnits; ++u) w[u] = weights[u];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    x[r] = f.x + (r0 + r) * f.stride + range.begin * kStep * kElement;
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      acc[r][u] = range.first
                      ? vzero()
                      : vload(sums.at + u * sums.unit + (turn * rows + r) * kWidth);
    }
  }
  const int64_t steps = range.end - range.begin;
  // Rows of floats end at K, which may leave half a step; those of bf16 are padded with zeros.
  const bool odd_end = kStep == 2 && !kBf16Dot && range.last && a.k % 2 != 0;
  const int64_t whole = steps - (odd_end ? 1 : 0);
  const auto element = [&](int64_t k, int e) {
    F32v v[kUnits];
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      v[u] = vload(reinterpret_cast<const float*>(w[u] + k * kStride) + e * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F32v one = vset(reinterpret_cast<const float*>(x[r])[k * kStep + e]);
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) acc[r][u] = vfma(v[u], one, acc[r][u]);
    }
  };
  for (int64_t k = turn; k < whole; k += kSums) {
    if constexpr (kStep == 2 && kBf16Dot) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int u = 0; u < kUnits; ++u) {
          acc[r][u] =
              vdot_bf16(acc[r][u], reinterpret_cast<const uint16_t*>(w[u] + k * kStride),
                        reinterpret_cast<const uint16_t*>(x[r]) + 2 * k);
        }
      }
    } else {
      unrolled<0, kStep>([&](auto e) { element(k, e.value); });
    }
  }
  if (odd_end && whole % kSums == turn) element(whole, 0);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      float* waiting = sums.at + u * sums.unit + r * kWidth;
      if (range.last && turn == 1) {
        finish(a, row0 + r, column + u * kWidth, vadd(vload(waiting), acc[r][u]));
      } else {
        vstore(waiting + turn * rows * kWidth, acc[r][u]);
      }
    }
  }
}

// Activations of BF16 weights as those are multiplied in pairs.
static void narrow_row(const float* x, int64_t k, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) store_bf16(out + i, load(x + i));
  if (i < k) {
    store_bf16_n(out + i, load_n(x + i, static_cast<int>(k - i)), static_cast<int>(k - i));
    i = k;
  }
  for (; i % 32; ++i) out[i] = 0;
}
inline constexpr void (*kNarrowRow)(const float*, int64_t, uint16_t*) =
    kBf16Dot ? narrow_row : nullptr;

// Many rows, all of which fit in scratch, with units [0, units) of f: range after range of K, as
// many units at a time as there is scratch for their sums.
template <class W>
static void many_rows(const MatmulArgs& a, const FloatRows& f, int64_t row0, int64_t rows,
                      int64_t units, int64_t column, float* scratch, int64_t floats) {
  using M = ManyRows<W>;
  const int64_t steps = (a.k + W::kStep - 1) / W::kStep;
  float* unpacked = scratch;
  float* waiting = unpacked + kTurnUnits * M::kUnpackedFloats;
  const int64_t unit_floats = rows * kSums * kWidth;
  int64_t group = (scratch + floats - waiting) / unit_floats;
  if (group > kGroupPanels * kPanelParts) group = kGroupPanels * kPanelParts;
  group = group / kTurnUnits * kTurnUnits;
  for (int64_t unit0 = 0; unit0 < units; unit0 += group) {
    const int64_t end_unit = unit0 + group < units ? unit0 + group : units;
    for (int64_t begin = 0; begin < steps; begin += M::kSteps) {
      const int64_t end = begin + M::kSteps < steps ? begin + M::kSteps : steps;
      const Range range = {begin, end, begin == 0, end == steps, f.limit};
      for (int64_t unit = unit0; unit < end_unit; unit += kTurnUnits) {
        const int64_t left = end_unit - unit;
        const int now = static_cast<int>(left < kTurnUnits ? left : kTurnUnits);
        const uint8_t* w[kTurnUnits] = {};
        for (int u = 0; u < now; ++u) {
          if constexpr (M::kDirect) {
            w[u] = f.weight + (unit + u) / kPanelParts * f.panel_bytes + W::at(begin) +
                   (unit + u) % kPanelParts * kWidth * 4;
          } else {
            unpack_unit<W>(f, range, unit + u, unpacked + u * M::kUnpackedFloats);
            w[u] = reinterpret_cast<const uint8_t*>(unpacked + u * M::kUnpackedFloats);
          }
        }
        // What comes next is asked for meanwhile: this range of the next panels, or the next range.
        const bool more = left > kTurnUnits;
        const int64_t next_unit = more || end == steps ? unit + now : unit0;
        const int64_t next_step = more ? begin : end == steps ? 0 : end;
        const uint8_t* next =
            f.weight + next_unit / kPanelParts * f.panel_bytes + W::at(next_step);
        const int64_t next_bytes = W::at(M::kSteps);
        const int64_t slice = (next_bytes * kTurnRows / rows + 127) / 64 * 64;
        // One turn after the other: the lines of half a range fit the first-level cache.
        for (int turn = 0; turn < kSums; ++turn) {
          row_tiles<kTurnRows>(0, rows, [&](auto tile_rows, int64_t r) {
            for (int p = 0; turn == 0 && p < (kTurnUnits + kPanelParts - 1) / kPanelParts; ++p) {
              const uint8_t* from = next + p * f.panel_bytes;
              const int64_t done = r / kTurnRows * slice;
              for (int64_t i = done; i < done + slice && i < next_bytes; i += 64) {
                if (from + i < f.limit) prefetch_far(from + i);
              }
            }
            const Sums sums = {waiting + (unit - unit0) * unit_floats + r * kWidth, unit_floats};
            unrolled<1, kTurnUnits + 1>([&](auto count) {
              if (now != count.value) return;
              tile_turn<W::kStep, M::kStride, tile_rows.value, count.value>(
                  a, f, range, w, turn, rows, row0 + r, r, column + unit * kWidth, sums);
            });
          });
        }
      }
    }
  }
}

// Rows that many_rows has scratch for, with units of one tile; 0 where they are too few for it.
template <class W> STRATA_INLINE int64_t most_rows(int64_t floats) {
  using M = ManyRows<W>;
  const int64_t row = kTurnUnits * kSums * kWidth;
  const int64_t rows = (floats - kTurnUnits * M::kUnpackedFloats) / row / kTurnRows * kTurnRows;
  return rows < kFloatRows ? 0 : rows < kMostFloatRows ? rows : kMostFloatRows;
}

template <class W>
static void matmul_float(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, float* scratch) {
  constexpr bool kNarrow = W::kStep == 2 && kBf16Dot;
  const int64_t panel_bytes = W::at((a.k + W::kStep - 1) / W::kStep);
  const int64_t end_panel = panel1 > a.fetch_end ? panel1 : a.fetch_end;
  const int64_t units = (panel1 - panel0) * kPanelParts, floats = matmul_scratch_floats(a.k);
  const auto from = [&](int64_t row) -> FloatRows {
    const uint8_t* acts = kNarrow ? a.narrow : a.acts;
    const int64_t stride = kNarrow ? a.narrow_stride : a.act_stride;
    return {a.weight + panel0 * panel_bytes, panel_bytes, acts + row * stride, stride,
            a.weight + end_panel * panel_bytes};
  };
  int64_t row = row0;
  const int64_t most = most_rows<W>(floats);
  while (most && row1 - row > kFloatRows) {
    const int64_t rows = row1 - row < most ? row1 - row : most;
    many_rows<W>(a, from(row), row, rows, units, panel0 * kPanel, scratch, floats);
    row += rows;
  }
  for (; row < row1; row += kFloatRows) {
    const int64_t rows = row1 - row < kFloatRows ? row1 - row : kFloatRows;
    few_rows<W>(a, from(row), row, rows, units, panel0 * kPanel);
  }
}

}  // namespace strata::STRATA_ISA
