// The kernels of a step besides the matrix products: rows (norms, activations), RoPE, KV, attention.
#pragma once
#include <cstdint>

namespace strata {

// Positions in a KV block, and the keys that attention scores at a time.
inline constexpr int64_t kKvBlock = 64;
// KV blocks in a split: attention makes one partial result a split and merges them in order, so
// that the bits do not depend on who computed which split.
inline constexpr int64_t kSplitBlocks = 8;

enum class Activation : int32_t {
  silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu2 = 4, sigmoid = 5, tanh = 6, softplus = 7,
  gelu_quick = 8, exp = 9, signed_sqrt = 10
};
inline constexpr int kActivations = 11;

// How keys and values are kept. q8_0 is int8 with an f16 scale for each kKvGroup elements of one
// position, so that a position is written once and never again.
enum class KvType : int32_t { f16 = 0, bf16 = 1, q8_0 = 2, int4 = 3 };
inline constexpr int kKvTypes = 4;
inline constexpr int64_t kKvGroup = 32;
// int4 is codes of four bits with a scale and a least value, both f16, for each so many elements of
// one position of a head that was rotated: by Hadamard matrices of the largest power of two that
// divides its elements, kMostRotated at most (SAW-INT4, arXiv 2604.19157).
inline constexpr int64_t kKvGroup4 = 64, kMostRotated = 128;
inline int64_t kv_rotation(KvType type, int64_t dim) {
  int64_t block = 1;
  while (type == KvType::int4 && block < kMostRotated && dim % (2 * block) == 0) block *= 2;
  return block;
}

// What is kept of a position for one KV head. With v_in_k no values are: they are the first v_dim
// elements of the keys.
struct KvShape {
  int64_t k_dim, v_dim;
  bool v_in_k;
};

// Elements from V row to V row within a block: whole vectors, so that no lane reads past its row.
inline int64_t kv_value_stride(int64_t v_dim) { return (v_dim + 15) / 16 * 16; }
// Scales of one position of one head, for its key or its value.
inline int64_t kv_groups(int64_t dim) { return (dim + kKvGroup - 1) / kKvGroup; }
inline int64_t kv_groups4(int64_t dim) { return (dim + kKvGroup4 - 1) / kKvGroup4; }
// Bytes of the keys, and of the values, of one KV head in one block, a multiple of 64: K as
// [k_dim][kKvBlock], V as [kKvBlock][value stride]; q8_0 has its scales [groups][kKvBlock] behind
// each. int4 has words of eight dimensions [k_dim / 8][kKvBlock], the first in the lowest bits, and
// words of four slots with two dimensions each, 16 apart, [kKvBlock / 4][v_dim / 32][16]; behind
// each are the scales and then the least values [groups][kKvBlock].
inline int64_t kv_key_bytes(KvType type, int64_t k_dim) {
  if (type == KvType::int4) return kKvBlock * ((k_dim + 7) / 8 * 4 + 4 * kv_groups4(k_dim));
  return kKvBlock * (type == KvType::q8_0 ? k_dim + 2 * kv_groups(k_dim) : 2 * k_dim);
}
inline int64_t kv_value_bytes(KvType type, int64_t v_dim) {
  if (type == KvType::int4) return kKvBlock * ((v_dim + 31) / 32 * 16 + 4 * kv_groups4(v_dim));
  const int64_t stride = kv_value_stride(v_dim);
  return kKvBlock * (type == KvType::q8_0 ? stride + 2 * kv_groups(v_dim) : 2 * stride);
}
// How a layer keeps them; its values lie behind its keys.
struct KvTypes {
  KvType k, v;
};
inline int64_t kv_head_bytes(KvTypes types, const KvShape& s) {
  return kv_key_bytes(types.k, s.k_dim) + (s.v_in_k ? 0 : kv_value_bytes(types.v, s.v_dim));
}

// Bytes of the bounds of one KV head's keys in a block: the least and the greatest number of each
// dimension as f16, [2][k_dim up to whole vectors].
inline int64_t kv_bounds_bytes(int64_t k_dim) { return 4 * kv_value_stride(k_dim); }

struct KvKernels;

struct AttentionArgs {
  const float* q;          // row r, head h at q + r * q_stride + h * k_dim
  int64_t q_stride;
  float* out;              // row r, head h at out + r * out_stride + h * v_dim
  int64_t out_stride;
  const uint8_t* kv;       // the layer's part of block 0
  int64_t block_stride;    // bytes from block to block
  int64_t head_bytes;      // kv_head_bytes
  int64_t value_at;        // kv_key_bytes
  const KvKernels *keys, *values;
  const int32_t* table;    // block ids of the sequence
  int64_t heads, kv_heads; // `shares` of the latter are one of those that are kept
  int64_t shares = 1;
  KvShape shape;
  int64_t past;            // position of row 0
  int64_t window;          // 0: all keys
  int64_t beginning = 0;   // keys that rows see whose window does not reach them any more, in split 0
  const float* q_beginning = nullptr;   // as q, for these: turned as far as the cache is long
  bool chunked;            // the window is the chunk of as many positions that a row is in
  float scale, softcap;    // softcap 0: none
  int64_t seen;            // 0: a row sees what came before; else so many positions, in its window
  const float* slopes;     // of heads: what a key loses by each position of its distance; or null
  const float* sinks;      // of heads: scores that weigh in the sum and have no value; or null
  int64_t k_rotation = 1, v_rotation = 1;   // of what is kept; values that are part of keys are not
  const uint64_t* chosen = nullptr;   // of row r from r * chosen_words on: a bit for each block seen
  int64_t chosen_words = 0;
  // Where keys are chosen one by one: of row r from r * mask_words on, for each block a bit a key.
  const uint64_t* masks = nullptr;
  int64_t mask_words = 0;
};

inline bool sees_block(const AttentionArgs& a, int64_t row, int64_t block) {
  return a.chosen == nullptr || (a.chosen[row * a.chosen_words + block / 64] >> (block % 64) & 1) != 0;
}

// The keys of a block that a row sees, as far as they are chosen one by one.
inline uint64_t seen_keys(const AttentionArgs& a, int64_t row, int64_t block) {
  return a.masks == nullptr ? ~uint64_t{0} : a.masks[row * a.mask_words + block];
}

// The first key that a row sees, the beginning aside where its window has left that behind.
inline int64_t first_key(const AttentionArgs& a, int64_t position) {
  if (a.window <= 0 || position < a.window + a.beginning) return 0;
  return a.chunked ? position / a.window * a.window : position - a.window + 1;
}

// Query rows times heads of a group that one call of `attend` may hold.
inline constexpr int64_t kQueryTile = 48;
// Floats of one partial result: maximum, sum, and the unnormalised output.
inline int64_t partial_floats(int64_t v_dim) { return 2 + kv_value_stride(v_dim); }
// Keys and values of a block may be unpacked before they are used, or query vectors have their sums
// and scaled weights beside them.
inline int64_t attention_scratch_floats(const KvShape& s) {
  const int64_t block = kKvBlock * (s.k_dim + kv_value_stride(s.v_dim));
  const int64_t beside = kQueryTile * (kv_groups4(s.k_dim) + kKvBlock);
  const int64_t unpacked = block > beside ? block : beside;
  return kQueryTile * (s.k_dim + kKvBlock + 2 * partial_floats(s.v_dim)) + unpacked + 256;
}

struct AttendKernels {
  // Attention of rows [row0, row1) of a span for the heads of one KV head;
  // (row1 - row0) * heads / kv_heads <= kQueryTile. Writes out.
  void (*attend)(const AttentionArgs&, int64_t kv_head, int64_t row0, int64_t row1,
                 float* scratch);
  // One split of the same; the partial of (row, head) goes to
  // partials + ((row * heads + head) * splits + place) * partial_floats.
  void (*attend_split)(const AttentionArgs&, int64_t kv_head, int64_t row0, int64_t row1,
                       int64_t split, int64_t place, int64_t splits, float* partials,
                       float* scratch);
  // Splits [split0, split1) of the same one after the other, added to what came of those before:
  // the partial of (row, head) at running + (row * heads + head) * partial_floats. `first` if none
  // did.
  void (*attend_on)(const AttentionArgs&, int64_t kv_head, int64_t row0, int64_t row1,
                    int64_t split0, int64_t split1, bool first, float* running, float* scratch);
  // What keys [0, end) weigh for a row: the sum over the heads of its weight times what of q.k is
  // above 0, or without weights q.k of every head, one after the other. `out` has room up to whole
  // blocks, for each head then; the keys are those of one KV head.
  void (*weigh_keys)(const AttentionArgs&, const float* weights, int64_t row, int64_t end,
                     float* scratch, float* out);
};
// Floats of scratch that weigh_keys takes.
inline int64_t weigh_keys_scratch_floats(int64_t heads, int64_t k_dim) {
  return heads * k_dim + kQueryTile * kKvBlock + kKvBlock * (k_dim + kv_value_stride(1)) + 256;
}

// The bounds of a layer's keys: of KV head h in block b from b * block_bytes + h * head_bytes on.
struct KeyBounds {
  const uint8_t* data;
  int64_t block_bytes, head_bytes;
};

// What depends on how keys, or values, are kept.
struct KvKernels {
  // Writes one position of the keys, or the values, of one KV head in a block.
  void (*store_key)(const float* k, int64_t k_dim, int64_t slot, uint8_t* keys);
  void (*store_value)(const float* v, int64_t v_dim, int64_t slot, uint8_t* values);
  // As floats: [k_dim][kKvBlock], and slots [first, most) of [kKvBlock][value stride].
  void (*unpack_keys)(const uint8_t* keys, int64_t k_dim, float* out);
  void (*unpack_values)(const uint8_t* values, int64_t v_dim, int64_t first, int64_t most,
                        float* out);
  AttendKernels attend;   // over keys and values of this type
};

// A recurrence over the rows of a span for the columns [column, column + lanes) of one head's state,
// lanes <= 16. Their state is [k_dim][lanes], which lies together.
struct ScanArgs {
  const float* in[6];       // the span's first row
  int64_t stride[6];
  float* out;
  int64_t out_stride;
  const float* parameters[2];
  const float* before;      // null: zeros
  float* after;
  int64_t rows, heads, key_heads, k_dim, v_dim;
  bool tiled, by_key;
  const float* at(int operand, int64_t row) const { return in[operand] + row * stride[operand]; }
  float* row_out(int64_t row) const { return out + row * out_stride; }
};
// Rows that the state of a head may have.
inline constexpr int64_t kMostKeys = 1024;
enum class Scan : int32_t {
  ssm_head = 0, ssm_channels = 1, gated_delta = 2, wkv6 = 3, wkv7 = 4, linear = 5
};
inline constexpr int kScans = 6;

struct StepKernels {
  // weight may be nullptr
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // weight and bias may be nullptr
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                     float* out);
  void (*glu)(Activation, const float* gate, const float* up, int64_t n, float* out);
  void (*activate)(Activation, const float* x, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*multiply)(const float* a, const float* b, int64_t n, float* out);
  void (*clamp)(const float* x, float low, float high, int64_t n, float* out);
  // x > 0: positive x^2 + beta x; else negative (e^min(x, eps) - 1 - x) + beta x
  void (*xielu)(const float* x, float negative, float positive, float beta, float eps, int64_t n,
                float* out);
  void (*scale)(const float* x, float factor, int64_t n, float* out);
  void (*softcap)(const float* x, float cap, int64_t n, float* out);
  // Rotates one head; cos and sin hold `half` values each, the dims after 2 * half are copied.
  // out may equal x.
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t half, int64_t head_dim,
               bool interleaved, float* out);
  // out[i] = bias[i] + sum over j < taps of weight[j * stride + i] * rows[j][i], from j = 0 on;
  // bias may be nullptr.
  void (*short_conv)(const float* const* rows, const float* weight, const float* bias,
                     int64_t stride, int64_t taps, int64_t n, float* out);
  // Each group of columns has weights of its own.
  void (*grouped_rms_norm)(const float* x, const float* weight, float eps, int64_t group, int64_t n,
                           float* out);
  // x / sqrt(sum of squares + eps) * factor, a group at a time.
  void (*l2_norm)(const float* x, float eps, float factor, int64_t group, int64_t n, float* out);
  // exp(a[i / each] * log(1 + e^x[i]))
  void (*decay)(const float* x, const float* a, int64_t each, int64_t n, float* out);
  // The sum of `streams` of so many columns, each times its weight.
  void (*mix)(const float* x, const float* weights, int64_t streams, int64_t width, float* out);
  // Weights of `mix` from a matrix [streams][streams]; see strata.program.ops.streams.
  void (*sinkhorn)(const float* x, int64_t streams, int64_t iterations, float eps, float* out);
  // x as large as `like`: by roots of mean squares, of which x has `least` at least.
  void (*match_rms)(const float* x, const float* like, float least, int64_t n, float* out);
  // What of x is above its mean by more than so many deviations.
  void (*cutoff)(const float* x, float deviations, int64_t spare, int64_t n, float* out);
  // The sum of each group of columns.
  void (*group_sum)(const float* x, int64_t group, int64_t n, float* out);
  // e^x over the sum of them, a group of columns at a time.
  void (*softmax)(const float* x, int64_t group, int64_t n, float* out);
  void (*scan[kScans])(const ScanArgs&, int64_t head, int64_t column, int lanes);   // by Scan
  // Merges the partials of one row and one head and writes out.
  void (*merge_splits)(const AttentionArgs&, int64_t row, int64_t head, int64_t splits,
                       const float* partials, float* scratch);
  // The bounds of keys [k_dim][kKvBlock].
  void (*bound_keys)(const float* keys, int64_t k_dim, uint16_t* bounds);
  // How much blocks [first, end) of the table may weigh for a row: of each head e to the greatest
  // score that bounds allow, against the greatest of them, summed over the heads. `each` and `out`
  // have room for end - first up to whole vectors.
  void (*weigh_blocks)(const AttentionArgs&, int64_t row, const KeyBounds&, int64_t first,
                       int64_t end, float* scratch, float* each, float* out);
  KvKernels kv[kKvTypes];   // by KvType
  AttendKernels unpacked;   // over keys and values of any types
  const KvKernels& of(KvType type) const { return kv[static_cast<int>(type)]; }
  const AttendKernels& attention(KvTypes types, const KvShape& s) const {
    if (s.v_in_k && types.k == KvType::int4) return unpacked;
    return types.k == types.v || s.v_in_k ? of(types.k).attend : unpacked;
  }
};

const StepKernels* step_kernels_scalar();
const StepKernels* step_kernels_avx2();
const StepKernels* step_kernels_avx512();
const StepKernels* step_kernels_neon();

}  // namespace strata
