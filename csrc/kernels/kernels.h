// The contract between the runtime and the kernels: block formats, packed weights, one table of
// functions per instruction set. No allocation, no threads, no Python in here.
#pragma once
#include <cstddef>
#include <cstdint>

namespace strata {

// Output rows interleaved in a packed weight: one lane of a 512-bit float vector each.
inline constexpr int64_t kPanel = 16;
// Activations are quantised to int8 in blocks of 32 along K, one float scale a block.
inline constexpr int64_t kActBlock = 32;

// Block formats; the numbers are GGUF's type ids, those from 1000 on are our own.
enum class Format : int32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
  IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22,
  IQ4_XS = 23, F64 = 28, IQ1_M = 29, BF16 = 30, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39, NVFP4 = 40, Q1_0 = 41,
  Q2_0 = 42,
  F8_E4M3_B128 = 1000,
};

// How a format's matmul wants its left operand.
// bf16: floats, and beside them a copy as bf16 where the instructions multiply pairs of those.
enum class ActKind : int32_t { f32 = 0, q8 = 1, bf16 = 2 };

struct FormatInfo {
  Format format;
  int32_t elements;   // per block of the file format
  int32_t bytes;      // per block of the file format
  ActKind act;        // what matmul reads
};

// nullptr when the format has no kernel.
const FormatInfo* format_info(Format f);

// Bytes of a packed [n, k] weight (the last panel padded to kPanel rows with zeros).
size_t packed_bytes(Format f, int64_t n, int64_t k);

// Pack panels [panel0, panel1). `src` is the file's data of the whole [n, k] matrix, row by row;
// `dst` the whole packed matrix. Panels are independent, so callers may split them over threads.
void pack(Format f, const uint8_t* src, int64_t n, int64_t k, uint8_t* dst,
          int64_t panel0, int64_t panel1);
// The same bytes, sooner.
struct KernelTable;
void pack(const KernelTable& kernels, Format f, const uint8_t* src, int64_t n, int64_t k,
          uint8_t* dst, int64_t panel0, int64_t panel1);

// The same of one whole panel: 16 rows of `row_bytes` that lie one after the other. Of 8-bit floats
// their codes alone, 128 of each `block_bytes`.
using PackPanelFn = void (*)(const uint8_t* rows, int64_t row_bytes, int64_t block_bytes,
                             uint8_t* panel);

// Rows of 8-bit floats whose scales may lie elsewhere; distances are in bytes.
struct F8Rows {
  const uint8_t* codes;
  int64_t row, block;             // from row to row, and from 128 codes to the next ones
  const uint8_t* scales[kPanel];  // float32: that of each row's first block
  int64_t scale;                  // from the scale of a block to that of the next
  int lanes;                      // rows that there are; the others are zero
};
// Packs a panel of them; `fast` is KernelTable::pack_panel's function.
void pack_f8(const F8Rows& rows, int64_t k, PackPanelFn fast, uint8_t* panel);

// Panels of an [n, k] weight: units of work that write disjoint output columns.
inline int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// A row of quantised activations begins with k / kActBlock of these: one cache line holds all that a kernel
// needs to know of 32 activations. Sums are of the first 16, the last 16 and all 32.
struct alignas(64) ActBlock {
  int8_t q[32];
  float scale;       // x is about q * scale; NaN where any x is NaN or infinite
  int32_t nsum[3];   // minus the sum of q
  float dsum[3];     // scale times the sum of q
  int32_t unused;
};
static_assert(sizeof(ActBlock) == 64);

// Where more than 8 bits are wanted, a second row of such blocks lies behind the first one: the
// quantised form of what the first has left over. Together they hold some 15 bits.

// Bytes of one row of activations: k / kActBlock blocks (q8), k floats (f32) or the copy of them
// (bf16), a multiple of 64; rows of blocks and copies are padded to an odd number of lines.
size_t act_row_bytes(ActKind kind, int64_t k);

struct MatmulArgs {
  const uint8_t* weight;   // packed
  int64_t n, k;
  const uint8_t* acts;     // rows of ActBlock (q8, 64-byte aligned), or rows of k floats (f32)
  int64_t act_stride;      // bytes from row to row
  float* out;              // [rows, n]
  int64_t out_stride;      // floats from row to row
  const float* bias;       // [n] or nullptr
  const float* residual;   // [rows, n] added last, or nullptr (may equal out)
  int64_t residual_stride;
  const uint8_t* narrow;   // the same rows as bf16, padded with zeros; nullptr where not wanted
  int64_t narrow_stride;   // bytes from row to row
  int64_t fetch_end;       // panels before this one are in memory and likely to be read next
  int64_t rest;            // 1: every second row of acts (q8) is what the one before it left over
};

// out[r, j] = dot(acts[r], weight[j]) (+ bias[j]) (+ residual[r, j]) for the rows and panels given.
// The bits of out[r, j] depend on row r and column j alone, never on the ranges of the call.
// With `rest`, rows are those of acts, whole pairs: out[r] is that of acts[2r], plus that of
// acts[2r + 1].
using MatmulFn = void (*)(const MatmulArgs&, int64_t row0, int64_t row1,
                          int64_t panel0, int64_t panel1, float* scratch);
// scratch: one per thread, at least matmul_scratch_floats(k) floats, 64-byte aligned.
inline int64_t matmul_scratch_floats(int64_t k) { return 32 * k + 1024; }

// What a product multiplies.
enum class Multiply : int32_t { int8 = 0, bf16 = 1, f32 = 2 };

struct KernelTable {
  const char* name;   // "scalar", "avx2", "avx512", "neon"
  MatmulFn (*matmul)(Format);   // nullptr when the format has none
  // Blocks [block0, block1) of one row of activations to int8 (layout above); x and row are the
  // beginnings of the whole row. Blocks are independent, so a row may be quantised in parts. What
  // is left over goes to the row `rest`, unless that is nullptr.
  void (*quantize_blocks)(const float* x, int64_t k, int64_t block0, int64_t block1,
                          uint8_t* row, uint8_t* rest);
  // A row of activations as bf16, with zeros to the end of a line; nullptr where products of BF16
  // read floats.
  void (*narrow_row)(const float* x, int64_t k, uint16_t* out);
  // Packs whole panels of rows of so many bytes; nullptr where `pack` has nothing faster.
  PackPanelFn (*pack_panel)(Format, int64_t row_bytes);
  // Row `row` of a packed [n, k] weight as floats (embedding lookup).
  void (*unpack_row)(Format, const uint8_t* packed, int64_t n, int64_t k, int64_t row, float* out);
  // Reads memory and does nothing else: the bandwidth that the products are measured against.
  uint32_t (*read_stream)(const uint8_t* p, int64_t bytes);
  // Multiplies and does nothing else, for a number of rounds; returns the operations done.
  int64_t (*multiply_peak)(Multiply kind, int64_t rounds);
};

const KernelTable* kernels_scalar();
const KernelTable* kernels_avx2();     // nullptr when not built for this architecture
const KernelTable* kernels_avx512();
const KernelTable* kernels_neon();

// The best table this processor runs, and the one named by STRATA_ISA where that runs here. For
// work whose result does not depend on the instructions.
const KernelTable& usual_kernels();
// The best table this processor runs, or the one named ("scalar", "avx2", "avx512", "neon");
// nullptr when that one is unknown or cannot run here.
const KernelTable* select_kernels(const char* name);

// Codebooks of the IQ formats, handed over once by Python (strata.quant.grids owns the numbers).
// IQ1_M shares IQ1_S's. The memory must outlive every later call; false when the size is wrong or
// the format has none.
bool set_grid(Format f, const uint8_t* data, size_t bytes);
// Whether a weight of this format can be decoded: it needs no codebook, or has it.
bool has_grid(Format f);

}  // namespace strata
