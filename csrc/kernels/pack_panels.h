// Packing with vectors: `pack` (pack.cpp, which defines the result) for whole panels, written once
// over the vector layer. 32-bit words of the rows are turned into vectors of a word for each lane;
// what a block's codes and scales then take are the same shifts and masks as there.
#pragma once
#include "kernels/layout.h"

namespace strata::STRATA_ISA {

inline constexpr int32_t kLow4 = 0x0f0f0f0f, kLow2 = 0x03030303, kLow1 = 0x01010101;
// Rows are far from each other, more of them than a processor follows by itself.
inline constexpr int64_t kPackAhead = 1024;

// Shifts to the right drag the sign along: every use masks it away.
template <int N> STRATA_INLINE I32v shifted(I32v v) {
  if constexpr (N > 0) return vshl_i32<N>(v);
  else if constexpr (N < 0) return vsra_i32<-N>(v);
  else return v;
}
template <int N> STRATA_INLINE I32v field(I32v v, int32_t mask) {
  return vand_i32(shifted<N>(v), vset_i32(mask));
}
template <int N> STRATA_INLINE I32v joined(I32v low, I32v high) {
  return vor_i32(low, vshl_i32<N>(high));
}

// The rows of one vector, at a block.
struct RowsAt {
  const uint8_t* p;
  int64_t stride;

  I32v word(int64_t at) const { return vload_word(p + at, stride); }
  void words4(int64_t at, I32v* out) const { vload_words4(p + at, stride, out); }
  void words8(int64_t at, I32v* out) const {
    words4(at, out);
    words4(at + 16, out + 4);
  }
};

// Where a panel's block takes the lanes of one vector.
template <Format F> struct PanelAt {
  static constexpr PanelLayout l = panel_layout(F);
  uint8_t* p;
  int lane;

  void halves(int at, I32v v) const {
    vstore_u16(reinterpret_cast<uint16_t*>(p + at) + lane, v);
  }
  // Bytes [first, first + count) of the words, 16 lanes each.
  void bytes(int at, I32v v, int first, int count) const {
    alignas(64) uint8_t all[4 * kWidth];
    vstore_u8(all, vsplit_bytes(v));
    for (int b = 0; b < count; ++b) {
      __builtin_memcpy(p + at + 16 * b + lane, all + (first + b) * kWidth, kWidth);
    }
  }
  // Four words of 16 scales of 6 bits, in the order of sub-blocks and values.
  void six(const I32v* scales) const {
    for (int j = 0; j < 2; ++j) {
      bytes(l.six_at() + 64 * j,
            joined<4>(field<0>(scales[j], kLow4), field<0>(scales[j + 2], kLow4)), 0, 4);
    }
    I32v high = field<-4>(scales[0], kLow2);
    high = joined<2>(high, field<-4>(scales[1], kLow2));
    high = joined<4>(high, field<-4>(scales[2], kLow2));
    high = joined<6>(high, field<-4>(scales[3], kLow2));
    bytes(l.six_at() + 128, high, 0, 4);
  }
  // The byte scales of a sub-block, from the words of all.
  void byte_scales(int sub, const I32v* scales) const {
    const int first = l.parts * sub;
    bytes(l.head() + sub * l.sub(), scales[first / 4], first % 4, l.parts);
  }
  // The codes of 32 elements, four in a word.
  void codes(int sub, const I32v* q) const {
    uint8_t* out = p + l.head() + sub * l.sub();
    const auto put = [&](int at, int vector, I32v v) {
      vstore_i32(reinterpret_cast<int32_t*>(out + at + 64 * vector) + lane, v);
    };
    if constexpr (l.bytes) {
      for (int g = 0; g < 8; ++g) put(l.codes_at(), g, q[g]);
    }
    if constexpr (l.nibbles) {
      for (int g = 0; g < 4; ++g) {
        put(l.codes_at(), g, joined<4>(field<0>(q[g], kLow4), field<0>(q[g + 4], kLow4)));
      }
    }
    if constexpr (l.pairs) {
      constexpr int from = l.nibbles ? -4 : 0;
      for (int v = 0; v < 2; ++v) {
        const I32v* four = q + 4 * v;
        const I32v low = joined<2>(field<from>(four[0], kLow2), field<from>(four[1], kLow2));
        const I32v high = joined<2>(field<from>(four[2], kLow2), field<from>(four[3], kLow2));
        put(l.pairs_at(), v, joined<4>(low, high));
      }
    }
    if constexpr (l.bits) {
      constexpr int from = -l.bit_at();
      I32v all = field<from>(q[0], kLow1);
      all = joined<1>(all, field<from>(q[1], kLow1));
      all = joined<2>(all, field<from>(q[2], kLow1));
      all = joined<3>(all, field<from>(q[3], kLow1));
      all = joined<4>(all, field<from>(q[4], kLow1));
      all = joined<5>(all, field<from>(q[5], kLow1));
      all = joined<6>(all, field<from>(q[6], kLow1));
      all = joined<7>(all, field<from>(q[7], kLow1));
      put(l.bits_at(), 0, all);
    }
  }
};

// 32 codes in 16 bytes: low nibbles first.
STRATA_INLINE void nibbles16(const RowsAt& rows, int64_t at, I32v* q) {
  rows.words4(at, q);
  for (int g = 0; g < 4; ++g) {
    q[g + 4] = field<-4>(q[g], kLow4);
    q[g] = field<0>(q[g], kLow4);
  }
}

// Bit i of a word of 32 to bit 4 of code i.
STRATA_INLINE void fifth_bits(I32v bits, I32v* q) {
  for (int g = 0; g < 8; ++g) {
    const I32v four = vand_i32(bits, vset_i32(15));
    const I32v spread = vor_i32(joined<7>(four, four), joined<7>(vshl_i32<14>(four), vshl_i32<14>(four)));
    q[g] = joined<4>(q[g], vand_i32(spread, vset_i32(kLow1)));
    bits = vsra_i32<4>(bits);
  }
}

// Blocks of 32 elements.
template <Format F> STRATA_INLINE void pack_small(const RowsAt& rows, const PanelAt<F>& panel) {
  constexpr PanelLayout l = PanelAt<F>::l;
  constexpr bool fifth = l.bits;
  constexpr int head = l.e8m0 ? 1 : l.second ? 4 : 2;
  I32v q[8];
  const I32v first = rows.word(0);
  if constexpr (l.e8m0) panel.bytes(0, first, 0, 1);
  else panel.halves(0, first);
  if constexpr (l.second) panel.halves(l.second_at(), vsra_i32<16>(first));
  if constexpr (l.bytes) {
    rows.words8(head, q);
    for (I32v& v : q) v = vxor_u8(v, vset_u8(0x80));   // plus 128
  } else {
    nibbles16(rows, head + (fifth ? 4 : 0), q);
  }
  if constexpr (fifth) fifth_bits(rows.word(head), q);
  panel.codes(0, q);
}

// Q4_K, Q5_K.
template <Format F> STRATA_INLINE void pack_k4(const RowsAt& rows, const PanelAt<F>& panel) {
  constexpr PanelLayout l = PanelAt<F>::l;
  I32v head[4];
  rows.words4(0, head);
  panel.halves(0, head[0]);
  panel.halves(l.second_at(), vsra_i32<16>(head[0]));
  // Scales and minima of sub-blocks 0 to 3, and of 4 to 7.
  constexpr int32_t low6 = 0x3f3f3f3f, top2 = 0x30303030;
  const I32v scale[2] = {field<0>(head[1], low6),
                         vor_i32(field<0>(head[3], kLow4), field<-2>(head[1], top2))};
  const I32v minimum[2] = {field<0>(head[2], low6),
                           vor_i32(field<-4>(head[3], kLow4), field<-2>(head[2], top2))};
  I32v six[4];
  for (int j = 0; j < 2; ++j) {
    const I32v s = scale[j], m = minimum[j];
    six[2 * j] = vor_i32(vor_i32(field<0>(s, 0xff), field<8>(m, 0xff00)),
                         vor_i32(field<8>(s, 0xff0000), vshl_i32<16>(field<0>(m, 0xff00))));
    six[2 * j + 1] = vor_i32(vor_i32(field<-16>(s, 0xff), field<-8>(m, 0xff00)),
                             vor_i32(field<-8>(s, 0xff0000), vand_i32(m, vset_i32(~0xffffff))));
  }
  panel.six(six);
  I32v high[8], w[8], q[8];
  if constexpr (l.bits) rows.words8(16, high);
  for (int s = 0; s < 8; s += 2) {
    rows.words8((l.bits ? 48 : 16) + 16 * s, w);
    for (int g = 0; g < 8; ++g) {
      q[g] = field<0>(w[g], kLow4);
      if constexpr (l.bits) q[g] = joined<4>(q[g], field<0>(high[g], kLow1));
    }
    panel.codes(s, q);
    for (int g = 0; g < 8; ++g) {
      q[g] = field<-4>(w[g], kLow4);
      if constexpr (l.bits) {
        q[g] = joined<4>(q[g], field<-1>(high[g], kLow1));
        high[g] = vsra_i32<2>(high[g]);
      }
    }
    panel.codes(s + 1, q);
  }
}

// Q2_K, TQ2_0 and Q3_K: 2 bits of 128 elements in 32 bytes, and for Q3_K a third in another 32 bytes.
template <Format F> STRATA_INLINE void pack_pairs(const RowsAt& rows, const PanelAt<F>& panel) {
  constexpr PanelLayout l = PanelAt<F>::l;
  constexpr bool third = F == Format::Q3_K, plain = F == Format::TQ2_0;
  I32v scale[4];
  if constexpr (third) {
    I32v w[4];
    rows.words4(94, w);   // two bytes before the scales, up to d
    const I32v first = vor_i32(field<-16>(w[0], 0xffff), vshl_i32<16>(w[1]));
    const I32v second = vor_i32(field<-16>(w[1], 0xffff), vshl_i32<16>(w[2]));
    const I32v high = vor_i32(field<-16>(w[2], 0xffff), vshl_i32<16>(w[3]));
    scale[0] = joined<4>(field<0>(first, kLow4), field<0>(high, kLow2));
    scale[1] = joined<4>(field<0>(second, kLow4), field<-2>(high, kLow2));
    scale[2] = joined<4>(field<-4>(first, kLow4), field<-4>(high, kLow2));
    scale[3] = joined<4>(field<-4>(second, kLow4), field<-6>(high, kLow2));
    panel.six(scale);
    panel.halves(0, vsra_i32<16>(w[3]));
  } else if constexpr (plain) {
    panel.halves(0, vsra_i32<16>(rows.word(62)));
  } else {
    rows.words4(0, scale);
    const I32v d = rows.word(80);
    panel.halves(0, d);
    panel.halves(l.second_at(), vsra_i32<16>(d));
  }
  I32v bits[8], w[8], q[8];
  if constexpr (third) rows.words8(0, bits);
  for (int half = 0; half < 2; ++half) {
    rows.words8((plain ? 0 : third ? 32 : 16) + 32 * half, w);
    for (int s = 4 * half; s < 4 * half + 4; ++s) {
      for (int g = 0; g < 8; ++g) {
        q[g] = field<0>(w[g], kLow2);
        w[g] = vsra_i32<2>(w[g]);
        if constexpr (third) {
          q[g] = joined<2>(q[g], field<0>(bits[g], kLow1));
          bits[g] = vsra_i32<1>(bits[g]);
        }
      }
      panel.codes(s, q);
      if constexpr (!third && !plain) panel.byte_scales(s, scale);
    }
  }
}

STRATA_INLINE void pack_q6k(const RowsAt& rows, const PanelAt<Format::Q6_K>& panel) {
  I32v scale[4], high[8], w[8], q[8];
  panel.halves(0, vsra_i32<16>(rows.word(206)));
  rows.words4(192, scale);
  for (int half = 0; half < 2; ++half) {
    rows.words8(128 + 32 * half, high);
    for (int odd = 0; odd < 2; ++odd) {
      rows.words8(64 * half + 32 * odd, w);
      for (int top = 0; top < 2; ++top) {
        const int s = 4 * half + 2 * top + odd;
        for (int g = 0; g < 8; ++g) {
          const I32v low = top ? field<-4>(w[g], kLow4) : field<0>(w[g], kLow4);
          const I32v two = top ? (odd ? field<-6>(high[g], kLow2) : field<-4>(high[g], kLow2))
                               : (odd ? field<-2>(high[g], kLow2) : field<0>(high[g], kLow2));
          q[g] = joined<4>(low, two);
        }
        panel.byte_scales(s, scale);
        panel.codes(s, q);
      }
    }
  }
}

STRATA_INLINE void pack_iq4xs(const RowsAt& rows, const PanelAt<Format::IQ4_XS>& panel) {
  I32v head[4], q[8];
  rows.words4(0, head);
  panel.halves(0, head[0]);
  I32v scale[2] = {vset_i32(0), vset_i32(0)};
  I32v low = head[1], high = vsra_i32<16>(head[0]);
  for (int s = 0; s < 8; ++s) {
    const I32v six = joined<4>(field<0>(low, 15), field<0>(high, 3));
    // Minus 32, in one byte.
    const I32v byte = vand_i32(vadd_i32(six, vset_i32(256 - 32)), vset_i32(0xff));
    I32v& four = scale[s / 4];
    four = vor_i32(vand_i32(vsra_i32<8>(four), vset_i32(0xffffff)), vshl_i32<24>(byte));
    low = vsra_i32<4>(low);
    high = vsra_i32<2>(high);
  }
  for (int s = 0; s < 8; ++s) {
    nibbles16(rows, 8 + 16 * s, q);
    panel.byte_scales(s, scale);
    panel.codes(s, q);
  }
}

STRATA_INLINE void pack_nvfp4(const RowsAt& rows, const PanelAt<Format::NVFP4>& panel) {
  constexpr int32_t low7 = 0x7f7f7f7f;
  const I32v bytes = rows.word(0);
  // Zero where all of the lowest seven bits, and no other, are set.
  const I32v other = vxor_u8(bytes, vset_i32(low7));
  const I32v some = vor_i32(vadd_i32(field<0>(other, low7), vset_i32(low7)), other);
  const I32v one = field<-7>(some, kLow1);
  const I32v scales = vand_i32(bytes, vsub_i32(vshl_i32<7>(one), one));
  I32v w[8], q[8];
  rows.words8(4, w);
  for (int s = 0; s < 2; ++s) {
    for (int g = 0; g < 4; ++g) {
      q[g / 2 * 4 + g % 2] = field<0>(w[4 * s + g], kLow4);
      q[g / 2 * 4 + g % 2 + 2] = field<-4>(w[4 * s + g], kLow4);
    }
    panel.byte_scales(s, &scales);
    panel.codes(s, q);
  }
}

STRATA_INLINE void pack_q1(const RowsAt& rows, const PanelAt<Format::Q1_0>& panel) {
  I32v w[4];
  panel.halves(0, rows.word(0));
  rows.words4(2, w);
  for (int s = 0; s < 4; ++s) {
    I32v q[8];
    for (I32v& v : q) v = vset_i32(0);
    fifth_bits(w[s], q);
    for (I32v& v : q) v = vsra_i32<3>(v);
    panel.codes(s, q);
  }
}

STRATA_INLINE void pack_q2(const RowsAt& rows, const PanelAt<Format::Q2_0>& panel) {
  I32v w[4], q[8];
  panel.halves(0, rows.word(0));
  rows.words4(2, w);
  for (int s = 0; s < 2; ++s) {
    for (int g = 0; g < 8; ++g) {
      I32v& bytes = w[2 * s + g / 4];
      const I32v x = vand_i32(bytes, vset_i32(255));
      const I32v two = joined<6>(x, x);
      q[g] = vand_i32(joined<12>(two, two), vset_i32(kLow2));
      bytes = vsra_i32<8>(bytes);
    }
    panel.codes(s, q);
  }
}

template <Format F> STRATA_INLINE void pack_block(const RowsAt& rows, const PanelAt<F>& panel) {
  if constexpr (PanelAt<F>::l.elements == 32) pack_small<F>(rows, panel);
  else if constexpr (F == Format::NVFP4) pack_nvfp4(rows, panel);
  else if constexpr (F == Format::Q1_0) pack_q1(rows, panel);
  else if constexpr (F == Format::Q2_0) pack_q2(rows, panel);
  else if constexpr (F == Format::Q4_K || F == Format::Q5_K) pack_k4<F>(rows, panel);
  else if constexpr (F == Format::Q2_K || F == Format::Q3_K || F == Format::TQ2_0) pack_pairs<F>(rows, panel);
  else if constexpr (F == Format::Q6_K) pack_q6k(rows, panel);
  else pack_iq4xs(rows, panel);
}

// Where a block of book_layout takes the lanes of one vector.
template <Format F> struct BookAt {
  static constexpr BookLayout l = book_layout(F);
  uint8_t* p;
  int lane;

  void word(int at, I32v v) const {
    vstore_i32(reinterpret_cast<int32_t*>(p + at) + lane, v);
  }
  void sub(int s, int at, I32v v) const { word(l.head() + s * l.sub() + at, v); }
  void half(int at, I32v v) const { vstore_u16(reinterpret_cast<uint16_t*>(p + at) + lane, v); }
  // Bytes of words one by one.
  void bytes(int at, I32v v) const {
    alignas(64) uint8_t all[4 * kWidth];
    vstore_u8(all, vsplit_bytes(v));
    for (int b = 0; b < 4; ++b) __builtin_memcpy(p + at + 16 * b + lane, all + b * kWidth, kWidth);
  }
  void halves(int at, I32v v) const {
    half(at, v);
    half(at + 32, vsra_i32<16>(v));
  }
};

template <Format F> STRATA_INLINE void pack_block(const RowsAt& rows, const BookAt<F>& panel) {
  constexpr BookLayout l = book_layout(F);
  I32v w[8];
  // Words of each sub-block, `each` of them, from `at` on in the file.
  const auto subs = [&](int64_t at, int each, int to) {
    for (int first = 0; first < 8 * each; first += 4) {
      rows.words4(at + 4 * first, w);
      for (int i = 0; i < 4; ++i) {
        panel.sub((first + i) / each, to + 64 * ((first + i) % each), w[i]);
      }
    }
  };
  const auto bytes8 = [&](int64_t at, int to) {
    panel.bytes(to, rows.word(at));
    panel.bytes(to + 64, rows.word(at + 4));
  };
  const auto halves8 = [&](int64_t at, int to) {
    rows.words4(at, w);
    for (int i = 0; i < 4; ++i) panel.halves(to + 64 * i, w[i]);
  };
  if constexpr (F != Format::IQ1_M && F != Format::TQ1_0) panel.half(0, rows.word(0));
  if constexpr (F == Format::TQ1_0) {
    for (int i = 0; i < 12; i += 4) {
      rows.words4(4 * i, w);
      for (int j = 0; j < 4; ++j) panel.word(l.head() + 64 * (i + j), w[j]);
    }
    panel.word(l.head() + 64 * 12, rows.word(48));
    panel.half(0, vsra_i32<16>(rows.word(50)));
  } else if constexpr (F == Format::IQ1_S) {
    halves8(34, l.high_at());
    subs(2, 1, 0);
  } else if constexpr (F == Format::IQ1_M) {
    panel.halves(0, rows.word(48));
    panel.halves(64, rows.word(52));
    halves8(32, l.high_at());
    subs(0, 1, 0);
  } else if constexpr (F == Format::IQ2_XXS) {
    subs(2, 2, 0);
  } else if constexpr (F == Format::IQ2_XS) {
    bytes8(66, l.scales_at());
    for (int s = 0; s < 8; s += 2) {
      rows.words4(2 + 8 * s, w);
      for (int i = 0; i < 2; ++i) {   // low bytes of four pairs, then their high bytes
        const I32v a = w[2 * i], b = w[2 * i + 1];
        const I32v low = vor_i32(vor_i32(field<0>(a, 0xff), field<-8>(a, 0xff00)),
                                 vor_i32(field<16>(b, 0xff0000), vshl_i32<24>(vsra_i32<16>(b))));
        const I32v high = vor_i32(vor_i32(field<-8>(a, 0xff), field<-16>(a, 0xff00)),
                                  vor_i32(field<8>(b, 0xff0000), vand_i32(b, vset_i32(~0xffffff))));
        panel.sub(s + i, 0, low);
        panel.sub(s + i, l.signs_at(), high);
      }
    }
  } else if constexpr (F == Format::IQ2_S) {
    bytes8(66, l.high_at());
    bytes8(74, l.scales_at());
    subs(2, 1, 0);
    subs(34, 1, l.signs_at());
  } else if constexpr (F == Format::IQ3_XXS) {
    subs(2, 2, 0);
    subs(66, 1, l.signs_at());
  } else if constexpr (F == Format::IQ3_S) {
    panel.bytes(l.scales_at(), rows.word(106));
    bytes8(66, l.high_at());
    subs(2, 2, 0);
    subs(74, 1, l.signs_at());
  }
}

// A panel of blocks: `row_bytes` from row to row, `block_bytes` of the file from block to block.
template <Format F, template <Format> class At>
static void pack_codes(const uint8_t* rows, int64_t row_bytes, int64_t block_bytes,
                       uint8_t* panel) {
  for (int64_t at = 0; at < row_bytes; at += block_bytes, panel += At<F>::l.block()) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const uint8_t* p = rows + lane * row_bytes + at;
      for (int i = 0; i < kWidth; ++i) {
        for (int64_t line = 0; line < block_bytes; line += 64) {
          prefetch(p + i * row_bytes + kPackAhead + line);
        }
      }
      pack_block<F>({p, row_bytes}, At<F>{panel, lane});
    }
  }
}

// Words of plain numbers (F32, pairs of BF16) in whole lines.
static void pack_words(const uint8_t* rows, int64_t row_bytes, int64_t, uint8_t* panel) {
  I32v w[4];
  for (int64_t at = 0; at < row_bytes; at += 16) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const uint8_t* p = rows + lane * row_bytes + at;
      vload_words4(p, row_bytes, w);
      for (int i = 0; i < 4; ++i) {
        vstore_i32(reinterpret_cast<int32_t*>(panel + at * kPanel + 64 * i) + lane, w[i]);
      }
    }
  }
}

// Numbers of 2 bytes one by one (F16): a word holds two, and they belong to two vectors of halves.
static void pack_halves(const uint8_t* rows, int64_t row_bytes, int64_t, uint8_t* panel) {
  I32v w[4];
  for (int64_t at = 0; at < row_bytes; at += 16) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      vload_words4(rows + lane * row_bytes + at, row_bytes, w);
      uint16_t* out = reinterpret_cast<uint16_t*>(panel + at * kPanel) + lane;
      for (int i = 0; i < 4; ++i) {
        vstore_u16(out + 2 * i * kPanel, w[i]);
        vstore_u16(out + (2 * i + 1) * kPanel, vsra_i32<16>(w[i]));
      }
    }
  }
}

// The codes of 8-bit floats, each element's 16 together.
static void pack_f8_codes(const uint8_t* rows, int64_t row_bytes, int64_t block_bytes,
                          uint8_t* panel) {
  I32v w[4];
  for (int64_t block = 0; block < row_bytes; block += block_bytes, panel += f8_panel_bytes(kF8Block)) {
    for (int lane = 0; lane < kPanel; lane += kWidth) {
      const uint8_t* p = rows + lane * row_bytes + block;
      for (int64_t at = 0; at < kF8Block; at += 16) {
        for (int i = 0; at % 64 == 0 && i < kWidth; ++i) prefetch(p + i * row_bytes + kPackAhead + at);
        vload_words4(p + at, row_bytes, w);
        for (int i = 0; i < 4; ++i) {
          // Byte 0 of every lane, then byte 1, 2 and 3.
          alignas(64) uint8_t all[4 * kWidth];
          vstore_u8(all, vsplit_bytes(w[i]));
          for (int b = 0; b < 4; ++b) {
            __builtin_memcpy(panel + kF8Scales + (at + 4 * i + b) * kPanel + lane, all + b * kWidth,
                             kWidth);
          }
        }
      }
    }
  }
}

static PackPanelFn pack_panel_of(Format f, int64_t row_bytes) {
  switch (f) {
    case Format::F32:
    case Format::BF16: return row_bytes % 16 == 0 ? pack_words : nullptr;
    case Format::F16: return row_bytes % 16 == 0 ? pack_halves : nullptr;
    case Format::F8_E4M3_B128: return pack_f8_codes;
#define STRATA_CODES(name) case Format::name: return pack_codes<Format::name, PanelAt>;
    STRATA_CODES(Q4_0) STRATA_CODES(Q4_1) STRATA_CODES(Q5_0) STRATA_CODES(Q5_1) STRATA_CODES(Q8_0)
    STRATA_CODES(Q2_K) STRATA_CODES(Q3_K) STRATA_CODES(Q4_K) STRATA_CODES(Q5_K) STRATA_CODES(Q6_K)
    STRATA_CODES(IQ4_NL) STRATA_CODES(IQ4_XS) STRATA_CODES(MXFP4) STRATA_CODES(NVFP4)
    STRATA_CODES(TQ2_0) STRATA_CODES(Q1_0) STRATA_CODES(Q2_0)
#undef STRATA_CODES
#define STRATA_BOOKS(name) case Format::name: return pack_codes<Format::name, BookAt>;
    STRATA_BOOKS(IQ1_S) STRATA_BOOKS(IQ1_M) STRATA_BOOKS(IQ2_XXS) STRATA_BOOKS(IQ2_XS)
    STRATA_BOOKS(IQ2_S) STRATA_BOOKS(IQ3_XXS) STRATA_BOOKS(IQ3_S) STRATA_BOOKS(TQ1_0)
#undef STRATA_BOOKS
    default: return nullptr;
  }
}

}  // namespace strata::STRATA_ISA
