// Weights from the file's rows into panels, and single rows back out (layout.h has the layout).
// A block is taken apart into codes and scales, and those are put where the kernels want them; one
// whose codes are looked up is a permutation of bytes. Plain numbers are in pack_numbers.cpp.
#include "kernels/decode.h"
#include "kernels/layout.h"
#include "kernels/numbers.h"
#include "kernels/pack_numbers.h"

namespace strata {
namespace {

// The codes and scales of one row in one block of a format.
struct Block {
  alignas(64) uint32_t q[64];   // codes, four elements a word
  uint8_t scale[16];            // of sub-blocks, as they are stored
  uint8_t minimum[8];
  uint16_t d, second;           // d: the E8M0 byte of MXFP4
};

constexpr uint32_t kLow4 = 0x0f0f0f0fu, kLow2 = 0x03030303u, kLow1 = 0x01010101u;

uint32_t word(const uint8_t* p, int i) { return load_le<uint32_t>(p + 4 * i); }

// Four bits to the lowest bits of four bytes.
uint32_t spread_bits(uint32_t four) { return ((four & 15u) * 0x00204081u) & kLow1; }

// Four fields of two bits to four bytes.
uint32_t spread_pairs(uint32_t four) {
  return (four | four << 6 | four << 12 | four << 18) & kLow2;
}

// 32 elements whose first half is in the low nibbles of 16 bytes and second half in the high ones.
void read_nibbles16(const uint8_t* qs, uint32_t* q) {
  for (int g = 0; g < 4; ++g) {
    q[g] = word(qs, g) & kLow4;
    q[g + 4] = (word(qs, g) >> 4) & kLow4;
  }
}

void read_fifth_bits(const uint8_t* qh, uint32_t* q) {
  const uint32_t bits = load_le<uint32_t>(qh);
  for (int g = 0; g < 8; ++g) q[g] |= spread_bits(bits >> 4 * g) << 4;
}

// Q4_K and Q5_K: nibbles of 64 elements in 32 bytes, eight scales and minima of 6 bits in 12.
void read_k4(const uint8_t* scales, const uint8_t* qs, Block& b) {
  for (int s = 0; s < 8; ++s) {
    if (s < 4) {
      b.scale[s] = scales[s] & 63;
      b.minimum[s] = scales[s + 4] & 63;
    } else {
      b.scale[s] = static_cast<uint8_t>((scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4);
      b.minimum[s] = static_cast<uint8_t>((scales[s + 4] >> 4) | (scales[s] >> 6) << 4);
    }
    for (int g = 0; g < 8; ++g) {
      b.q[8 * s + g] = (word(qs + s / 2 * 32, g) >> 4 * (s % 2)) & kLow4;
    }
  }
}

// Q2_K and Q3_K: 2 bits of 128 elements in 32 bytes.
void read_pairs(const uint8_t* qs, Block& b) {
  for (int s = 0; s < 8; ++s) {
    for (int g = 0; g < 8; ++g) {
      b.q[8 * s + g] = (word(qs + s / 4 * 32, g) >> 2 * (s % 4)) & kLow2;
    }
  }
}

void read_block(Format f, const uint8_t* p, Block& b) {
  switch (f) {
    case Format::Q4_0:
    case Format::IQ4_NL:
      b.d = load_le<uint16_t>(p);
      read_nibbles16(p + 2, b.q);
      break;
    case Format::Q4_1:
      b.d = load_le<uint16_t>(p);
      b.second = load_le<uint16_t>(p + 2);
      read_nibbles16(p + 4, b.q);
      break;
    case Format::Q5_0:
      b.d = load_le<uint16_t>(p);
      read_nibbles16(p + 6, b.q);
      read_fifth_bits(p + 2, b.q);
      break;
    case Format::Q5_1:
      b.d = load_le<uint16_t>(p);
      b.second = load_le<uint16_t>(p + 2);
      read_nibbles16(p + 8, b.q);
      read_fifth_bits(p + 4, b.q);
      break;
    case Format::Q8_0:
      b.d = load_le<uint16_t>(p);
      for (int g = 0; g < 8; ++g) b.q[g] = word(p + 2, g) ^ 0x80808080u;   // plus 128
      break;
    case Format::MXFP4:
      b.d = p[0];
      read_nibbles16(p + 1, b.q);
      break;
    case Format::NVFP4:
      for (int s = 0; s < 4; ++s) {
        b.scale[s] = nvfp4_byte(p[s]);
        for (int g = 0; g < 2; ++g) {
          b.q[4 * s + g] = word(p + 4 + 8 * s, g) & kLow4;
          b.q[4 * s + 2 + g] = (word(p + 4 + 8 * s, g) >> 4) & kLow4;
        }
      }
      break;
    case Format::TQ2_0:
      read_pairs(p, b);
      b.d = load_le<uint16_t>(p + 64);
      break;
    case Format::Q1_0:
      b.d = load_le<uint16_t>(p);
      for (int g = 0; g < 32; ++g) b.q[g] = spread_bits(p[2 + g / 2] >> 4 * (g % 2)) << 1;
      break;
    case Format::Q2_0:
      b.d = load_le<uint16_t>(p);
      for (int g = 0; g < 16; ++g) b.q[g] = spread_pairs(p[2 + g]);
      break;
    case Format::Q2_K:
      std::memcpy(b.scale, p, 16);
      read_pairs(p + 16, b);
      b.d = load_le<uint16_t>(p + 80);
      b.second = load_le<uint16_t>(p + 82);
      break;
    case Format::Q3_K:
      read_pairs(p + 32, b);
      for (int s = 0; s < 8; ++s) {
        for (int g = 0; g < 8; ++g) b.q[8 * s + g] |= ((word(p, g) >> s) & kLow1) << 2;
      }
      for (int i = 0; i < 16; ++i) {
        const int low = (p[96 + i % 8] >> 4 * (i / 8)) & 15;
        const int high = (p[104 + i % 4] >> 2 * (i / 4)) & 3;
        b.scale[i] = static_cast<uint8_t>(low | high << 4);
      }
      b.d = load_le<uint16_t>(p + 108);
      break;
    case Format::Q4_K:
    case Format::Q5_K:
      b.d = load_le<uint16_t>(p);
      b.second = load_le<uint16_t>(p + 2);
      if (f == Format::Q4_K) {
        read_k4(p + 4, p + 16, b);
        break;
      }
      read_k4(p + 4, p + 48, b);
      for (int s = 0; s < 8; ++s) {
        for (int g = 0; g < 8; ++g) b.q[8 * s + g] |= ((word(p + 16, g) >> s) & kLow1) << 4;
      }
      break;
    case Format::Q6_K:
      for (int s = 0; s < 8; ++s) {
        const uint8_t* low = p + s / 4 * 64 + s % 2 * 32;
        const uint8_t* high = p + 128 + s / 4 * 32;
        for (int g = 0; g < 8; ++g) {
          b.q[8 * s + g] = ((word(low, g) >> 4 * (s % 4 / 2)) & kLow4) |
                           ((word(high, g) >> 2 * (s % 4)) & kLow2) << 4;
        }
      }
      std::memcpy(b.scale, p + 192, 16);
      b.d = load_le<uint16_t>(p + 208);
      break;
    case Format::IQ4_XS:
      b.d = load_le<uint16_t>(p);
      for (int s = 0; s < 8; ++s) {
        const int low = (p[4 + s / 2] >> 4 * (s % 2)) & 15;
        const int high = (load_le<uint16_t>(p + 2) >> 2 * s) & 3;
        b.scale[s] = static_cast<uint8_t>((low | high << 4) - 32);
        read_nibbles16(p + 8 + 16 * s, b.q + 8 * s);
      }
      break;
    default: break;
  }
}

// Value i of two 6-bit scales of sub-block `sub`.
uint8_t& six_value(const PanelLayout& l, Block& b, int sub, int i) {
  if (l.sub_scale == SubScale::six_with_min) return i == 0 ? b.scale[sub] : b.minimum[sub];
  return b.scale[2 * sub + i];
}

// Where a 6-bit scale lies: its low bits and its high bits, each with a shift.
struct SixPlace {
  int low, low_shift, high, high_shift;
  SixPlace(const PanelLayout& l, int lane, int sub, int i) {
    const int vector = sub / 2;
    const int at = sub % 2 * 32 + 16 * i + lane;
    low = l.six_at() + 64 * (vector % 2) + at;
    low_shift = 4 * (vector / 2);
    high = l.six_at() + 128 + at;
    high_shift = 2 * vector;
  }
};

// Into a panel whose bytes at this lane are zero.
void write_lane(const PanelLayout& l, Block& b, uint8_t* panel, int lane) {
  if (l.e8m0) {
    panel[lane] = static_cast<uint8_t>(b.d);
  } else if (l.sub_scale != SubScale::e4m3) {
    std::memcpy(panel + 2 * lane, &b.d, 2);
  }
  if (l.second) std::memcpy(panel + l.second_at() + 2 * lane, &b.second, 2);
  for (int sub = 0; sub < l.subs(); ++sub) {
    for (int i = 0; l.six() && i < 2; ++i) {
      const SixPlace place(l, lane, sub, i);
      const int v = six_value(l, b, sub, i);
      panel[place.low] |= static_cast<uint8_t>((v & 15) << place.low_shift);
      panel[place.high] |= static_cast<uint8_t>((v >> 4) << place.high_shift);
    }
    uint8_t* p = panel + l.head() + sub * l.sub();
    for (int i = 0; i < l.byte_scales(); ++i) p[16 * i + lane] = b.scale[l.parts * sub + i];
    const uint32_t* q = b.q + 8 * sub;
    const auto put = [&](int at, int vector, uint32_t v) {
      std::memcpy(p + at + 64 * vector + 4 * lane, &v, 4);
    };
    if (l.bytes) {
      for (int g = 0; g < 8; ++g) put(l.codes_at(), g, q[g]);
    }
    if (l.nibbles) {
      for (int g = 0; g < 4; ++g) put(l.codes_at(), g, (q[g] & kLow4) | (q[g + 4] & kLow4) << 4);
    }
    if (l.pairs) {
      const int from = l.nibbles ? 4 : 0;
      for (int v = 0; v < 2; ++v) {
        uint32_t packed = 0;
        for (int j = 0; j < 4; ++j) packed |= ((q[4 * v + j] >> from) & kLow2) << 2 * j;
        put(l.pairs_at(), v, packed);
      }
    }
    if (l.bits) {
      const int from = l.bit_at();
      uint32_t packed = 0;
      for (int g = 0; g < 8; ++g) packed |= ((q[g] >> from) & kLow1) << g;
      put(l.bits_at(), 0, packed);
    }
  }
}

void read_lane(const PanelLayout& l, const uint8_t* panel, int lane, Block& b) {
  b.d = l.e8m0 ? panel[lane] : load_le<uint16_t>(panel + 2 * lane);   // e4m3: of no matter
  b.second = l.second ? load_le<uint16_t>(panel + l.second_at() + 2 * lane) : uint16_t{0};
  for (int sub = 0; sub < l.subs(); ++sub) {
    for (int i = 0; l.six() && i < 2; ++i) {
      const SixPlace place(l, lane, sub, i);
      const int low = (panel[place.low] >> place.low_shift) & 15;
      const int high = (panel[place.high] >> place.high_shift) & 3;
      six_value(l, b, sub, i) = static_cast<uint8_t>(low | high << 4);
    }
    const uint8_t* p = panel + l.head() + sub * l.sub();
    for (int i = 0; i < l.byte_scales(); ++i) b.scale[l.parts * sub + i] = p[16 * i + lane];
    for (int g = 0; g < 8; ++g) {
      const auto get = [&](int at, int vector) { return word(p + at + 64 * vector, lane); };
      uint32_t q = 0;
      if (l.bytes) q = get(l.codes_at(), g);
      if (l.nibbles) q = (get(l.codes_at(), g % 4) >> (g & 4)) & kLow4;
      if (l.pairs) {
        q |= ((get(l.pairs_at(), g / 4) >> 2 * (g % 4)) & kLow2) << (l.nibbles ? 4 : 0);
      }
      if (l.bits) q |= ((get(l.bits_at(), 0) >> g) & kLow1) << l.bit_at();
      b.q[8 * sub + g] = q;
    }
  }
}

// The numbers of a block, each rounded as the file format's definition rounds it.
void block_floats(const PanelLayout& l, const Block& b, float* out) {
  const float d = l.e8m0 ? e8m0_half(static_cast<uint8_t>(b.d)) : half_to_float(b.d);
  const float second = half_to_float(b.second);
  const int run = 32 / l.parts;
  for (int i = 0; i < l.elements; ++i) {
    const int part = i / run;
    float scale = d;
    float minimum = second;
    switch (l.sub_scale) {
      case SubScale::none: break;
      case SubScale::six_signed: scale = d * static_cast<float>(b.scale[part] - 32); break;
      case SubScale::six_with_min:
        scale = d * static_cast<float>(b.scale[part]);
        minimum = -(second * static_cast<float>(b.minimum[part]));
        break;
      case SubScale::byte_signed:
        scale = d * static_cast<float>(static_cast<int8_t>(b.scale[part]));
        break;
      case SubScale::e4m3: scale = e4m3_scale(b.scale[part]) * 0.5f; break;
      case SubScale::nibble_with_min:
        scale = d * static_cast<float>(b.scale[part] & 15);
        minimum = -(second * static_cast<float>(b.scale[part] >> 4));
        break;
    }
    const int code = static_cast<int>((b.q[i / 4] >> 8 * (i % 4)) & 255u);
    int value = code - l.zero;
    if (l.codebook == Codebook::iq4) value = kIq4Values[code];
    if (l.codebook == Codebook::mxfp4) value = kMxfp4Values[code];
    out[i] = scale * static_cast<float>(value);
    if (l.minima()) out[i] += minimum;
  }
}

// A run of a block's bytes in the file and in a panel, where lanes are `stride` bytes apart.
struct Piece { int file, size, panel, stride; };

// Calls f(Piece) for all of a block of a format of book_layout.
template <class F> void for_pieces(Format format, F f) {
  const BookLayout l = book_layout(format);
  const auto words = [&](int file, int count, int panel) {
    for (int i = 0; i < count; ++i) f(Piece{file + 4 * i, 4, panel + 64 * i, 4});
  };
  const auto planes = [&](int file, int size, int count, int panel) {
    for (int i = 0; i < count; ++i) f(Piece{file + size * i, size, panel + 16 * size * i, size});
  };
  const auto subs = [&](int file, int words_each, int at) {
    for (int s = 0; s < 8; ++s) words(file + 4 * words_each * s, words_each, l.head() + at + s * l.sub());
  };
  switch (format) {
    case Format::IQ1_S:
      planes(0, 2, 1, 0);
      planes(34, 2, 8, l.high_at());
      return subs(2, 1, 0);
    case Format::IQ1_M:
      planes(48, 2, 4, 0);
      planes(32, 2, 8, l.high_at());
      return subs(0, 1, 0);
    case Format::IQ2_XXS:
      planes(0, 2, 1, 0);
      return subs(2, 2, 0);
    case Format::IQ2_XS:
      planes(0, 2, 1, 0);
      planes(66, 1, 8, l.scales_at());
      for (int i = 0; i < 64; ++i) {   // low bytes of the indices, then what is above them
        const int at = l.head() + i / 8 * l.sub() + (i % 2 ? l.signs_at() : 0) + i % 8 / 2;
        f(Piece{2 + i, 1, at, 4});
      }
      return;
    case Format::IQ2_S:
      planes(0, 2, 1, 0);
      planes(74, 1, 8, l.scales_at());
      planes(66, 1, 8, l.high_at());
      subs(2, 1, 0);
      return subs(34, 1, l.signs_at());
    case Format::IQ3_XXS:
      planes(0, 2, 1, 0);
      subs(2, 2, 0);
      return subs(66, 1, l.signs_at());
    case Format::IQ3_S:
      planes(0, 2, 1, 0);
      planes(106, 1, 4, l.scales_at());
      planes(66, 1, 8, l.high_at());
      subs(2, 2, 0);
      return subs(74, 1, l.signs_at());
    case Format::TQ1_0:
      planes(52, 2, 1, 0);
      return words(0, 13, l.head());
    default: return;
  }
}

void pack_book(Format f, const uint8_t* src, int64_t n, int64_t k, uint8_t* panel, int64_t row0) {
  const BookLayout l = book_layout(f);
  const int64_t bytes = format_info(f)->bytes, blocks = k / l.elements;
  const int64_t lanes = n - row0 < kPanel ? n - row0 : kPanel;
  for (int64_t i = 0; i < blocks; ++i, panel += l.block()) {
    if (lanes < kPanel) std::memset(panel, 0, static_cast<size_t>(l.block()));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const uint8_t* block = src + ((row0 + lane) * blocks + i) * bytes;
      for_pieces(f, [&](const Piece& p) {
        std::memcpy(panel + p.panel + lane * p.stride, block + p.file, static_cast<size_t>(p.size));
      });
    }
  }
}

void pack_codes(Format f, const PanelLayout& l, const uint8_t* src, int64_t n, int64_t k,
                uint8_t* panel, int64_t row0) {
  const int64_t bytes = format_info(f)->bytes;
  const int64_t blocks = k / l.elements;
  const int lanes = static_cast<int>(n - row0 < kPanel ? n - row0 : kPanel);
  Block b{};
  for (int64_t i = 0; i < blocks; ++i, panel += l.block()) {
    if (lanes < kPanel || l.six()) std::memset(panel, 0, static_cast<size_t>(l.block()));
    for (int lane = 0; lane < lanes; ++lane) {
      read_block(f, src + ((row0 + lane) * blocks + i) * bytes, b);
      write_lane(l, b, panel, lane);
    }
  }
}

int64_t row_bytes(Format f, int64_t k) {
  const FormatInfo& info = *format_info(f);
  return k / info.elements * info.bytes;
}

int64_t panel_bytes(Format f, int64_t k) {
  const PanelLayout l = panel_layout(f);
  if (l.elements != 0) return k / l.elements * l.block();
  if (const BookLayout book = book_layout(f); book.parts != 0) return k / book.elements * book.block();
  return numbers_panel_bytes(f, k);
}

}  // namespace

size_t packed_bytes(Format f, int64_t n, int64_t k) {
  return static_cast<size_t>(panels(n) * panel_bytes(f, k));
}

void pack(Format f, const uint8_t* src, int64_t n, int64_t k, uint8_t* dst, int64_t panel0,
          int64_t panel1) {
  const PanelLayout l = panel_layout(f);
  const int64_t bytes = panel_bytes(f, k);
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    uint8_t* out = dst + panel * bytes;
    const int64_t row0 = panel * kPanel;
    if (l.elements != 0) {
      pack_codes(f, l, src, n, k, out, row0);
      continue;
    }
    if (book_layout(f).parts != 0) {
      pack_book(f, src, n, k, out, row0);
      continue;
    }
    const int lanes = static_cast<int>(n - row0 < kPanel ? n - row0 : kPanel);
    pack_numbers(f, src + row0 * row_bytes(f, k), lanes, k, nullptr, out);
  }
}

void pack(const KernelTable& kernels, Format f, const uint8_t* src, int64_t n, int64_t k,
          uint8_t* dst, int64_t panel0, int64_t panel1) {
  const int64_t row = row_bytes(f, k);
  const PackPanelFn fast = kernels.pack_panel(f, row);
  if (fast != nullptr) {
    const int64_t bytes = panel_bytes(f, k);
    for (; panel0 < panel1 && (panel0 + 1) * kPanel <= n; ++panel0) {
      const uint8_t* rows = src + panel0 * kPanel * row;
      uint8_t* panel = dst + panel0 * bytes;
      if (f == Format::F8_E4M3_B128) pack_numbers(f, rows, kPanel, k, fast, panel);
      else fast(rows, row, format_info(f)->bytes, panel);
    }
  }
  if (panel0 < panel1) pack(f, src, n, k, dst, panel0, panel1);
}

void unpack_row(Format f, const uint8_t* packed, int64_t n, int64_t k, int64_t row, float* out) {
  (void)n;
  const uint8_t* panel = packed + row / kPanel * panel_bytes(f, k);
  const int lane = static_cast<int>(row % kPanel);
  const PanelLayout l = panel_layout(f);
  if (l.elements != 0) {
    Block b{};
    for (int64_t i = 0; i < k; i += l.elements, panel += l.block()) {
      read_lane(l, panel, lane, b);
      block_floats(l, b, out + i);
    }
    return;
  }
  if (const BookLayout book = book_layout(f); book.parts != 0) {
    uint8_t block[128];
    for (int64_t i = 0; i < k; i += book.elements, panel += book.block()) {
      for_pieces(f, [&](const Piece& p) {
        std::memcpy(block + p.file, panel + p.panel + lane * p.stride, static_cast<size_t>(p.size));
      });
      decode_row(f, block, book.elements, out + i);
    }
    return;
  }
  unpack_numbers(f, panel, k, lane, out);
}

}  // namespace strata
