#include "runtime/weight_place.h"

#include <cstring>

namespace strata {
namespace {

constexpr int64_t kPage = WeightFile::kBufferAlign;
// Transposed weights are read in whole stored rows, this many bytes at a time.
constexpr int64_t kColumnsRead = 128 << 10;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

int64_t WeightPlace::row_bytes() const {
  const FormatInfo& info = *format_info(format);
  return k / info.elements * info.bytes;
}

int64_t WeightPlace::panel_bytes() const {
  return static_cast<int64_t>(packed_bytes(format, kPanel, k));
}

int64_t WeightPlace::file_bytes(int64_t panel0, int64_t panel1) const {
  const int64_t rows = std::min(panel1 * kPanel, n) - panel0 * kPanel;
  return rows * stored_row_bytes();
}

int64_t WeightPlace::end() const {
  const int64_t last = offset + (run > 0 ? (n / run - 1) * step : 0);
  switch (storage) {
    case Storage::rows: return last + (run > 0 ? run : n) * row_bytes();
    case Storage::scaled: return last + n * k;
    case Storage::columns: return last + stored_width * row_bytes();
  }
  return 0;
}

int64_t WeightPlace::panels_at_once(int64_t request_bytes) const {
  int64_t room = request_bytes;
  if (storage == Storage::columns) room -= kColumnsRead;
  // What is read of each matrix, and beside it all of them.
  if (storage == Storage::rows && run > 0) room /= 2;
  return std::clamp<int64_t>(room / (kPanel * row_bytes()), 1, panels(n));
}

int64_t WeightPlace::lines_bytes() const {
  return WeightFile::span(std::max(kColumnsRead, stored_width * row_bytes() / k));
}

int64_t WeightPlace::staging(int64_t panels_at_once) const {
  const int64_t rows = std::min(panels_at_once * kPanel, n);
  const int64_t bytes = rows * row_bytes();
  switch (storage) {
    case Storage::rows:
      return run > 0 ? WeightFile::span(run_bytes(rows)) + bytes : WeightFile::span(bytes);
    case Storage::scaled: return WeightFile::span(rows * k);
    case Storage::columns: return lines_bytes() + bytes;
  }
  return 0;
}

void WeightPlace::collect(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
                          ReadCounters& counters) const {
  const int64_t row = row_bytes();
  each_run(row0, rows, [&](int64_t begin, int64_t first, int64_t count, int64_t done) {
    const uint8_t* from = file->read(begin + first * row, count * row, lines, counters);
    std::memcpy(out + done * row, from, static_cast<size_t>(count * row));
  });
}

void WeightPlace::gather(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
                         ReadCounters& counters) const {
  const int64_t element = row_bytes() / k;
  const int64_t stored = stored_width * element;
  const int64_t at_once = std::max<int64_t>(1, kColumnsRead / stored);
  each_run(row0, rows, [&](int64_t begin, int64_t first, int64_t count, int64_t done) {
    for (int64_t i0 = 0; i0 < k; i0 += at_once) {
      const int64_t lines_read = std::min(at_once, k - i0);
      const uint8_t* from = file->read(begin + i0 * stored, lines_read * stored, lines, counters);
      from += (first_column + first) * element;
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t i = 0; i < lines_read; ++i) {
          std::memcpy(out + ((done + r) * k + i0 + i) * element, from + i * stored + r * element,
                      static_cast<size_t>(element));
        }
      }
    }
  });
}

// The bytes of some rows in the form that `pack_panels` takes.
const uint8_t* WeightPlace::rows_of(int64_t row0, int64_t rows, uint8_t* staging,
                                    ReadCounters& counters) const {
  if (storage == Storage::rows && run > 0) {
    uint8_t* out = staging + WeightFile::span(run_bytes(rows));
    collect(row0, rows, staging, out, counters);
    return out;
  }
  if (storage != Storage::columns) {
    const int64_t row = stored_row_bytes();
    return file->read(offset + row0 * row, rows * row, staging, counters);
  }
  uint8_t* out = staging + lines_bytes();
  gather(row0, rows, staging, out, counters);
  return out;
}

void WeightPlace::read_panels(int64_t panel0, int64_t panel1, uint8_t* out, uint8_t* staging,
                              ReadCounters& counters) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t rows = std::min(panel1 * kPanel, n) - row0;
  pack_panels(rows_of(row0, rows, staging, counters), panel0, panel1, out);
}

int64_t WeightPlace::slot_bytes(int64_t panel0, int64_t panel1) const {
  return round_up(file_bytes(panel0, panel1), kPage) + kPage;
}

int64_t WeightPlace::scratch_bytes() const {
  if (storage == Storage::columns) return lines_bytes();
  return run > 0 ? WeightFile::span(run_bytes(n)) : 0;
}

const uint8_t* WeightPlace::read_rows(int64_t panel0, int64_t panel1, uint8_t* slot,
                                      uint8_t* scratch, ReadCounters& counters) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t rows = std::min(panel1 * kPanel, n) - row0;
  if (storage == Storage::columns) {
    gather(row0, rows, scratch, slot, counters);
    return slot;
  }
  if (run > 0) {
    collect(row0, rows, scratch, slot, counters);
    return slot;
  }
  const int64_t row = stored_row_bytes();
  return file->read(offset + row0 * row, rows * row, slot, counters);
}

void WeightPlace::pack_panels(const uint8_t* rows, int64_t panel0, int64_t panel1,
                              uint8_t* out) const {
  const int64_t row0 = panel0 * kPanel;
  const int64_t count = std::min(panel1 * kPanel, n) - row0;
  if (storage != Storage::scaled) {
    // Panels are independent of each other: these rows are a matrix of their own.
    pack(usual_kernels(), format, rows, count, k, out, 0, panel1 - panel0);
    return;
  }
  const PackPanelFn fast = usual_kernels().pack_panel(format, k);
  for (int64_t row = 0; row < count; row += kPanel, out += panel_bytes()) {
    F8Rows panel{rows + row * k, k, 128, {}, factor_stride > 1 ? 4 : 0,
                 static_cast<int>(std::min(kPanel, count - row))};
    for (int lane = 0; lane < panel.lanes; ++lane) {
      const float* scale = factors.data() + (row0 + row + lane) / factor_rows * factor_stride;
      panel.scales[lane] = reinterpret_cast<const uint8_t*>(scale);
    }
    pack_f8(panel, k, fast, out);
  }
}

void unpack_stored_row(const WeightPlace& place, const KernelTable& kernels, const uint8_t* stored,
                       float* out) {
  // A panel of one row: through the same code as a whole table, and so to the same bits.
  AlignedBytes panel(packed_bytes(place.format, 1, place.k), false);
  pack(place.format, stored, 1, place.k, panel.data(), 0, 1);
  kernels.unpack_row(place.format, panel.data(), 1, place.k, 0, out);
}

}  // namespace strata
