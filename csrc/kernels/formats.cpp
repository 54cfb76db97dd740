// The table of formats, the codebooks handed over by Python, and the decoders of the formats that
// are not made of plain codes. Layouts: ggml-common.h of the ggml project; OCP MX formats 1.0; the numpy
// decoders of strata.quant are the truth, and these give the same bits.
#include <array>
#include <atomic>
#include <mutex>

#include "kernels/decode.h"
#include "kernels/layout.h"
#include "kernels/numbers.h"

namespace strata {
namespace {

constexpr FormatInfo kFormats[] = {
    {Format::F32, 1, 4, ActKind::f32},
    {Format::F16, 1, 2, ActKind::f32},
    {Format::BF16, 1, 2, ActKind::bf16},
    {Format::Q4_0, 32, 18, ActKind::q8},
    {Format::Q4_1, 32, 20, ActKind::q8},
    {Format::Q5_0, 32, 22, ActKind::q8},
    {Format::Q5_1, 32, 24, ActKind::q8},
    {Format::Q8_0, 32, 34, ActKind::q8},
    {Format::Q2_K, 256, 84, ActKind::q8},
    {Format::Q3_K, 256, 110, ActKind::q8},
    {Format::Q4_K, 256, 144, ActKind::q8},
    {Format::Q5_K, 256, 176, ActKind::q8},
    {Format::Q6_K, 256, 210, ActKind::q8},
    {Format::IQ4_NL, 32, 18, ActKind::q8},
    {Format::IQ4_XS, 256, 136, ActKind::q8},
    {Format::MXFP4, 32, 17, ActKind::q8},
    {Format::F64, 1, 8, ActKind::f32},
    {Format::IQ1_S, 256, 50, ActKind::q8},
    {Format::IQ1_M, 256, 56, ActKind::q8},
    {Format::IQ2_XXS, 256, 66, ActKind::q8},
    {Format::IQ2_XS, 256, 74, ActKind::q8},
    {Format::IQ2_S, 256, 82, ActKind::q8},
    {Format::IQ3_XXS, 256, 98, ActKind::q8},
    {Format::IQ3_S, 256, 110, ActKind::q8},
    {Format::TQ1_0, 256, 54, ActKind::q8},
    {Format::TQ2_0, 256, 66, ActKind::q8},
    {Format::NVFP4, 64, 36, ActKind::q8},
    {Format::Q1_0, 128, 18, ActKind::q8},
    {Format::Q2_0, 64, 18, ActKind::q8},
    {Format::F8_E4M3_B128, 128, 132, ActKind::f32},
};

consteval bool layouts_fit_the_file() {
  for (const FormatInfo& f : kFormats) {
    if (f.act != ActKind::q8) continue;
    if (const BookLayout l = book_layout(f.format); l.parts != 0) {
      if (l.elements != f.elements || l.block() != kPanel * f.bytes) return false;
      continue;
    }
    const PanelLayout l = panel_layout(f.format);
    const int more = l.block() - kPanel * f.bytes;
    if (l.elements != f.elements || more != (f.format == Format::IQ4_XS ? 2 * kPanel : 0)) {
      return false;
    }
  }
  return true;
}
static_assert(layouts_fit_the_file());

// IQ1_S int8 [2048][8] (IQ1_M too), IQ2_XXS [256][8], IQ2_XS [512][8], IQ2_S [1024][8],
// IQ3_XXS [256][4], IQ3_S [512][4].
struct Grid {
  Format format;
  size_t bytes;
  std::atomic<const uint8_t*> data;
  uint8_t* codes;
  uint8_t* fields;
};
// Codes of all entries, then fields.
template <Format kFormat> struct BookRoom {
  static constexpr BookLayout kL = book_layout(kFormat);
  alignas(64) static inline uint8_t codes[128 * kL.tables * kL.entry];
  alignas(64) static inline uint8_t fields[2 * 128 * kL.tables];
};
template <Format kFormat> constexpr Grid grid_for() {
  using Room = BookRoom<kFormat>;
  return {kFormat, sizeof Room::codes, nullptr, Room::codes, Room::fields};
}
Grid grids[] = {
    grid_for<Format::IQ1_S>(), grid_for<Format::IQ2_XXS>(), grid_for<Format::IQ2_XS>(),
    grid_for<Format::IQ2_S>(), grid_for<Format::IQ3_XXS>(), grid_for<Format::IQ3_S>(),
};
std::mutex grids_written;

// Fills in what is made of a grid; false where it has a value that its format does not know.
bool make_book(const Grid& g, const uint8_t* data) {
  const BookLayout l = book_layout(g.format);
  const BookValues values = book_values(g.format);
  const int width = l.entry == 8 ? 2 : 4;   // of a field in bits
  const size_t entries = g.bytes / static_cast<size_t>(l.entry);
  std::memset(g.fields, 0, 2 * entries);
  for (size_t i = 0; i < g.bytes; ++i) {
    const uint8_t code = static_cast<uint8_t>(
        g.format == Format::IQ1_S ? l.zero - 1 + 8 * static_cast<int8_t>(data[i])
                                  : l.zero + data[i]);
    int field = 0;
    while (field < 1 << (l.entry == 8 ? 2 : 3) && values.v[field] != code) ++field;
    if (field == 1 << (l.entry == 8 ? 2 : 3)) return false;
    g.codes[i] = code;
    const size_t entry = i / static_cast<size_t>(l.entry);
    const int element = static_cast<int>(i) % l.entry, half = l.entry / 2;
    g.fields[entry + (element < half ? 0 : entries)] |=
        static_cast<uint8_t>(field << width * (element % half));
  }
  return true;
}

// Eight signs from seven bits: the eighth makes their number even.
uint8_t even_signs(uint32_t seven) {
  seven &= 127;
  return static_cast<uint8_t>(seven | (std::popcount(seven) & 1) << 7);
}

// `count` grid values times scale, negative where the sign bit is set.
void put_signed(const uint8_t* values, int count, float scale, int signs, float* out) {
  for (int i = 0; i < count; ++i) {
    const float v = scale * static_cast<float>(values[i]);
    out[i] = (signs >> i) & 1 ? -v : v;
  }
}

void decode_iq2_xxs(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int g = 0; g < 8; ++g) {
    const uint8_t* index = b + 2 + 8 * g;
    const uint32_t word = load_le<uint32_t>(index + 4);
    const float scale = (0.5f + static_cast<float>(word >> 28)) * d * 0.25f;
    for (int i = 0; i < 4; ++i, out += 8) {
      put_signed(grid_of(Format::IQ2_XXS) + 8 * index[i], 8, scale, even_signs(word >> 7 * i), out);
    }
  }
}

float nibble_scale(const uint8_t* nibbles, int i, float d) {
  return (0.5f + static_cast<float>((nibbles[i / 2] >> 4 * (i % 2)) & 15)) * d * 0.25f;
}

void decode_iq2_xs(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i, out += 8) {
    const uint32_t word = load_le<uint16_t>(b + 2 + 2 * i);
    put_signed(grid_of(Format::IQ2_XS) + 8 * (word & 511), 8, nibble_scale(b + 66, i / 2, d),
               even_signs(word >> 9), out);
  }
}

void decode_iq2_s(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i, out += 8) {
    const int high = (b[66 + i / 4] >> 2 * (i % 4)) & 3;
    put_signed(grid_of(Format::IQ2_S) + 8 * (b[2 + i] | high << 8), 8,
               nibble_scale(b + 74, i / 2, d), b[34 + i], out);
  }
}

void decode_iq3_xxs(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int g = 0; g < 8; ++g) {
    const uint32_t word = load_le<uint32_t>(b + 66 + 4 * g);
    const float scale = (0.5f + static_cast<float>(word >> 28)) * d * 0.5f;
    for (int i = 0; i < 8; ++i, out += 4) {
      const int signs = even_signs(word >> 7 * (i / 2)) >> 4 * (i % 2);
      put_signed(grid_of(Format::IQ3_XXS) + 4 * b[2 + 8 * g + i], 4, scale, signs, out);
    }
  }
}

void decode_iq3_s(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 64; ++i, out += 4) {
    const int index = b[2 + i] | ((b[66 + i / 8] >> i % 8) & 1) << 8;
    const int nibble = (b[106 + i / 16] >> 4 * (i / 8 % 2)) & 15;
    put_signed(grid_of(Format::IQ3_S) + 4 * index, 4, d * static_cast<float>(1 + 2 * nibble),
               b[74 + i / 2] >> 4 * (i % 2), out);
  }
}

// Eight values of IQ1's grid, moved by an eighth.
void put_shifted(int index, float scale, bool down, float* out) {
  const int8_t* values = reinterpret_cast<const int8_t*>(grid_of(Format::IQ1_S)) + 8 * index;
  for (int i = 0; i < 8; ++i) {
    out[i] = scale * (static_cast<float>(values[i]) + (down ? -0.125f : 0.125f));
  }
}

void decode_iq1_s(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i, out += 8) {
    const int word = load_le<uint16_t>(b + 34 + 2 * (i / 4));
    const int index = b[2 + i] | ((word >> 3 * (i % 4)) & 7) << 8;
    put_shifted(index, d * static_cast<float>(2 * ((word >> 12) & 7) + 1), word & 0x8000, out);
  }
}

void decode_iq1_m(const uint8_t* b, float* out) {
  uint16_t d_bits = 0;
  for (int w = 0; w < 4; ++w) {
    d_bits = static_cast<uint16_t>(d_bits | load_le<uint16_t>(b + 48 + 2 * w) >> 12 << 4 * w);
  }
  const float d = half_to_float(d_bits);
  for (int i = 0; i < 32; ++i, out += 8) {
    const int word = load_le<uint16_t>(b + 48 + 2 * (i / 8));
    const int scale = (word >> 3 * (i / 2 % 4)) & 7;
    const int nibble = b[32 + i / 2] >> 4 * (i % 2);
    put_shifted(b[i] | (nibble & 7) << 8, d * static_cast<float>(2 * scale + 1), nibble & 8, out);
  }
}

// Base-3 digits after the point of a byte over 256: 32, 16 and 4 bytes with 5, 5 and 4 digits.
void decode_tq1_0(const uint8_t* b, float* out) {
  const float d = load_half(b + 52);
  constexpr int kRuns[3][3] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};   // first byte, bytes, digits
  for (const auto& run : kRuns) {
    int power = 1;
    for (int digit = 0; digit < run[2]; ++digit, power *= 3) {
      for (int i = 0; i < run[1]; ++i) {
        const int rest = (b[run[0] + i] * power) & 255;
        *out++ = d * static_cast<float>((rest * 3 >> 8) - 1);
      }
    }
  }
}

using BlockDecoder = void (*)(const uint8_t* block, float* out);

BlockDecoder block_decoder(Format f) {
  switch (f) {
    case Format::IQ1_S: return decode_iq1_s;
    case Format::IQ1_M: return decode_iq1_m;
    case Format::IQ2_XXS: return decode_iq2_xxs;
    case Format::IQ2_XS: return decode_iq2_xs;
    case Format::IQ2_S: return decode_iq2_s;
    case Format::IQ3_XXS: return decode_iq3_xxs;
    case Format::IQ3_S: return decode_iq3_s;
    case Format::TQ1_0: return decode_tq1_0;
    default: return nullptr;
  }
}

}  // namespace

const uint8_t* grid_of(Format f) {
  const Format owner = f == Format::IQ1_M ? Format::IQ1_S : f;
  for (const Grid& g : grids) {
    if (g.format == owner) return g.data.load(std::memory_order_acquire);
  }
  return nullptr;
}

const FormatInfo* format_info(Format f) {
  for (const FormatInfo& info : kFormats) {
    if (info.format == f) return &info;
  }
  return nullptr;
}

size_t act_row_bytes(ActKind kind, int64_t k) {
  // An odd number of lines: rows then start in different sets of a cache.
  if (kind == ActKind::q8) return static_cast<size_t>(k / kActBlock | 1) * sizeof(ActBlock);
  if (kind == ActKind::bf16) return static_cast<size_t>((2 * k + 63) / 64 | 1) * 64;
  return static_cast<size_t>((k * 4 + 63) / 64 * 64);
}

Book book_of(Format f) {
  const Format owner = f == Format::IQ1_M ? Format::IQ1_S : f;
  for (const Grid& g : grids) {
    if (g.format == owner) return {g.codes, g.fields};
  }
  return {};
}

bool set_grid(Format f, const uint8_t* data, size_t bytes) {
  for (Grid& g : grids) {
    if (g.format != f) continue;
    if (g.bytes != bytes) return false;
    const std::lock_guard lock(grids_written);
    if (g.data.load(std::memory_order_relaxed) != nullptr) return true;   // it is in use
    if (!make_book(g, data)) return false;
    g.data.store(data, std::memory_order_release);
    return true;
  }
  return false;
}

bool has_grid(Format f) {
  const Format owner = f == Format::IQ1_M ? Format::IQ1_S : f;
  for (const Grid& g : grids) {
    if (g.format == owner) return grid_of(owner) != nullptr;
  }
  return true;
}

void decode_row(Format f, const uint8_t* row, int64_t k, float* out) {
  const FormatInfo& info = *format_info(f);
  const BlockDecoder decode = block_decoder(f);
  for (int64_t i = 0; i < k; i += info.elements, row += info.bytes, out += info.elements) {
    decode(row, out);
  }
}

}  // namespace strata
