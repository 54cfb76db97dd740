// Weights as a file has them: where their rows lie, and how these become what kernels read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/storage.h"
#include "runtime/weight_file.h"

namespace strata {

// How the rows of a weight lie in its file.
enum class Storage : int32_t {
  rows = 0,      // one after the other, in the block format
  columns = 1,   // transposed plain numbers: lines of `stored_width`, our rows are columns of them
  scaled = 2,    // rows of 8-bit floats; their scales are `factors`
};

// An [n, k] weight as a file has it.
struct WeightPlace {
  std::shared_ptr<const WeightFile> file;
  int64_t offset;
  Format format;
  int64_t n, k;
  Storage storage = Storage::rows;
  int64_t stored_width = 0, first_column = 0;
  // Where rows are those of several matrices: `run` rows of each, and the bytes from one matrix to
  // the next. 0: one matrix.
  int64_t run = 0, step = 0;
  // Scale of row r, block b of 128: factors[r / factor_rows * factor_stride + (b or 0)], with b
  // where the stride is more than 1.
  std::vector<float> factors;
  int64_t factor_rows = 1, factor_stride = 1;

  int64_t row_bytes() const;     // of a row in the form that `pack` takes
  int64_t panel_bytes() const;   // of a packed panel
  // Bytes that panels [panel0, panel1) take in the file.
  int64_t file_bytes(int64_t panel0, int64_t panel1) const;
  int64_t end() const;           // of the file's bytes that it takes
  // Panels that may be read at a time, so that `staging` stays about `request_bytes`; at least 1.
  int64_t panels_at_once(int64_t request_bytes) const;
  // Bytes of staging that reading so many panels at a time takes.
  int64_t staging(int64_t panels_at_once) const;
  // Reads panels [panel0, panel1) and packs them to `out`, where panel0 begins.
  void read_panels(int64_t panel0, int64_t panel1, uint8_t* out, uint8_t* staging,
                   ReadCounters& counters) const;

  // The same in two steps. Reads the rows of panels into `slot`, aligned to kBufferAlign, with room
  // for what alignment adds, and returns where they begin; the scratch, aligned as well, is only
  // used meanwhile.
  const uint8_t* read_rows(int64_t panel0, int64_t panel1, uint8_t* slot, uint8_t* scratch,
                           ReadCounters& counters) const;
  int64_t slot_bytes(int64_t panel0, int64_t panel1) const;
  int64_t scratch_bytes() const;
  // Packs panels to `out`, where panel0 begins, from their rows as `read_rows` gave them.
  void pack_panels(const uint8_t* rows, int64_t panel0, int64_t panel1, uint8_t* out) const;
  int64_t stored_row_bytes() const { return storage == Storage::scaled ? k : row_bytes(); }

 private:
  const uint8_t* rows_of(int64_t row0, int64_t rows, uint8_t* staging,
                         ReadCounters& counters) const;
  int64_t lines_bytes() const;   // of staging for stored lines
  // Rows put together from lines of the file.
  // The bytes of a matrix's rows, one after the other.
  int64_t run_bytes(int64_t rows) const { return std::min(rows, run) * row_bytes(); }
  // Calls f(where the matrix begins, its first row, rows, rows before) for the matrices that rows
  // [row0, row0 + rows) are of.
  template <class F> void each_run(int64_t row0, int64_t rows, F f) const {
    for (int64_t done = 0; done < rows;) {
      const int64_t matrix = run > 0 ? (row0 + done) / run : 0;
      const int64_t row = row0 + done - matrix * run;
      const int64_t count = run > 0 ? std::min(rows - done, run - row) : rows;
      f(offset + matrix * step, row, count, done);
      done += count;
    }
  }
  // Reads rows that are of several matrices, by way of `lines`.
  void collect(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
               ReadCounters& counters) const;
  void gather(int64_t row0, int64_t rows, uint8_t* lines, uint8_t* out,
              ReadCounters& counters) const;
};
using WeightPlacePtr = std::shared_ptr<const WeightPlace>;

// Panels of so many bytes that a thread packs before it multiplies with them: an even number that
// still is in the second-level cache then.
inline int64_t packed_together(int64_t panel_bytes) {
  constexpr int64_t kBytes = 128 << 10;
  return std::max<int64_t>(2, kBytes / panel_bytes / 2 * 2);
}
// Bytes that they take.
inline int64_t packing_bytes(int64_t panel_bytes) {
  return packed_together(panel_bytes) * panel_bytes;
}

// A row of a table as the file has it, as floats: the bits of KernelTable::unpack_row.
void unpack_stored_row(const WeightPlace& place, const KernelTable& kernels, const uint8_t* stored,
                       float* out);

}  // namespace strata
