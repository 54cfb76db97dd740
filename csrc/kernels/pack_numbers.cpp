// Plain numbers and 8-bit floats into panels, and single rows back out.
#include "kernels/pack_numbers.h"

#include "kernels/layout.h"
#include "kernels/numbers.h"

namespace strata {
namespace {

// Plain numbers in pieces of T along K: the lanes of each piece together. Rows are `bytes` long; a
// piece that ends beyond its row, and rows from `lanes` on, are filled with zeros.
template <class T>
void pack_pieces(const uint8_t* rows, int64_t bytes, int lanes, uint8_t* panel) {
  constexpr int64_t kSize = sizeof(T);
  constexpr int64_t kRun = 128;   // bytes of one row at a time, so that lines are used whole
  T* out = reinterpret_cast<T*>(panel);
  for (int64_t at = 0; at < bytes; at += kRun) {
    const int64_t end = at + kRun < bytes ? at + kRun : bytes;
    for (int lane = 0; lane < kPanel; ++lane) {
      const uint8_t* row = rows + lane * bytes;
      for (int64_t i = at; i < end; i += kSize) {
        T v{};
        if (lane < lanes) {
          if (i + kSize <= bytes) std::memcpy(&v, row + i, sizeof v);
          else std::memcpy(&v, row + i, static_cast<size_t>(bytes - i));
        }
        out[i / kSize * kPanel + lane] = v;
      }
    }
  }
}

// The same for 2-byte numbers of 16 whole rows of even length: two by two, for speed.
void pack_halves(const uint8_t* rows, int64_t bytes, uint8_t* panel) {
  constexpr int64_t kRun = 128;
  for (int64_t at = 0; at < bytes; at += kRun) {
    const int64_t end = at + kRun < bytes ? at + kRun : bytes;
    for (int lane = 0; lane < kPanel; lane += 2) {
      const uint8_t* row = rows + lane * bytes;
      for (int64_t i = at; i < end; i += 4) {
        const uint32_t a = load_le<uint32_t>(row + i);
        const uint32_t b = load_le<uint32_t>(row + bytes + i);
        const uint32_t first = (a & 0xffffu) | b << 16;
        const uint32_t second = a >> 16 | (b & 0xffff0000u);
        uint8_t* out = panel + i * kPanel + 2 * lane;
        std::memcpy(out, &first, 4);
        std::memcpy(out + 2 * kPanel, &second, 4);
      }
    }
  }
}

// 64 bits are narrowed on the way.
void pack_doubles(const uint8_t* rows, int lanes, int64_t k, uint8_t* panel) {
  constexpr int64_t kRun = 16;   // of one row at a time, so that lines are used whole
  for (int64_t at = 0; at < k; at += kRun) {
    const int64_t end = at + kRun < k ? at + kRun : k;
    for (int lane = 0; lane < kPanel; ++lane) {
      for (int64_t i = at; i < end; ++i) {
        const float v =
            lane < lanes ? static_cast<float>(load_le<double>(rows + 8 * (lane * k + i))) : 0.0f;
        std::memcpy(panel + 4 * (i * kPanel + lane), &v, 4);
      }
    }
  }
}

// Rows of the file: a scale before every 128 codes.
F8Rows f8_rows(const uint8_t* rows, int lanes, int64_t k) {
  constexpr int64_t kScale = sizeof(float), kBlock = kScale + kF8Block;
  F8Rows all{rows + kScale, k / kF8Block * kBlock, kBlock, {}, kBlock, lanes};
  for (int lane = 0; lane < lanes; ++lane) all.scales[lane] = rows + lane * all.row;
  return all;
}

// Elements along K that lie together in a lane of plain numbers.
int64_t step_of(Format f) { return f == Format::BF16 ? 2 : 1; }

}  // namespace

int64_t numbers_panel_bytes(Format f, int64_t k) {
  if (f == Format::F8_E4M3_B128) return f8_panel_bytes(k);
  const int64_t step = step_of(f);
  const int64_t bytes = f == Format::F64 ? 4 : format_info(f)->bytes;
  return kPanel * ((k + step - 1) / step * step) * bytes;
}

void pack_f8(const F8Rows& rows, int64_t k, PackPanelFn fast, uint8_t* panel) {
  const bool whole = fast != nullptr && rows.lanes == kPanel;
  if (whole) fast(rows.codes, rows.row, rows.block, panel);
  for (int64_t b = 0; b < k / kF8Block; ++b, panel += f8_panel_bytes(kF8Block)) {
    for (int lane = 0; lane < kPanel; ++lane) {
      const bool there = lane < rows.lanes;
      float scale = 0.0f;
      if (there) std::memcpy(&scale, rows.scales[lane] + b * rows.scale, sizeof scale);
      std::memcpy(panel + sizeof scale * static_cast<size_t>(lane), &scale, sizeof scale);
      if (whole) continue;
      const uint8_t* codes = rows.codes + lane * rows.row + b * rows.block;
      uint8_t* out = panel + kF8Scales + lane;
      for (int64_t i = 0; i < kF8Block; ++i) out[i * kPanel] = there ? codes[i] : uint8_t{0};
    }
  }
}

void pack_numbers(Format f, const uint8_t* rows, int lanes, int64_t k, PackPanelFn fast,
                  uint8_t* panel) {
  const int64_t row = k * format_info(f)->bytes;
  switch (f) {
    case Format::F8_E4M3_B128: return pack_f8(f8_rows(rows, lanes, k), k, fast, panel);
    case Format::F64: return pack_doubles(rows, lanes, k, panel);
    case Format::F16:
      if (lanes == kPanel && k % 2 == 0) return pack_halves(rows, row, panel);
      return pack_pieces<uint16_t>(rows, row, lanes, panel);
    default: return pack_pieces<uint32_t>(rows, row, lanes, panel);
  }
}

void unpack_numbers(Format f, const uint8_t* panel, int64_t k, int lane, float* out) {
  if (f == Format::F8_E4M3_B128) {
    for (int64_t i = 0; i < k; ++i) {
      const uint8_t* block = panel + i / kF8Block * f8_panel_bytes(kF8Block);
      const uint8_t code = block[kF8Scales + i % kF8Block * kPanel + lane];
      out[i] = load_le<float>(block + 4 * lane) * e4m3_to_float(code);
    }
    return;
  }
  const int64_t step = step_of(f);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t at = i / step * step * kPanel + lane * step + i % step;
    if (f == Format::F32 || f == Format::F64) out[i] = load_le<float>(panel + 4 * at);
    else if (f == Format::F16) out[i] = load_half(panel + 2 * at);
    else out[i] = std::bit_cast<float>(static_cast<uint32_t>(load_le<uint16_t>(panel + 2 * at)) << 16);
  }
}

}  // namespace strata
