// How a block format lies in a panel of 16 output rows, and what its numbers mean: one table row a
// format. Constants only: nothing in here may become code in the files of an instruction set.
//
// A panel of PanelLayout is its blocks along K, one after the other; a block is as large as the 16 blocks of the
// file it is made of (IQ4_XS, whose scales grow to bytes, a little larger):
//   head   16 lanes each of d (f16, or one E8M0 byte) and the second f16 (a minimum, or the scale
//          of minima); then the 6-bit scales, where there are any
//   for every 32 elements: byte scales, where there are any, then planes of code bits
// In a plane a 64-byte vector is 16 lanes of 4 bytes, 4 neighbours along K; group g of 8 holds the
// elements 4g .. 4g+3:
//   bytes    8 vectors, one a group
//   nibbles  4 vectors, group v in the low and group v + 4 in the high half of each byte
//   pairs    2 vectors of 2-bit fields, group 4v + j in the bits 2j and 2j + 1
//   bits     1 vector, group g in bit g; where there is nothing else the codes are 0 and 2
// 6-bit scales are two values a lane for each of eight sub-blocks, 32 bytes; sub-blocks 2j and 2j+1
// make a vector of 64. The low four bits of vectors j and j + 2 share the bytes of one, the high two
// bits of vector j are the bits 2j and 2j + 1 of a third one.
#pragma once
#include "kernels/kernels.h"

namespace strata {

enum class SubScale {
  none,          // d is the scale
  six_signed,    // 6 bits minus 32
  six_with_min,  // 6 bits, and 6 bits for the minimum
  byte_signed,   // int8
  nibble_with_min,   // low half scale, high half minimum
  e4m3,          // half of an unsigned E4M3 number, and no d
};
enum class Codebook { none, iq4, mxfp4 };

struct PanelLayout {
  int elements;          // of a block
  bool e8m0;             // d is one byte, a power of two
  bool second;           // a second f16
  SubScale sub_scale;
  int parts;             // scales for each 32 elements: 1, or 2 of 16 elements
  int zero;              // subtracted from the codes: a power of two, or 0
  bool bytes, nibbles, pairs, bits;
  Codebook codebook;     // of the nibbles; values are stored in it plus `zero`

  constexpr bool minima() const { return second; }
  constexpr bool six() const {
    return sub_scale == SubScale::six_signed || sub_scale == SubScale::six_with_min;
  }
  // Scales (and minima) of every 32 elements that lie before their codes.
  constexpr int byte_scales() const { return sub_scale != SubScale::none && !six() ? parts : 0; }
  constexpr int second_at() const { return e8m0 ? 16 : sub_scale == SubScale::e4m3 ? 0 : 32; }
  // What is added to these bits of a code that has `bits`.
  constexpr int bit_at() const { return nibbles ? 4 : pairs ? 2 : 1; }
  constexpr int six_at() const { return second_at() + (second ? 32 : 0); }
  constexpr int head() const { return six_at() + (six() ? 3 * 64 : 0); }
  constexpr int codes_at() const { return 16 * byte_scales(); }   // from the start of the 32
  constexpr int pairs_at() const { return codes_at() + (bytes ? 512 : 0) + (nibbles ? 256 : 0); }
  constexpr int bits_at() const { return pairs_at() + (pairs ? 128 : 0); }
  constexpr int sub() const { return bits_at() + (bits ? 64 : 0); }
  constexpr int subs() const { return elements / 32; }
  constexpr int block() const { return head() + subs() * sub(); }
  // The largest code, for the ranges of integer sums.
  constexpr int max_code() const {
    if (bytes || codebook == Codebook::iq4) return 255;
    if (codebook == Codebook::mxfp4) return 28;
    const int low = nibbles ? 4 : pairs ? 2 : 1;
    return (1 << (low + (nibbles && pairs ? 2 : 0) + (bits ? 1 : 0))) - 1;
  }
};

// The layout of a format made of integer codes; elements == 0 for any other.
constexpr PanelLayout panel_layout(Format f) {
  using S = SubScale;
  using C = Codebook;
  constexpr bool y = true, n = false;
  switch (f) {
    //                       elements e8m0 2nd  sub-scale        parts zero byte nib pair bit codebook
    case Format::Q4_0:   return {32,  n, n, S::none,            1, 8,   n, y, n, n, C::none};
    case Format::Q4_1:   return {32,  n, y, S::none,            1, 0,   n, y, n, n, C::none};
    case Format::Q5_0:   return {32,  n, n, S::none,            1, 16,  n, y, n, y, C::none};
    case Format::Q5_1:   return {32,  n, y, S::none,            1, 0,   n, y, n, y, C::none};
    case Format::Q8_0:   return {32,  n, n, S::none,            1, 128, y, n, n, n, C::none};
    case Format::Q2_K:   return {256, n, y, S::nibble_with_min, 2, 0,   n, n, y, n, C::none};
    case Format::Q3_K:   return {256, n, n, S::six_signed,      2, 4,   n, n, y, y, C::none};
    case Format::Q4_K:   return {256, n, y, S::six_with_min,    1, 0,   n, y, n, n, C::none};
    case Format::Q5_K:   return {256, n, y, S::six_with_min,    1, 0,   n, y, n, y, C::none};
    case Format::Q6_K:   return {256, n, n, S::byte_signed,     2, 32,  n, y, y, n, C::none};
    case Format::IQ4_NL: return {32,  n, n, S::none,            1, 128, n, y, n, n, C::iq4};
    case Format::IQ4_XS: return {256, n, n, S::byte_signed,     1, 128, n, y, n, n, C::iq4};
    case Format::MXFP4:  return {32,  y, n, S::none,            1, 16,  n, y, n, n, C::mxfp4};
    case Format::NVFP4:  return {64,  n, n, S::e4m3,            2, 16,  n, y, n, n, C::mxfp4};
    case Format::TQ2_0:  return {256, n, n, S::none,            1, 1,   n, n, y, n, C::none};
    case Format::Q2_0:   return {64,  n, n, S::none,            1, 1,   n, n, y, n, C::none};
    case Format::Q1_0:   return {128, n, n, S::none,            1, 1,   n, n, n, y, C::none};
    default: return {};
  }
}

// A format of 256 elements a block whose codes are looked up by indices, or are digits to the base
// of 3. In its panel, 16 lanes each of:
//   head   d (f16; of IQ1_M four f16, whose top four bits each are d and whose rest are scales);
//          bytes of scales; bytes (of IQ1: pairs of bytes, with shifts) of the indices' high bits
//   for every 32 elements: words of four indices (their low bytes), then a word of signs
// A word of signs has a bit an element, or seven for eight (the eighth makes their number even)
// with a scale in the top four; of IQ2_XS a byte has the index's ninth bit and seven signs.
// TQ1_0 has d and the 13 words of the file's digits.
struct BookLayout {
  int parts;          // scales for each 32 elements: 1, or 2 of 16 elements
  int zero;           // codes are stored plus this
  int max_code;
  int entry;          // elements an index stands for; 0 where codes are digits
  int tables;         // of 128 entries
  int d_bytes, scale_bytes, high_bytes;   // of a lane, in the head
  bool signs;

  static constexpr int elements = 256;
  constexpr int scales_at() const { return 16 * d_bytes; }
  constexpr int high_at() const { return scales_at() + 16 * scale_bytes; }
  constexpr int head() const { return high_at() + 16 * high_bytes; }
  constexpr int signs_at() const { return entry == 0 ? 0 : 512 / entry; }   // from the start of the 32
  constexpr int sub() const { return signs_at() + (signs ? 64 : 0); }
  constexpr int block() const { return head() + (entry == 0 ? 13 * 64 : 8 * sub()); }
};
// parts == 0 for any other.
constexpr BookLayout book_layout(Format f) {
  switch (f) {
    //                      parts zero max entry tables  d scales high signs
    case Format::IQ1_S:   return {1, 16, 25,  8, 16, 2, 0, 16, false};
    case Format::IQ1_M:   return {2, 16, 25,  8, 16, 8, 0, 16, false};
    case Format::IQ2_XXS: return {1, 64, 107, 8, 2,  2, 0, 0,  true};
    case Format::IQ2_XS:  return {2, 64, 107, 8, 4,  2, 8, 0,  true};
    case Format::IQ2_S:   return {2, 64, 107, 8, 8,  2, 8, 8,  true};
    case Format::IQ3_XXS: return {1, 64, 126, 4, 2,  2, 0, 0,  true};
    case Format::IQ3_S:   return {1, 16, 31,  4, 4,  2, 4, 8,  true};
    case Format::TQ1_0:   return {1, 1,  2,   0, 0,  2, 0, 0,  false};
    default: return {};
  }
}

// 8-bit floats: of every 128 elements 16 scales (float32), then 16 codes an element.
inline constexpr int64_t kF8Block = 128, kF8Scales = 64;
constexpr int64_t f8_panel_bytes(int64_t k) { return k / kF8Block * (kF8Scales + kPanel * kF8Block); }

// The values of a codebook, a number of them that is a power of two, plus what codes are stored plus.
// IQ1's are eighths, and an eighth below: indices come with a bit that moves them two up.
struct BookValues { uint8_t v[16]; };
constexpr BookValues book_values(Format f) {
  constexpr BookValues three = {{7, 15, 23, 23}};
  constexpr BookValues iq2 = {{64 + 8, 64 + 25, 64 + 43, 64 + 43}};
  constexpr BookValues iq3_xxs = {{68, 76, 84, 92, 100, 108, 116, 126, 68, 76, 84, 92, 100, 108, 116, 126}};
  constexpr BookValues iq3_s = {{17, 19, 21, 23, 25, 27, 29, 31, 17, 19, 21, 23, 25, 27, 29, 31}};
  switch (f) {
    case Format::IQ1_S:
    case Format::IQ1_M: return three;
    case Format::IQ3_XXS: return iq3_xxs;
    case Format::IQ3_S: return iq3_s;
    default: return iq2;
  }
}

// IQ4_NL and IQ4_XS (ggml's non-linear 4-bit grid), and E2M1 doubled (OCP MX formats 1.0).
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace strata
