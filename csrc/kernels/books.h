// Reads the panels of book_layout (layout.h): codes and scales of 32 elements in vectors of kWidth
// lanes. What the indices of a block stand for is looked up once, when its head is read.
#pragma once
#include <type_traits>

#include "kernels/decode.h"
#include "kernels/weights.h"
#ifdef STRATA_BYTE_PERMUTES
#include "kernels/books_permuted.h"
#endif

namespace strata::STRATA_ISA {

// Codes copied entry by entry: loads and stores of plain registers, beside which vectors multiply.
template <Format kFormat, int kTileParts> struct Copied {
  static constexpr BookLayout kL = book_layout(kFormat);
  static constexpr int kVectors = 8 / kL.entry;   // words of indices in 32 elements
  static constexpr int kCodes = 32 * kWidth;
  static constexpr bool kEighths = kFormat == Format::IQ1_S || kFormat == Format::IQ1_M;
  static constexpr bool kEven = kFormat == Format::IQ2_XXS || kFormat == Format::IQ3_XXS;

  // Of every 32 elements and part: the lanes' entries for each index.
  alignas(64) uint8_t entries[8 * kTileParts * kCodes];

  STRATA_INLINE I32v words(const uint8_t* p, int part) {
    return vload_i32(reinterpret_cast<const int32_t*>(p) + part * kWidth);
  }
  STRATA_INLINE I32v halves(const uint8_t* p, int part) {
    return vload_u16(reinterpret_cast<const uint16_t*>(p) + part * kWidth);
  }
  template <int kFrom> STRATA_INLINE I32v bits(I32v v, int32_t mask) {
    if constexpr (kFrom > 0) v = vsra_i32<kFrom>(v);
    return vand_i32(v, vset_i32(mask));
  }

  // What is above the low eight bits of index kAt of 32 elements.
  template <int kAt>
  STRATA_INLINE I32v above(const uint8_t* block, const uint8_t* p, int sub, int part) {
    const uint8_t* high = block + kL.high_at() + 2 * kL.high_bytes * sub;
    if constexpr (kFormat == Format::IQ1_S) return vshl_i32<8>(bits<3 * kAt>(halves(high, part), 7));
    else if constexpr (kFormat == Format::IQ1_M) return vshl_i32<8>(bits<4 * kAt>(halves(high, part), 7));
    else if constexpr (kFormat == Format::IQ2_S) return vshl_i32<8>(bits<2 * kAt>(vload_u8_i32(high + part * kWidth), 3));
    else if constexpr (kFormat == Format::IQ3_S) return vshl_i32<8>(bits<kAt>(vload_u8_i32(high + part * kWidth), 1));
    else return vshl_i32<8>(bits<8 * kAt>(words(p + kL.signs_at(), part), 1));   // IQ2_XS
  }

  STRATA_INLINE void look_up(Copied& l, const uint8_t* block, int part0) {
    const uint8_t* codes = book_of(kFormat).codes;
    uint8_t* out = l.entries;
#pragma GCC unroll 1
    for (int sub = 0; sub < 8; ++sub) {
      const uint8_t* p = block + kL.head() + sub * kL.sub();
#pragma GCC unroll 1
      for (int t = 0; t < kTileParts; ++t) {
        alignas(64) int32_t index[4 * kVectors * kWidth];
        unrolled<0, 4 * kVectors>([&](auto at) {
          const I32v low = words(p + 64 * (at.value / 4), part0 + t);
          I32v i = bits<8 * (at.value % 4)>(low, 255);
          if constexpr (kL.tables > 2) i = vor_i32(i, above<at.value>(block, p, sub, part0 + t));
          vstore_i32(index + at.value * kWidth, i);
        });
#pragma GCC unroll 16
        for (int i = 0; i < 4 * kVectors * kWidth; ++i, out += kL.entry) {
          __builtin_memcpy(out, codes + kL.entry * index[i], kL.entry);
        }
      }
    }
  }

  STRATA_INLINE void read(const Copied& l, int t, const uint8_t* p, int sub, int part, U8v* c) {
    const uint8_t* from = l.entries + (sub * kTileParts + t) * kCodes;
    if constexpr (kL.entry == 4) {
      unrolled<0, 8>([&](auto g) { c[g.value] = vload_u8(from + 4 * kWidth * g.value); });
    } else {
      unrolled<0, 4>([&](auto h) {
        const U8v first = vload_u8(from + 8 * kWidth * h.value);
        const U8v last = vload_u8(from + 8 * kWidth * h.value + 4 * kWidth);
        c[2 * h.value] = veven_words(first, last);
        c[2 * h.value + 1] = vodd_words(first, last);
      });
    }
    if constexpr (kEighths) {
      const I32v high = halves(p - kL.head() - sub * kL.sub() + kL.high_at() + 32 * sub, part);
      unrolled<0, 4>([&](auto h) {
        // Two more where the bit is not set.
        constexpr int bit = kFormat == Format::IQ1_S ? 15 : 4 * h.value + 3;
        const I32v down = vshl_i32<1>(bits<bit>(high, 1));
        const I32v all = vor_i32(vor_i32(down, vshl_i32<8>(down)), vshl_i32<16>(vor_i32(down, vshl_i32<8>(down))));
        const U8v add = vsub_u8(vset_u8(2), vbytes(all));
        c[2 * h.value] = vadd_u8(c[2 * h.value], add);
        c[2 * h.value + 1] = vadd_u8(c[2 * h.value + 1], add);
      });
    } else {
      negate(words(p + kL.signs_at(), part), c);
    }
  }

  // Eight signs from seven bits: the eighth makes their number even.
  STRATA_INLINE I32v with_parity(I32v sevens) {
    I32v p = vxor_i32(sevens, bits<4>(sevens, 0x07070707));
    p = vxor_i32(p, bits<2>(p, 0x3f3f3f3f));
    p = vxor_i32(p, bits<1>(p, 0x7f7f7f7f));
    return vor_i32(sevens, vshl_i32<7>(vand_i32(p, vset_i32(0x01010101))));
  }

  STRATA_INLINE void negate(I32v signs, U8v* c) {
    if constexpr (kEven) {
      I32v sevens = bits<0>(signs, 127);
      sevens = vor_i32(sevens, vshl_i32<8>(bits<7>(signs, 127)));
      sevens = vor_i32(sevens, vshl_i32<16>(bits<14>(signs, 127)));
      signs = with_parity(vor_i32(sevens, vshl_i32<24>(bits<21>(signs, 127))));
    } else if constexpr (kFormat == Format::IQ2_XS) {
      signs = with_parity(bits<1>(signs, 0x7f7f7f7f));
    }
    const U8v twice = vset_u8(2 * kL.zero);
    unrolled<0, 8>([&](auto g) {
      U8v& code = c[g.value];
      const U8v other = vsub_u8(twice, code);
      code = vxor_u8(code, vand_u8(vxor_u8(code, other), vbit_masks<g.value>(signs)));
    });
  }
};

// Digits to the base of 3 after the point of a byte over 256, plus nothing: codes 0 to 2.
template <int kTileParts> struct Digits {
  static constexpr int kGroup = 4 * kWidth * kTileParts;
  alignas(64) uint8_t codes[64 * kGroup];

  STRATA_INLINE void look_up(Digits& l, const uint8_t* block, int part0) {
    constexpr int at = book_layout(Format::TQ1_0).head();
    // Digits of four bytes a lane go to every `step`-th group from `group` on.
    const auto put = [&](int word, int t, int group, int step, int digits) {
      U8v x = vload_u8(block + at + 64 * word + 4 * kWidth * (part0 + t));
      for (int digit = 0; digit < digits; ++digit) {
        // The larger two bits of floor(3 x / 4).
        const U8v quarter = vavg_u8(vavg_u8(x, vset_u8(0)), vset_u8(0));
        const U8v code = vand_u8(vshr_u8<6>(vsub_u8(x, quarter)), vset_u8(3));
        vstore_u8(l.codes + (group + digit * step) * kGroup + 4 * kWidth * t, code);
        x = vadd_u8(x, vadd_u8(x, x));
      }
    };
#pragma GCC unroll 1
    for (int t = 0; t < kTileParts; ++t) {
      for (int word = 0; word < 8; ++word) put(word, t, word, 8, 5);
      for (int word = 8; word < 12; ++word) put(word, t, 32 + word, 4, 5);
      put(12, t, 60, 1, 4);
    }
  }
  STRATA_INLINE void read(const Digits& l, int t, const uint8_t*, int sub, int, U8v* c) {
    unrolled<0, 8>([&](auto g) {
      c[g.value] = vload_u8(l.codes + (8 * sub + g.value) * kGroup + 4 * kWidth * t);
    });
  }
};

template <Format kFormat, int kTileParts> struct LookUp {
  using type = Copied<kFormat, kTileParts>;
};
#ifdef STRATA_BYTE_PERMUTES
template <Format kFormat, int kTileParts>
  requires(book_layout(kFormat).tables > 0)
struct LookUp<kFormat, kTileParts> {
  using type = Permuted<kFormat>;
};
#endif
template <int kTileParts> struct LookUp<Format::TQ1_0, kTileParts> {
  using type = Digits<kTileParts>;
};

template <Format kFormat> struct BookWeights {
  static constexpr BookLayout kL = book_layout(kFormat);
  static constexpr int kBlock = kL.block();
  static constexpr int kHead = kL.head() + (kL.entry == 0 ? 13 * 64 : 0);
  static constexpr int kSub = kL.sub();
  static constexpr int kElements = kL.elements;
  static constexpr int kSubs = kElements / 32;
  static constexpr int kParts = kL.parts;
  static constexpr bool kMinima = false;
  static constexpr int kMaxCode = kL.max_code;
  static constexpr int kZero = kL.zero;
  static constexpr int kZeroShift = log2_of(kZero);
  static constexpr bool kEighths = kFormat == Format::IQ1_S || kFormat == Format::IQ1_M;

  template <int kTileParts> struct Head {
    F32v d[kTileParts];
    typename LookUp<kFormat, kTileParts>::type codes;
  };

  template <int kTileParts>
  STRATA_INLINE void head(const uint8_t* block, int part0, Head<kTileParts>& h) {
    // Multiplying with a power of two is exact: a half times it stays within floats.
    constexpr float factor = kEighths                                                ? 0.125f
                             : kFormat == Format::IQ3_XXS                             ? 0.5f
                             : kFormat == Format::IQ3_S || kFormat == Format::TQ1_0 ? 1.0f
                                                                                    : 0.25f;
#pragma GCC unroll 4
    for (int t = 0; t < kTileParts; ++t) {
      const int lane = (part0 + t) * kWidth;
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(block) + lane;
      uint16_t joined[kWidth];
      if constexpr (kFormat == Format::IQ1_M) {
        I32v d = vset_i32(0);
        for (int i = 0; i < 4; ++i) {
          const I32v top = vand_i32(vload_u16(halves + 16 * i), vset_i32(0xf000));
          d = vor_i32(vshr_i32(d, 4), top);
        }
        vstore_u16(joined, d);
        halves = joined;
      }
      h.d[t] = vmul(vload_f16(halves), vset(factor));
    }
    h.codes.look_up(h.codes, block, part0);
  }

  template <int kTileParts>
  STRATA_INLINE void scales(const Head<kTileParts>& h, int t, const uint8_t* p, int sub, int part,
                            F32v* scale, F32v*) {
    const uint8_t* block = p - kL.head() - sub * kSub;
    const int lane = part * kWidth;
    const auto halved = [&](I32v n) { return vmul(vadd(vset(0.5f), vcvt_f32(n)), h.d[t]); };
    const auto odd = [&](I32v n) {
      return vmul(h.d[t], vcvt_f32(vadd_i32(vadd_i32(n, n), vset_i32(1))));
    };
    if constexpr (kFormat == Format::IQ2_XXS || kFormat == Format::IQ3_XXS) {
      const uint8_t* words = p + kL.signs_at() + 4 * lane;
      scale[0] = halved(vshr_i32(vload_i32(reinterpret_cast<const int32_t*>(words)), 28));
    } else if constexpr (kFormat == Format::IQ2_XS || kFormat == Format::IQ2_S) {
      const I32v both = vload_u8_i32(block + kL.scales_at() + 16 * sub + lane);
      scale[0] = halved(vand_i32(both, vset_i32(15)));
      scale[1] = halved(vshr_i32(both, 4));
    } else if constexpr (kFormat == Format::IQ3_S) {
      const I32v both = vload_u8_i32(block + kL.scales_at() + 16 * (sub / 2) + lane);
      scale[0] = odd(vand_i32(vshr_i32(both, 4 * (sub % 2)), vset_i32(15)));
    } else if constexpr (kFormat == Format::IQ1_S) {
      const uint8_t* high = block + kL.high_at() + 32 * sub + 2 * lane;
      const I32v word = vload_u16(reinterpret_cast<const uint16_t*>(high));
      scale[0] = odd(vand_i32(vshr_i32(word, 12), vset_i32(7)));
    } else if constexpr (kFormat == Format::IQ1_M) {
      const I32v word = vload_u16(reinterpret_cast<const uint16_t*>(block + 32 * (sub / 2)) + lane);
      const I32v two = vshr_i32(word, 6 * (sub % 2));
      scale[0] = odd(vand_i32(two, vset_i32(7)));
      scale[1] = odd(vand_i32(vshr_i32(two, 3), vset_i32(7)));
    } else {
      scale[0] = h.d[t];
    }
  }

  template <int kTileParts>
  STRATA_INLINE void codes(const Head<kTileParts>& h, int t, const uint8_t* p, int sub,
                           int part, U8v* c) {
    h.codes.read(h.codes, t, p, sub, part, c);
  }
};

template <Format kFormat>
using Weights = std::conditional_t<book_layout(kFormat).parts != 0, BookWeights<kFormat>,
                                   PanelWeights<kFormat>>;

}  // namespace strata::STRATA_ISA
