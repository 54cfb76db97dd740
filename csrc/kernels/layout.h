// How a block format lies in a panel of 16 output rows, and what its numbers mean: one table row a
// format. Constants only: nothing in here may become code in the files of an instruction set.
//
// A panel is its blocks along K, one after the other; a block is as large as the 16 blocks of the
// file it is made of (IQ4_XS, whose scales grow to bytes, a little larger):
//   head   16 lanes each of d (f16, or one E8M0 byte) and the second f16 (a minimum, or the scale
//          of minima); then the 6-bit scales, where there are any
//   for every 32 elements: byte scales, where there are any, then planes of code bits
// In a plane a 64-byte vector is 16 lanes of 4 bytes, 4 neighbours along K; group g of 8 holds the
// elements 4g .. 4g+3:
//   bytes    8 vectors, one a group
//   nibbles  4 vectors, group v in the low and group v + 4 in the high half of each byte
//   pairs    2 vectors of 2-bit fields, group 4v + j in the bits 2j and 2j + 1
//   bits     1 vector, group g in bit g
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
  constexpr int second_at() const { return e8m0 ? 16 : 32; }
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
    const int low = nibbles ? 4 : 2;
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
    default: return {};
  }
}

// A format that keeps the file's rows and whose codes fit 8 bits; elements == 0 for any other.
struct FileRowLayout {
  int elements, bytes;   // of a block
  int parts;             // scales for each 32 elements: 1, or 2 of 16 elements
};
constexpr FileRowLayout file_row_layout(Format f) {
  switch (f) {
    case Format::IQ1_S:   return {256, 50, 1};
    case Format::IQ1_M:   return {256, 56, 2};
    case Format::IQ2_XXS: return {256, 66, 1};
    case Format::IQ2_XS:  return {256, 74, 2};
    case Format::IQ2_S:   return {256, 82, 2};
    case Format::IQ3_XXS: return {256, 98, 1};
    case Format::IQ3_S:   return {256, 110, 1};
    case Format::TQ1_0:   return {256, 54, 1};
    case Format::TQ2_0:   return {256, 66, 1};
    case Format::NVFP4:   return {64, 36, 2};
    case Format::Q1_0:    return {128, 18, 1};
    case Format::Q2_0:    return {64, 18, 1};
    default: return {};
  }
}

// IQ4_NL and IQ4_XS (ggml's non-linear 4-bit grid), and E2M1 doubled (OCP MX formats 1.0).
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace strata
