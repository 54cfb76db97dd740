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

// Activations of one range of K stay in the second-level cache while the weights pass by.
inline constexpr int64_t kActCacheBytes = 512 * 1024;
// Panels whose sums wait between two ranges, in the same cache.
inline constexpr int64_t kGroupPanels = 8;

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

// A product of many rows is made in ranges of K whose weights stay in the first-level cache while
// all rows pass by; between two ranges the sums wait in scratch, so the order along K is the same
// as without. Codes are unpacked for all rows at once.
inline constexpr int64_t kRangeBytes = 16 * 1024;
inline constexpr int64_t kUnpackedBytes = 37 * 1024;
// Rows from which on unpacking first is faster.
inline constexpr int64_t kFewRows = 2 * kTileRows;
// Far enough that memory answers in time at full bandwidth, near enough to stay in the first level.
inline constexpr int64_t kPrefetchBytes = 8192;

// Vectors that the 16 rows of a panel make. A unit is one of them, counted through all panels.
inline constexpr int kPanelParts = kPanel / kWidth;
// Units that the larger tiles work on: each broadcast of activations then serves as many.
inline constexpr int kStepUnits = kSharedActs ? 2 * kPanelParts : kPanelParts;

struct Range {
  int64_t begin, end;     // blocks (of codes) or steps (of floats) along K
  bool first, last;
  const uint8_t* limit;   // end of the weights that may be wanted: nothing is fetched from there on
};

// Sums of a tile between two ranges: `unit` floats lie between those of its units.
struct Sums {
  float* at;
  int64_t unit;
};

template <int kBytes>
STRATA_INLINE void prefetch_ahead(const uint8_t* p, const Range& range) {
  const uint8_t* ahead = range.limit - p > kPrefetchBytes ? p + kPrefetchBytes : p;
#pragma GCC unroll 16
  for (int line = 0; line < kBytes; line += 64) prefetch(ahead + line);
}

// Dot products of N code vectors of each unit, from `first` on, with 4 * N activations.
template <int N, int kMaxCode, int kUnits>
STRATA_INLINE void dots(const U8v (&codes)[kUnits][8], int first, const int8_t* q, I32v start,
                        I32v (&out)[kUnits]) {
  if constexpr (kUnits == 2 && kSharedActs) {
    out[0] = out[1] = start;
    vdot_two<N>(codes[0] + first, codes[1] + first, q, out[0], out[1]);
  } else {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) out[u] = vdot<N, kMaxCode>(codes[u] + first, q, start);
  }
}

// kRows rows of activations with kUnits units, from `unit` on: parts of one panel, or whole panels.
// `fetch`: whether these are the first rows that need the weights.
template <Format kFormat, int kRows, int kUnits>
STRATA_APART void tile(const MatmulArgs& a, const Range& range, int64_t row, int64_t unit,
                        bool fetch) {
  using W = Weights<kFormat>;
  constexpr int kParts = kUnits < kPanelParts ? kUnits : kPanelParts;   // of each panel
  constexpr int kPanels = kUnits / kParts;
  const int64_t panel = unit / kPanelParts;
  const int part0 = static_cast<int>(unit % kPanelParts);
  const int64_t panel_bytes = a.k / W::kElements * W::kBlock;
  const uint8_t* block = a.weight + panel * panel_bytes;
  const ActBlock* acts[kRows];
  F32v acc[kRows][kUnits];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acts[r] = reinterpret_cast<const ActBlock*>(a.acts + (row + r) * a.act_stride);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) acc[r][u] = vzero();
  }
  int64_t at = 0;
  for (int64_t b = 0; b < range.end; ++b, block += W::kBlock) {
    typename W::template Head<kParts> heads[kPanels];
#pragma GCC unroll 2
    for (int i = 0; i < kPanels; ++i) W::head(block + i * panel_bytes, part0, heads[i]);
    const uint8_t* p = block + W::kHead;
    for (int sub = 0; sub < W::kSubs; ++sub, ++at, p += W::kSub) {
      U8v codes[kUnits][8];
      F32v scale[kUnits][2], minimum[kUnits][2];
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; ++u) {
        const uint8_t* here = p + u / kParts * panel_bytes;
        if (fetch && u % kParts == 0) prefetch_ahead<W::kSub>(here, range);
        W::codes(here, part0 + u % kParts, codes[u]);
        W::scales(heads[u / kParts], u % kParts, here, sub, part0 + u % kParts, scale[u],
                  minimum[u]);
      }
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
          I32v dot[kUnits];
          dots<groups, W::kMaxCode>(codes, i * groups, x.q + 4 * groups * i, start, dot);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) {
            F32v& sum = acc[r][u];
            sum = vfma(vcvt_f32(dot[u]), vmul(scale[u][i], act_scale), sum);
            if constexpr (W::kMinima) sum = vfma(minimum[u][i], vset(x.dsum[which]), sum);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) finish(a, row + r, (unit + u) * kWidth, acc[r][u]);
  }
}

// Calls f(Index<R>, row) for tiles of R rows that cover [row0, row1), the largest first.
template <int kRows, class F> STRATA_INLINE void row_tiles(int64_t row0, int64_t row1, F f) {
  for (; row0 + kRows <= row1; row0 += kRows) f(Index<kRows>{}, row0);
  if constexpr (kRows > 1) row_tiles<kRows % 3 == 0 ? kRows * 2 / 3 : kRows / 2>(row0, row1, f);
}

// Rows [first, last) with kUnits units. Few rows wait for memory, and take them all at once so that
// they are read once; more rows as many as registers hold.
template <Format kFormat, int kUnits>
static void units_of_rows(const MatmulArgs& a, const Range& range, int64_t first, int64_t last,
                          int64_t unit) {
  row_tiles<kTileRows>(first, last, [&](auto rows, int64_t row) {
    constexpr int kMost = rows.value <= 2 && kVectors ? kUnits : kSharedActs ? 2 : 1;
    constexpr int kTogether = kMost < kUnits ? kMost : kUnits;
    for (int u = 0; u < kUnits; u += kTogether) {
      tile<kFormat, rows.value, kTogether>(a, range, row, unit + u, row == first);
    }
  });
}

// What is unpacked of 32 elements for one unit: their codes, then scales and minima as floats.
template <Format kFormat> struct Unpacked {
  using W = Weights<kFormat>;
  static constexpr int kCodes = 32 * kWidth;
  static constexpr int kBytes =
      kCodes + W::kParts * (W::kMinima ? 2 : 1) * kWidth * static_cast<int>(sizeof(float));
  // Blocks of a range, of kStepUnits units.
  static constexpr int64_t kBlocks = kUnpackedBytes / (kStepUnits * W::kSubs * kBytes);
  static_assert(kBlocks > 0);
};

// Unpacks a range of `units` units from `unit` on, one unit after the other.
template <Format kFormat>
STRATA_APART void unpack_units(const MatmulArgs& a, const Range& range, int64_t unit, int64_t units,
                               uint8_t* to) {
  using W = Weights<kFormat>;
  using U = Unpacked<kFormat>;
  const int64_t panel_bytes = a.k / W::kElements * W::kBlock;
  const int64_t unit_bytes = (range.end - range.begin) * W::kSubs * U::kBytes;
  for (int64_t done = 0; done < units; done += kPanelParts) {
    const uint8_t* block =
        a.weight + (unit + done) / kPanelParts * panel_bytes + range.begin * W::kBlock;
    uint8_t* out = to + done * unit_bytes;
    for (int64_t b = range.begin; b < range.end; ++b, block += W::kBlock) {
      typename W::template Head<kPanelParts> head;
      W::head(block, 0, head);
      const uint8_t* p = block + W::kHead;
      for (int sub = 0; sub < W::kSubs; ++sub, p += W::kSub, out += U::kBytes) {
#pragma GCC unroll 4
        for (int t = 0; t < kPanelParts; ++t) {
          U8v codes[8];
          F32v scale[2], minimum[2];
          W::codes(p, t, codes);
          W::scales(head, t, p, sub, t, scale, minimum);
          uint8_t* here = out + t * unit_bytes;
#pragma GCC unroll 8
          for (int g = 0; g < 8; ++g) vstore_u8(here + g * 4 * kWidth, codes[g]);
          float* floats = reinterpret_cast<float*>(here + U::kCodes);
#pragma GCC unroll 2
          for (int i = 0; i < W::kParts; ++i) {
            vstore(floats + i * kWidth, scale[i]);
            if constexpr (W::kMinima) vstore(floats + (W::kParts + i) * kWidth, minimum[i]);
          }
        }
      }
    }
  }
}

// `tile` on unpacked weights: the same numbers in the same order, and the same function for all
// formats that are alike once unpacked.
template <int kParts, bool kMinima, int kZero, int kMaxCode, int kRows, int kUnits>
STRATA_APART void tile_unpacked(const MatmulArgs& a, const Range& range, int64_t begin,
                                int64_t subs, const uint8_t* weights, int64_t row, int64_t unit,
                                const Sums& sums) {
  constexpr int kBytes = 32 * kWidth + kParts * (kMinima ? 2 : 1) * kWidth * 4;
  const int64_t unit_bytes = subs * kBytes;
  const ActBlock* acts[kRows];
  F32v acc[kRows][kUnits];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acts[r] = reinterpret_cast<const ActBlock*>(a.acts + (row + r) * a.act_stride) + begin;
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      acc[r][u] = range.first ? vzero() : vload(sums.at + u * sums.unit + r * kWidth);
    }
  }
  for (int64_t at = 0; at < subs; ++at, weights += kBytes) {
    U8v codes[kUnits][8];
    F32v floats[kUnits][kParts * (kMinima ? 2 : 1)];
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      const uint8_t* here = weights + u * unit_bytes;
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) codes[u][g] = vload_u8(here + g * 4 * kWidth);
#pragma GCC unroll 4
      for (int i = 0; i < kParts * (kMinima ? 2 : 1); ++i) {
        floats[u][i] =
            vload(reinterpret_cast<const float*>(here + 32 * kWidth) + i * kWidth);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const ActBlock& x = acts[r][at];
      const F32v act_scale = vset(x.scale);
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        constexpr int groups = 8 / kParts;
        const int which = kParts == 1 ? 2 : i;
        const I32v start =
            kZero ? vshl_i32<log2_of(kZero)>(vset_i32(x.nsum[which])) : vset_i32(0);
        I32v dot[kUnits];
        dots<groups, kMaxCode>(codes, i * groups, x.q + 4 * groups * i, start, dot);
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
          F32v& sum = acc[r][u];
          sum = vfma(vcvt_f32(dot[u]), vmul(floats[u][i], act_scale), sum);
          if constexpr (kMinima) sum = vfma(floats[u][kParts + i], vset(x.dsum[which]), sum);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      if (range.last) finish(a, row + r, (unit + u) * kWidth, acc[r][u]);
      else vstore(sums.at + u * sums.unit + r * kWidth, acc[r][u]);
    }
  }
}

// Rows [first, last) with `units` units, unpacked to `room`. Meanwhile the weights that come next,
// `next_bytes` of each panel from `next` on, are asked for.
template <Format kFormat>
static void unpacked_rows(const MatmulArgs& a, const Range& range, int64_t first, int64_t last,
                          int64_t unit, int64_t units, uint8_t* room, const Sums& sums,
                          const uint8_t* next) {
  using W = Weights<kFormat>;
  constexpr int kTile = kSharedActs ? 2 : 1;
  constexpr int kMaxCode = kSharedActs ? 255 : W::kMaxCode;   // of no matter there
  const int64_t subs = (range.end - range.begin) * W::kSubs;
  const int64_t panel_bytes = a.k / W::kElements * W::kBlock;
  const int64_t range_bytes = (range.end - range.begin) * W::kBlock;
  unpack_units<kFormat>(a, range, unit, units, room);
  const int64_t slice = (range_bytes * kTileRows / (last - first) + 127) / 64 * 64;
  int64_t fetched = 0;
  row_tiles<kTileRows>(first, last, [&](auto rows, int64_t row) {
    for (int64_t panel = 0; panel < units / kPanelParts; ++panel) {
      const uint8_t* from = next + panel * panel_bytes;
      for (int64_t i = fetched; i < fetched + slice && i < range_bytes; i += 64) {
        if (from + i < range.limit) prefetch_far(from + i);
      }
    }
    fetched += slice;
    const auto some = [&](auto count, int64_t u) {
      const Sums these = {sums.at + u * sums.unit + (row - first) * kWidth, sums.unit};
      tile_unpacked<W::kParts, W::kMinima, W::kZero, kMaxCode, rows.value, count.value>(
          a, range, range.begin * W::kSubs, subs, room + u * subs * Unpacked<kFormat>::kBytes, row,
          unit + u, these);
    };
    int64_t u = 0;
    for (; u + kTile <= units; u += kTile) some(Index<kTile>{}, u);
    if constexpr (kTile > 1) {
      if (u < units) some(Index<1>{}, u);
    }
  });
}

// Many rows: range after range of K, a few panels at a time.
template <Format kFormat>
static void matmul_unpacked(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                            int64_t panel1, float* scratch) {
  using W = Weights<kFormat>;
  const int64_t blocks = a.k / W::kElements, units = panel1 * kPanelParts;
  const int64_t panel_bytes = blocks * W::kBlock;
  const uint8_t* limit =
      a.weight + (panel1 > a.fetch_end ? panel1 : a.fetch_end) * panel_bytes;
  const int64_t ranges = (blocks + Unpacked<kFormat>::kBlocks - 1) / Unpacked<kFormat>::kBlocks;
  const int64_t along = (blocks + ranges - 1) / ranges;
  // The unpacked range comes first in scratch; it takes no more than 12 floats an element of K.
  uint8_t* room = reinterpret_cast<uint8_t*>(scratch);
  float* waiting = scratch + (ranges > 1 ? kUnpackedBytes / 4 : 0);
  const int64_t floats = matmul_scratch_floats(a.k) - kUnpackedBytes / 4;
  int64_t step = kActCacheBytes / (along * W::kSubs * static_cast<int64_t>(sizeof(ActBlock)));
  step = step < kTileRows ? kTileRows : step / kTileRows * kTileRows;
  for (int64_t first = row0; first < row1; first += step) {
    const int64_t last = first + step < row1 ? first + step : row1, rows = last - first;
    // Where the activations do not fit the cache, several panels in turn use those of a range.
    int64_t group = units;
    if (ranges > 1) {
      const int64_t fitting = floats / (rows * kPanel);
      const bool fits = rows * a.act_stride <= kActCacheBytes * 5 / 4;
      group = fits ? kStepUnits : (fitting < kGroupPanels ? fitting : kGroupPanels) * kPanelParts;
    }
    for (int64_t unit0 = panel0 * kPanelParts; unit0 < units; unit0 += group) {
      const int64_t end_unit = unit0 + group < units ? unit0 + group : units;
      for (int64_t begin = 0; begin < blocks; begin += along) {
        const int64_t end = begin + along < blocks ? begin + along : blocks;
        const Range range = {begin, end, begin == 0, end == blocks, limit};
        for (int64_t unit = unit0; unit < end_unit; unit += kStepUnits) {
          const int64_t left = end_unit - unit, now = left < kStepUnits ? left : kStepUnits;
          // The same range of the next panels, or the next range of the first ones.
          const bool on = left > kStepUnits || end == blocks;
          const int64_t panel = on ? (unit + now) / kPanelParts : unit0 / kPanelParts;
          const int64_t block = left > kStepUnits ? begin : end == blocks ? 0 : end;
          unpacked_rows<kFormat>(a, range, first, last, unit, now, room,
                                 {waiting + (unit - unit0) * rows * kWidth, rows * kWidth},
                                 a.weight + panel * panel_bytes + block * W::kBlock);
        }
      }
    }
  }
}

template <Format kFormat>
static void matmul_codes(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, float* scratch) {
  using W = Weights<kFormat>;
  if (row1 - row0 > kFewRows) {
    matmul_unpacked<kFormat>(a, row0, row1, panel0, panel1, scratch);
    return;
  }
  const int64_t blocks = a.k / W::kElements;
  const int64_t end_panel = panel1 > a.fetch_end ? panel1 : a.fetch_end;
  const Range range = {0, blocks, true, true, a.weight + end_panel * blocks * W::kBlock};
  const int64_t units = panel1 * kPanelParts;
  int64_t unit = panel0 * kPanelParts;
  if (kSharedActs && row1 - row0 > 1) {
    for (; unit + kStepUnits <= units; unit += kStepUnits)
      units_of_rows<kFormat, kStepUnits>(a, range, row0, row1, unit);
  }
  for (; unit < units; unit += kPanelParts)
    units_of_rows<kFormat, kPanelParts>(a, range, row0, row1, unit);
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
  // Rows of floats end at K; rows of bf16 are padded with zeros.
  const bool odd_end = W::kStep == 2 && !kBf16Dot && a.k % 2 != 0;
  const int64_t end = range.end - (odd_end ? 1 : 0);
  constexpr int kUnroll = 4;
  int64_t k = 0;
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

// A range of a unit of float weights as many rows read it: steps of `stride` bytes. F16 becomes
// floats first, and so does BF16 where it is not multiplied in pairs.
template <class W> struct ManyRows {
  static constexpr bool kDirect = W::kBytes == 64 && (W::kStep == 1 || kBf16Dot);
  static constexpr int kStride = kDirect ? 64 : W::kStep * kWidth * static_cast<int>(sizeof(float));
  static constexpr int64_t kSteps = 256;   // of a range; a multiple of kSums
  static constexpr int64_t kUnpackedFloats = kDirect ? 0 : kSteps * kStride / 4;   // of a unit
};

template <class W>
STRATA_APART void unpack_unit(const FloatRows& f, const Range& range, int64_t unit, float* to) {
  const uint8_t* w = f.weight + unit / kPanelParts * f.panel_bytes;
  const int part = static_cast<int>(unit % kPanelParts);
  for (int64_t k = range.begin; k < range.end; ++k, to += W::kStep * kWidth) {
    const uint8_t* at = w + k * W::kBytes;
    if constexpr (W::kStep == 1) {
      vstore(to, load_weight(W{}, at, part));
    } else {
      const I32v two = vload_i32(reinterpret_cast<const int32_t*>(at) + part * kWidth);
      vstore(to, vcast_f32(vshl_i32<16>(two)));
      vstore(to + kWidth, vcast_f32(vand_i32(two, vset_i32(static_cast<int32_t>(0xffff0000u)))));
    }
  }
}

// The steps of one turn (which of the running sums they go to) of a range: with one sum a row and
// unit, a load of a weight or an activation serves more products than in `tile_float`. Sums of turn 0 wait in
// scratch for those of turn 1. `count`: elements of the range.
template <class W, int kRows, int kUnits>
STRATA_APART void tile_turn(const MatmulArgs& a, const FloatRows& f, const Range& range,
                            const uint8_t* const* weights, int turn, int64_t rows, int64_t row0,
                            int64_t r0, int64_t column, const Sums& sums) {
  constexpr int kStride = ManyRows<W>::kStride;
  const uint8_t* w[kUnits];
  const uint8_t* x[kRows];
  F32v acc[kRows][kUnits];
  constexpr int kElement = W::kStep == 2 && kBf16Dot ? 2 : 4;
#pragma GCC unroll 16
  for (int u = 0; u < kUnits; ++u) w[u] = weights[u];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    x[r] = f.x + (r0 + r) * f.stride + range.begin * W::kStep * kElement;
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      acc[r][u] = range.first
                      ? vzero()
                      : vload(sums.at + u * sums.unit + (turn * rows + r) * kWidth);
    }
  }
  const int64_t steps = range.end - range.begin;
  // Rows of floats end at K, which may leave half a step; those of bf16 are padded with zeros.
  const bool odd_end = W::kStep == 2 && !kBf16Dot && range.last && a.k % 2 != 0;
  const int64_t whole = steps - (odd_end ? 1 : 0);
  const auto element = [&](int64_t k, int e) {
    F32v v[kUnits];
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      v[u] = vload(reinterpret_cast<const float*>(w[u] + k * kStride) + e * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F32v one = vset(reinterpret_cast<const float*>(x[r])[k * W::kStep + e]);
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) acc[r][u] = vfma(v[u], one, acc[r][u]);
    }
  };
  for (int64_t k = turn; k < whole; k += kSums) {
    if constexpr (W::kStep == 2 && kBf16Dot) {
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
      unrolled<0, W::kStep>([&](auto e) { element(k, e.value); });
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
            w[u] = f.weight + (unit + u) / kPanelParts * f.panel_bytes + begin * W::kBytes +
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
            f.weight + next_unit / kPanelParts * f.panel_bytes + next_step * W::kBytes;
        const int64_t next_bytes = M::kSteps * W::kBytes;
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
              tile_turn<W, tile_rows.value, count.value>(a, f, range, w, turn, rows, row0 + r, r,
                                                         column + unit * kWidth, sums);
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
  const int64_t panel_bytes = (a.k + W::kStep - 1) / W::kStep * W::kBytes;
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

// The rows of the file, 16 at a time decoded to a panel of floats.
template <Format kFormat>
static void matmul_decoded(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                           int64_t panel1, float* scratch) {
  float* rest = scratch + kPanel * a.k;
  const int64_t floats = matmul_scratch_floats(a.k) - kPanel * a.k;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    decode_panel(kFormat, a.weight, a.n, a.k, panel, scratch);
    int64_t row = row0;
    const auto from = [&](int64_t r) -> FloatRows {
      return {reinterpret_cast<const uint8_t*>(scratch), 64 * a.k, a.acts + r * a.act_stride,
              a.act_stride, reinterpret_cast<const uint8_t*>(rest)};
    };
    const int64_t most = most_rows<WeightsF32>(floats);
    while (most && row1 - row > kFloatRows) {
      const int64_t rows = row1 - row < most ? row1 - row : most;
      many_rows<WeightsF32>(a, from(row), row, rows, kPanelParts, panel * kPanel, rest, floats);
      row += rows;
    }
    for (; row < row1; row += kFloatRows) {
      const int64_t rows = row1 - row < kFloatRows ? row1 - row : kFloatRows;
      few_rows<WeightsF32>(a, from(row), row, rows, kPanelParts, panel * kPanel);
    }
  }
}

}  // namespace strata::STRATA_ISA
