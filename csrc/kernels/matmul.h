// Matrix products of activation rows with packed weights: one template for all integer formats, and
// what it shares with those of matmul_float.h.
//
// Every output is one lane that runs along K alone: an exact integer dot product of 16 or 32
// elements, then one fma into the lane. How many rows, panels or threads share the work therefore
// cannot change a bit of it.
#pragma once
#include "kernels/decode.h"
#include "kernels/books.h"
#include "kernels/weights.h"

namespace strata::STRATA_ISA {

// Each tile is a function of its own: compilers need far longer for all of them in one.
#define STRATA_APART static __attribute__((noinline))

// Activations of one range of K stay in the second-level cache while the weights pass by.
inline constexpr int64_t kActCacheBytes = 512 * 1024;
// Panels whose sums wait between two ranges, in the same cache.
inline constexpr int64_t kGroupPanels = 8;

STRATA_INLINE void finish(const MatmulArgs& a, int64_t row, int64_t column, F32v acc) {
  const int64_t left = a.n - column, at = row >> a.rest;
  float* out = a.out + at * a.out_stride + column;
  const float* bias = a.bias ? a.bias + column : nullptr;
  const float* residual = a.residual ? a.residual + at * a.residual_stride + column : nullptr;
  // What was left over comes after its row, and is added to what is there.
  if (row & a.rest) {
    bias = nullptr;
    residual = out;
  }
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
// Rows up to which codes are used as they are unpacked; for more, unpacking first is faster. Indices
// into codebooks are looked up once for all of three rows.
template <Format kFormat> inline constexpr bool kLooksUp = book_layout(kFormat).parts != 0;
template <Format kFormat> inline constexpr int kMostTileRows =
    kLooksUp<kFormat> && kTileRows > 2 ? 2 : kTileRows;
template <Format kFormat> inline constexpr int64_t kFewRows =
    kLooksUp<kFormat> ? kMostTileRows<kFormat> : 2 * kTileRows;
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
template <int N, int kMaxCode, int kChains, int kUnits>
STRATA_INLINE void dots(const U8v (&codes)[kUnits][8], int first, const int8_t* q, I32v start,
                        I32v (&out)[kUnits]) {
  if constexpr (kUnits == 2 && kSharedActs) {
    out[0] = out[1] = start;
    vdot_two<N, kChains>(codes[0] + first, codes[1] + first, q, out[0], out[1]);
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
    for (int i = 0; i < kPanels; ++i) {
      if (fetch) prefetch_ahead<W::kHead>(block + i * panel_bytes, range);
      W::head(block + i * panel_bytes, part0, heads[i]);
    }
    const uint8_t* p = block + W::kHead;
    for (int sub = 0; sub < W::kSubs; ++sub, ++at, p += W::kSub) {
      U8v codes[kUnits][8];
      F32v scale[kUnits][2], minimum[kUnits][2];
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; ++u) {
        const uint8_t* here = p + u / kParts * panel_bytes;
        if (fetch && u % kParts == 0) prefetch_ahead<W::kSub>(here, range);
        W::codes(heads[u / kParts], u % kParts, here, sub, part0 + u % kParts, codes[u]);
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
          dots<groups, W::kMaxCode, 1>(codes, i * groups, x.q + 4 * groups * i, start, dot);
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
// they are read once; more rows as many as registers hold. A panel without a second one, which comes
// last, has no large tiles of its own.
template <Format kFormat, int kUnits>
static void units_of_rows(const MatmulArgs& a, const Range& range, int64_t first, int64_t last,
                          int64_t unit) {
  constexpr int kMostRows =
      kSharedActs && kUnits < kStepUnits && kTileRows > 2 ? 2 : kMostTileRows<kFormat>;
  row_tiles<kMostRows>(first, last, [&](auto rows, int64_t row) {
    constexpr int kMost = rows.value <= 2 && kVectors ? kUnits : kSharedActs ? 2 : 1;
    constexpr int kTogether = kMost < kUnits ? kMost : kUnits;
    for (int u = 0; u < kUnits; u += kTogether) {
      tile<kFormat, rows.value, kTogether>(a, range, row, unit + u, row == first);
    }
  });
}

// What formats that are alike once unpacked have in common.
template <int kPartsOf, bool kMinimaOf, bool kZeroOf, int kMaxCodeOf> struct AlikeOnceUnpacked {
  static constexpr int kParts = kPartsOf;
  static constexpr bool kMinima = kMinimaOf, kZero = kZeroOf;
  static constexpr int kMaxCode = kMaxCodeOf;
};

// What is unpacked of 32 elements for one unit: their codes, then scales and minima as floats.
template <Format kFormat> struct Unpacked {
  using W = Weights<kFormat>;
  // How many products of two of the largest code fit 16 bits is what counts of it, and nothing where
  // units share activations.
  static constexpr int kFitting = W::kMaxCode > 127 ? 0 : 32767 / (2 * 127 * W::kMaxCode);
  static constexpr int kMaxCode = kSharedActs || kFitting == 0 ? 255
                                  : kFitting == 1              ? 127
                                  : kFitting < 8               ? 32767 / (2 * 127 * kFitting)
                                                               : 16;
  static_assert(kMaxCode >= W::kMaxCode);
  using Alike = AlikeOnceUnpacked<W::kParts, W::kMinima, W::kZero != 0, kMaxCode>;
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
          W::codes(head, t, p, sub, t, codes);
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
template <class Alike, int kRows, int kUnits>
STRATA_APART void tile_unpacked(const MatmulArgs& a, const Range& range, int64_t begin,
                                int64_t subs, int zero_shift, const uint8_t* weights, int64_t row,
                                int64_t unit, const Sums& sums) {
  constexpr int kParts = Alike::kParts;
  constexpr bool kMinima = Alike::kMinima;
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
        const I32v start = vset_i32(
            Alike::kZero ? static_cast<int32_t>(static_cast<uint32_t>(x.nsum[which]) << zero_shift)
                         : 0);
        I32v dot[kUnits];
        dots<groups, Alike::kMaxCode, groups == 8 ? 2 : 1>(codes, i * groups, x.q + 4 * groups * i, start, dot);
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

// A format as `matmul_unpacked` wants to know it.
struct UnpackedFormat {
  int64_t elements, block, subs;    // of a block
  int64_t unit_bytes, range_blocks; // of 32 elements unpacked; Unpacked::kBlocks
  int zero_shift;
  void (*unpack)(const MatmulArgs&, const Range&, int64_t unit, int64_t units, uint8_t* to);
  void (*multiply)(const MatmulArgs&, const Range&, const UnpackedFormat&, int64_t first,
                   int64_t last, int64_t unit, int64_t units, const uint8_t* room, const Sums&,
                   const uint8_t* next);
};

// Rows [first, last) with `units` units, unpacked in `room`. Meanwhile the weights that come next,
// as many of each panel from `next` on, are asked for.
template <class Alike>
STRATA_APART void unpacked_rows(const MatmulArgs& a, const Range& range, const UnpackedFormat& f,
                                int64_t first, int64_t last, int64_t unit, int64_t units,
                                const uint8_t* room, const Sums& sums, const uint8_t* next) {
  constexpr int kTile = kSharedActs ? 2 : 1;
  const int64_t subs = (range.end - range.begin) * f.subs;
  const int64_t panel_bytes = a.k / f.elements * f.block;
  const int64_t range_bytes = (range.end - range.begin) * f.block;
  const int64_t slice = (range_bytes * kManyTileRows / (last - first) + 127) / 64 * 64;
  int64_t fetched = 0;
  row_tiles<kManyTileRows>(first, last, [&](auto rows, int64_t row) {
    for (int64_t panel = 0; panel < units / kPanelParts; ++panel) {
      const uint8_t* from = next + panel * panel_bytes;
      for (int64_t i = fetched; i < fetched + slice && i < range_bytes; i += 64) {
        if (from + i < range.limit) prefetch_far(from + i);
      }
    }
    fetched += slice;
    const auto some = [&](auto count, int64_t u) {
      const Sums these = {sums.at + u * sums.unit + (row - first) * kWidth, sums.unit};
      tile_unpacked<Alike, rows.value, count.value>(a, range, range.begin * f.subs, subs,
                                                    f.zero_shift, room + u * subs * f.unit_bytes,
                                                    row, unit + u, these);
    };
    int64_t u = 0;
    for (; u + kTile <= units; u += kTile) some(Index<kTile>{}, u);
    if constexpr (kTile > 1) {
      if (u < units) some(Index<1>{}, u);
    }
  });
}

// Many rows: range after range of K, a few panels at a time.
STRATA_APART void matmul_unpacked(const UnpackedFormat& f, const MatmulArgs& a, int64_t row0,
                                  int64_t row1, int64_t panel0, int64_t panel1, float* scratch) {
  const int64_t blocks = a.k / f.elements, units = panel1 * kPanelParts;
  const int64_t panel_bytes = blocks * f.block;
  const uint8_t* limit =
      a.weight + (panel1 > a.fetch_end ? panel1 : a.fetch_end) * panel_bytes;
  const int64_t ranges = (blocks + f.range_blocks - 1) / f.range_blocks;
  const int64_t along = (blocks + ranges - 1) / ranges;
  // The unpacked range comes first in scratch; it takes no more than 12 floats an element of K.
  uint8_t* room = reinterpret_cast<uint8_t*>(scratch);
  float* waiting = scratch + (ranges > 1 ? kUnpackedBytes / 4 : 0);
  const int64_t floats = matmul_scratch_floats(a.k) - kUnpackedBytes / 4;
  int64_t step = kActCacheBytes / (along * f.subs * static_cast<int64_t>(sizeof(ActBlock)));
  step = step < kManyTileRows ? kManyTileRows : step / kManyTileRows * kManyTileRows;
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
          f.unpack(a, range, unit, now, room);
          f.multiply(a, range, f, first, last, unit, now, room,
                     {waiting + (unit - unit0) * rows * kWidth, rows * kWidth},
                     a.weight + panel * panel_bytes + block * f.block);
        }
      }
    }
  }
}

template <Format kFormat>
static void matmul_codes(const MatmulArgs& a, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, float* scratch) {
  using W = Weights<kFormat>;
  using U = Unpacked<kFormat>;
  if (row1 - row0 > kFewRows<kFormat>) {
    static constexpr UnpackedFormat format = {
        W::kElements,    W::kBlock, W::kSubs, U::kBytes, U::kBlocks,
        W::kZeroShift, unpack_units<kFormat>, unpacked_rows<typename U::Alike>};
    matmul_unpacked(format, a, row0, row1, panel0, panel1, scratch);
    return;
  }
  const int64_t blocks = a.k / W::kElements;
  const int64_t end_panel = panel1 > a.fetch_end ? panel1 : a.fetch_end;
  const Range range = {0, blocks, true, true, a.weight + end_panel * blocks * W::kBlock};
  const int64_t units = panel1 * kPanelParts;
  int64_t unit = panel0 * kPanelParts;
  if (kSharedActs && !kLooksUp<kFormat> && row1 - row0 > 1) {
    for (; unit + kStepUnits <= units; unit += kStepUnits)
      units_of_rows<kFormat, kStepUnits>(a, range, row0, row1, unit);
  }
  for (; unit < units; unit += kPanelParts)
    units_of_rows<kFormat, kPanelParts>(a, range, row0, row1, unit);
}

}  // namespace strata::STRATA_ISA
