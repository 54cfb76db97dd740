// Reads the panels of layout.h: codes, scales and minima of 32 elements in vectors of kWidth lanes.
// `part` is which kWidth of the panel's 16 rows.
#pragma once
#include <type_traits>

#include "kernels/layout.h"

namespace strata::STRATA_ISA {

template <int I> struct Index { static constexpr int value = I; };
template <int I, int N, class F> STRATA_INLINE void unrolled(F f) {
  if constexpr (I < N) {
    f(Index<I>{});
    unrolled<I + 1, N>(f);
  }
}
// Bits moved up by kShift (down where negative) within 16 bits.
template <int kShift> STRATA_INLINE U8v moved(U8v v) {
  if constexpr (kShift > 0) return vshl_u8<kShift>(v);
  else if constexpr (kShift < 0) return vshr_u8<-kShift>(v);
  else return v;
}

constexpr int log2_of(int power) {
  int s = 0;
  while (power > 1) {
    power /= 2;
    ++s;
  }
  return s;
}

struct ByteTable { uint8_t v[16]; };
// A codebook as the dot product takes it: signed bytes, or unsigned ones with `zero` added.
constexpr ByteTable byte_table(const int8_t* values, int add) {
  ByteTable t{};
  for (int i = 0; i < 16; ++i) t.v[i] = static_cast<uint8_t>(values[i] + add);
  return t;
}

template <Format kFormat> struct PanelWeights {
  static constexpr PanelLayout kL = panel_layout(kFormat);
  static constexpr int kBlock = kL.block();
  static constexpr int kHead = kL.head();
  static constexpr int kSub = kL.sub();
  static constexpr int kSubs = kL.subs();
  static constexpr int kElements = kL.elements;
  static constexpr int kParts = kL.parts;
  static constexpr bool kMinima = kL.minima();
  static constexpr int kMaxCode = kL.max_code();
  // Codes of 8 bits are taken signed where the instructions multiply signed bytes.
  static constexpr bool kSigned = kSignedBytes && kMaxCode > 127;
  static constexpr int kZero = kSigned ? 0 : kL.zero;
  static constexpr int kZeroShift = log2_of(kZero);
  static constexpr ByteTable kTable =
      byte_table(kL.codebook == Codebook::mxfp4 ? kMxfp4Values : kIq4Values, kZero);

  // Scales of a block for kTileParts parts.
  template <int kTileParts> struct Head {
    F32v d[kTileParts], second[kTileParts];   // second: what minima are multiplied with
    alignas(64) uint8_t six[kL.six() ? 256 : 1];
  };

  template <int kTileParts>
  STRATA_INLINE void head(const uint8_t* block, int part0, Head<kTileParts>& h) {
#pragma GCC unroll 4
    for (int t = 0; t < kTileParts; ++t) {
      const int lane = (part0 + t) * kWidth;
      if constexpr (kL.e8m0) {
        // 2^(e - 128): half of the scale, because the codebook is doubled. Below e = 2 subnormal.
        const I32v e = vload_u8_i32(block + lane);
        const F32v normal = vcast_f32(vshl_i32<23>(vsub_i32(e, vset_i32(1))));
        const F32v tiny = vcast_f32(vshl_i32<21>(vadd_i32(e, vset_i32(1))));
        h.d[t] = vselect_lt(vcvt_f32(e), vset(1.5f), tiny, normal);
      } else if constexpr (kL.sub_scale != SubScale::e4m3) {
        h.d[t] = vload_f16(reinterpret_cast<const uint16_t*>(block) + lane);
      }
      if constexpr (kL.second) {
        constexpr int at = kL.second_at();
        h.second[t] = vload_f16(reinterpret_cast<const uint16_t*>(block + at) + lane);
        // The K-quants take their minima away.
        if constexpr (kL.sub_scale != SubScale::none) h.second[t] = vsub(vzero(), h.second[t]);
      }
    }
    if constexpr (kL.six()) {
      constexpr int at = kL.six_at();
      const U8v low = vset_u8(0x0f);
      const U8v high = vset_u8(0x30);
      unrolled<0, 4>([&](auto j) {
#pragma GCC unroll 4
        for (int i = 0; i < 64; i += 4 * kWidth) {
          const U8v four = vload_u8(block + at + 64 * (j.value % 2) + i);
          const U8v two = vload_u8(block + at + 128 + i);
          vstore_u8(h.six + 64 * j.value + i,
                    vor_masked_u8(vand_u8(moved<-4 * (j.value / 2)>(four), low),
                                  moved<4 - 2 * j.value>(two), high));
        }
      });
    }
  }

  // Value `which` of the 6-bit scales of sub-block `sub`.
  STRATA_INLINE I32v six(const uint8_t* unpacked, int sub, int part, int which) {
    return vload_u8_i32(unpacked + 32 * sub + 16 * which + part * kWidth);
  }

  // Scale and minimum of each half or whole of the 32 elements at p; `t` is the part within h.
  template <int kTileParts>
  STRATA_INLINE void scales(const Head<kTileParts>& h, int t, const uint8_t* p, int sub, int part,
                            F32v* scale, F32v* minimum) {
    if constexpr (kL.sub_scale == SubScale::none) {
      scale[0] = h.d[t];
      if constexpr (kMinima) minimum[0] = h.second[t];
    } else if constexpr (kL.sub_scale == SubScale::six_with_min) {
      scale[0] = vmul(h.d[t], vcvt_f32(six(h.six, sub, part, 0)));
      minimum[0] = vmul(h.second[t], vcvt_f32(six(h.six, sub, part, 1)));
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        const uint8_t* bytes = p + 16 * i + part * kWidth;
        if constexpr (kL.sub_scale == SubScale::six_signed) {
          scale[i] = vmul(h.d[t], vcvt_f32(vsub_i32(six(h.six, sub, part, i), vset_i32(32))));
        } else if constexpr (kL.sub_scale == SubScale::byte_signed) {
          scale[i] = vmul(h.d[t], vcvt_f32(vload_s8_i32(bytes)));
        } else if constexpr (kL.sub_scale == SubScale::e4m3) {
          // Exponents 120 more than they are; the eight smallest numbers have none.
          const I32v b = vload_u8_i32(bytes);
          const F32v normal = vcast_f32(vadd_i32(vshl_i32<20>(b), vset_i32(119 << 23)));
          const F32v number = vcvt_f32(b);
          scale[i] = vselect_lt(number, vset(7.5f), vmul(number, vset(0x1p-10f)), normal);
        } else {
          const I32v both = vload_u8_i32(bytes);
          scale[i] = vmul(h.d[t], vcvt_f32(vand_i32(both, vset_i32(15))));
          minimum[i] = vmul(h.second[t], vcvt_f32(vshr_i32(both, 4)));
        }
      }
    }
  }

  // The eight vectors of codes of the 32 elements at p.
  template <int kTileParts>
  STRATA_INLINE void codes(const Head<kTileParts>&, int, const uint8_t* p, int, int part, U8v* c) {
    constexpr int codes_at = kL.codes_at();
    constexpr int pairs_at = kL.pairs_at();
    constexpr int bits_at = kL.bits_at();
    const uint8_t* lane = p + part * 4 * kWidth;
    if constexpr (kL.bytes) {
      unrolled<0, 8>([&](auto g) {
        c[g.value] = vload_u8(lane + codes_at + 64 * g.value);
        if constexpr (kSigned) c[g.value] = vxor_u8(c[g.value], vset_u8(0x80));
      });
    }
    if constexpr (kL.nibbles) {
      const U8v low = vset_u8(0x0f);
      unrolled<0, 4>([&](auto g) {
        const U8v b = vload_u8(lane + codes_at + 64 * g.value);
        c[g.value] = vand_u8(b, low);
        c[g.value + 4] = vand_u8(vshr_u8<4>(b), low);
      });
    }
    if constexpr (kL.codebook != Codebook::none) {
      unrolled<0, 8>([&](auto g) { c[g.value] = vlookup_u8(kTable.v, c[g.value]); });
    }
    if constexpr (kL.pairs) {
      constexpr int at = kL.nibbles ? 4 : 0;
      const U8v mask = vset_u8(3 << at);
      unrolled<0, 8>([&](auto g) {
        const U8v b = vload_u8(lane + pairs_at + 64 * (g.value / 4));
        const U8v two = moved<at - 2 * (g.value % 4)>(b);
        c[g.value] = kL.nibbles ? vor_masked_u8(c[g.value], two, mask) : vand_u8(two, mask);
      });
    }
    if constexpr (kL.bits) {
      constexpr int at = kL.bit_at();
      const U8v mask = vset_u8(1 << at);
      const U8v b = vload_u8(lane + bits_at);
      unrolled<0, 8>([&](auto g) {
        const U8v bit = moved<at - g.value>(b);
        c[g.value] = at > 1 ? vor_masked_u8(c[g.value], bit, mask) : vand_u8(bit, mask);
      });
    }
  }
};

}  // namespace strata::STRATA_ISA
