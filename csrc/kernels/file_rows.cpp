// Layouts: ggml-common.h of the ggml project; the numpy decoders of strata.quant are the truth.
#include "kernels/file_rows.h"

#include <array>

#include "kernels/decode.h"
#include "kernels/numbers.h"

namespace strata {
namespace {

using Word = uint64_t;   // eight codes, the first in the lowest byte
constexpr Word kOnes = 0x0101010101010101u;
constexpr Word kTops = 0x8080808080808080u;

// All bits of a byte where a bit is set.
constexpr std::array<Word, 256> kSpread = [] {
  std::array<Word, 256> table{};
  for (size_t bits = 0; bits < 256; ++bits) {
    for (int i = 0; i < 8; ++i) table[bits] |= (bits >> i & 1) * (Word{255} << 8 * i);
  }
  return table;
}();
// The same of seven bits and an eighth that makes their number even.
constexpr std::array<Word, 128> kSpreadEven = [] {
  std::array<Word, 128> table{};
  for (size_t bits = 0; bits < 128; ++bits) {
    table[bits] = kSpread[bits | static_cast<size_t>(std::popcount(bits) & 1) << 7];
  }
  return table;
}();
// Four fields of two bits, one less than they are.
constexpr std::array<uint32_t, 256> kTernary = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    for (int i = 0; i < 4; ++i) table[bits] |= (((bits >> 2 * i & 3) - 1) & 255) << 8 * i;
  }
  return table;
}();

// Byte by byte.
constexpr Word minus(Word a, Word b) { return ((a | kTops) - (b & ~kTops)) ^ (~(a ^ b) & kTops); }
// Negative where `mask` has all bits of a byte; no byte of `word` is zero.
constexpr Word negated(Word word, Word mask) { return (word ^ mask) + (mask & kOnes); }

Word word_of(const uint8_t* grid, uint32_t index) { return load_le<Word>(grid + 8 * index); }
Word word_of_two(const uint8_t* grid, uint32_t low, uint32_t high) {
  return load_le<uint32_t>(grid + 4 * low) | Word{load_le<uint32_t>(grid + 4 * high)} << 32;
}
// Eight values of IQ1's grid times eight, one more or one less.
Word eighths(const uint8_t* grid, uint32_t index, bool down) {
  const Word word = word_of(grid, index) << 3 & ~(kOnes * 7);
  return minus(word | kOnes, Word{down} * (2 * kOnes));
}

// What a decoder gives of 32 elements.
struct Codes {
  Word words[4];
  float scale[2];
};

template <Format kFormat> struct Decoder;   // of(block, grid, which 32 of it) -> Codes

template <> struct Decoder<Format::IQ2_XXS> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const uint8_t* index = b + 2 + 8 * sub;
    const uint32_t word = load_le<uint32_t>(index + 4);
    Codes c;
    for (int i = 0; i < 4; ++i) {
      c.words[i] = negated(word_of(grid, index[i]), kSpreadEven[word >> 7 * i & 127]);
    }
    c.scale[0] = (0.5f + static_cast<float>(word >> 28)) * load_half(b) * 0.25f;
    return c;
  }
};

// Two scales of four bits.
void nibble_scales(uint8_t nibbles, float d, float* scale) {
  scale[0] = (0.5f + static_cast<float>(nibbles & 15)) * d * 0.25f;
  scale[1] = (0.5f + static_cast<float>(nibbles >> 4)) * d * 0.25f;
}

template <> struct Decoder<Format::IQ2_XS> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = load_le<uint16_t>(b + 2 + 8 * sub + 2 * i);
      c.words[i] = negated(word_of(grid, word & 511), kSpreadEven[word >> 9]);
    }
    nibble_scales(b[66 + sub], load_half(b), c.scale);
    return c;
  }
};

template <> struct Decoder<Format::IQ2_S> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const uint8_t* index = b + 2 + 4 * sub;
    const uint32_t high = b[66 + sub];
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const Word word = word_of(grid, index[i] | (high >> 2 * i & 3) << 8);
      c.words[i] = negated(word, kSpread[index[32 + i]]);
    }
    nibble_scales(b[74 + sub], load_half(b), c.scale);
    return c;
  }
};

template <> struct Decoder<Format::IQ3_XXS> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const uint8_t* index = b + 2 + 8 * sub;
    const uint32_t word = load_le<uint32_t>(b + 66 + 4 * sub);
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const Word two = word_of_two(grid, index[2 * i], index[2 * i + 1]);
      c.words[i] = negated(two, kSpreadEven[word >> 7 * i & 127]);
    }
    c.scale[0] = (0.5f + static_cast<float>(word >> 28)) * load_half(b) * 0.5f;
    return c;
  }
};

template <> struct Decoder<Format::IQ3_S> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const uint8_t* index = b + 2 + 8 * sub;
    const uint32_t high = b[66 + sub];
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const uint32_t low_index = index[2 * i] | (high >> 2 * i & 1) << 8;
      const uint32_t high_index = index[2 * i + 1] | (high >> (2 * i + 1) & 1) << 8;
      c.words[i] =
          negated(word_of_two(grid, low_index, high_index), kSpread[b[74 + 4 * sub + i]]);
    }
    const int nibble = b[106 + sub / 2] >> 4 * (sub % 2) & 15;
    c.scale[0] = load_half(b) * static_cast<float>(1 + 2 * nibble);
    return c;
  }
};

template <> struct Decoder<Format::IQ1_S> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const uint32_t word = load_le<uint16_t>(b + 34 + 2 * sub);
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const uint32_t index = b[2 + 4 * sub + i] | (word >> 3 * i & 7) << 8;
      c.words[i] = eighths(grid, index, word >> 15 != 0);
    }
    c.scale[0] = load_half(b) * static_cast<float>(2 * (word >> 12 & 7) + 1) * 0.125f;
    return c;
  }
};

template <> struct Decoder<Format::IQ1_M> {
  static Codes of(const uint8_t* b, const uint8_t* grid, int sub) {
    const Word words = load_le<Word>(b + 48);   // four of 16 bits: the top four of each are d
    const uint32_t d = static_cast<uint32_t>(words >> 12 & 15) |
                       static_cast<uint32_t>(words >> 28 & 15) << 4 |
                       static_cast<uint32_t>(words >> 44 & 15) << 8 |
                       static_cast<uint32_t>(words >> 60) << 12;
    const uint32_t scales = static_cast<uint32_t>(words >> (16 * (sub / 2) + 6 * (sub % 2)));
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const uint32_t nibble = b[32 + 2 * sub + i / 2] >> 4 * (i % 2);
      c.words[i] = eighths(grid, b[4 * sub + i] | (nibble & 7) << 8, (nibble & 8) != 0);
    }
    const float eighth = half_to_float(static_cast<uint16_t>(d)) * 0.125f;
    c.scale[0] = eighth * static_cast<float>(2 * (scales & 7) + 1);
    c.scale[1] = eighth * static_cast<float>(2 * (scales >> 3 & 7) + 1);
    return c;
  }
};

// Digit `digit` to the base of 3 after the point of `count` bytes over 256, minus one.
void ternary_digits(const uint8_t* bytes, int count, int digit, uint8_t* out) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const uint8_t power = kPowers[digit];
  for (int i = 0; i < count; ++i) {
    const uint8_t rest = static_cast<uint8_t>(bytes[i] * power);
    out[i] = static_cast<uint8_t>((rest * 3 >> 8) - 1);
  }
}

template <> struct Decoder<Format::TQ1_0> {
  static Codes of(const uint8_t* b, const uint8_t*, int sub) {
    alignas(8) uint8_t bytes[32];
    if (sub < 5) {
      ternary_digits(b, 32, sub, bytes);
    } else {
      // 16 bytes have five digits, the last four bytes four.
      const int digit = 2 * (sub - 5);
      ternary_digits(b + 32, 16, digit, bytes);
      if (digit < 4) ternary_digits(b + 32, 16, digit + 1, bytes + 16);
      else for (int i = 0; i < 4; ++i) ternary_digits(b + 48, 4, i, bytes + 16 + 4 * i);
    }
    Codes c;
    std::memcpy(c.words, bytes, sizeof bytes);
    c.scale[0] = load_half(b + 52);
    return c;
  }
};

template <> struct Decoder<Format::TQ2_0> {
  static Codes of(const uint8_t* b, const uint8_t*, int sub) {
    Codes c;
    for (int i = 0; i < 4; ++i) {
      const Word word = load_le<Word>(b + sub / 4 * 32 + 8 * i);
      c.words[i] = minus(word >> 2 * (sub % 4) & kOnes * 3, kOnes);
    }
    c.scale[0] = load_half(b + 64);
    return c;
  }
};

template <> struct Decoder<Format::NVFP4> {
  static Codes of(const uint8_t* b, const uint8_t*, int sub) {
    Codes c;
    for (int part = 0; part < 2; ++part) {
      const uint8_t* bytes = b + 4 + 8 * (2 * sub + part);
      Word low = 0, high = 0;
      for (int i = 0; i < 8; ++i) {
        low |= Word{static_cast<uint8_t>(kMxfp4Values[bytes[i] & 15])} << 8 * i;
        high |= Word{static_cast<uint8_t>(kMxfp4Values[bytes[i] >> 4])} << 8 * i;
      }
      c.words[2 * part] = low;
      c.words[2 * part + 1] = high;
      c.scale[part] = nvfp4_scale(b[2 * sub + part]);
    }
    return c;
  }
};

template <> struct Decoder<Format::Q1_0> {
  static Codes of(const uint8_t* b, const uint8_t*, int sub) {
    Codes c;
    for (int i = 0; i < 4; ++i) c.words[i] = ~kSpread[b[2 + 4 * sub + i]] | kOnes;
    c.scale[0] = load_half(b);
    return c;
  }
};

template <> struct Decoder<Format::Q2_0> {
  static Codes of(const uint8_t* b, const uint8_t*, int sub) {
    const uint8_t* bytes = b + 2 + 8 * sub;
    Codes c;
    for (int i = 0; i < 4; ++i) {
      c.words[i] = kTernary[bytes[2 * i]] | Word{kTernary[bytes[2 * i + 1]]} << 32;
    }
    c.scale[0] = load_half(b);
    return c;
  }
};

template <Format kFormat>
void unpack(const uint8_t* rows, int64_t n, int64_t k, int64_t panel, int64_t begin, int64_t end,
            const CodesTo& to) {
  constexpr FileRowLayout kL = file_row_layout(kFormat);
  const uint8_t* grid = grid_of(kFormat);
  const int64_t row_bytes = k / kL.elements * kL.bytes;
  const int64_t group = 4 * to.width, sub_bytes = (32 + 4 * kL.parts) * to.width;
  const Word bias = to.biased ? kTops : 0;
  for (int64_t lane = 0; lane < kPanel; ++lane) {
    const int64_t row = panel * kPanel + lane;
    const uint8_t* block = rows + row * row_bytes + begin * kL.bytes;
    uint8_t* out = to.at + lane / to.width * to.unit_bytes + lane % to.width * 4;
    for (int64_t b = begin; b < end; ++b, block += kL.bytes) {
      for (int sub = 0; sub < kL.elements / 32; ++sub, out += sub_bytes) {
        const Codes c = row < n ? Decoder<kFormat>::of(block, grid, sub) : Codes{};
        for (int i = 0; i < 4; ++i) {
          const Word word = c.words[i] ^ bias;
          const uint32_t halves[2] = {static_cast<uint32_t>(word),
                                      static_cast<uint32_t>(word >> 32)};
          std::memcpy(out + 2 * i * group, &halves[0], 4);
          std::memcpy(out + (2 * i + 1) * group, &halves[1], 4);
        }
        std::memcpy(out + 8 * group, c.scale, 4);
        if (kL.parts == 2) std::memcpy(out + 9 * group, c.scale + 1, 4);
      }
    }
  }
}

}  // namespace

void unpack_file_rows(Format f, const uint8_t* rows, int64_t n, int64_t k, int64_t panel,
                      int64_t begin, int64_t end, const CodesTo& to) {
  switch (f) {
#define STRATA_ROWS(name) \
  case Format::name: return unpack<Format::name>(rows, n, k, panel, begin, end, to);
    STRATA_ROWS(IQ1_S) STRATA_ROWS(IQ1_M) STRATA_ROWS(IQ2_XXS) STRATA_ROWS(IQ2_XS)
    STRATA_ROWS(IQ2_S) STRATA_ROWS(IQ3_XXS) STRATA_ROWS(IQ3_S) STRATA_ROWS(TQ1_0)
    STRATA_ROWS(TQ2_0) STRATA_ROWS(NVFP4) STRATA_ROWS(Q1_0) STRATA_ROWS(Q2_0)
#undef STRATA_ROWS
    default: return;
  }
}

}  // namespace strata
