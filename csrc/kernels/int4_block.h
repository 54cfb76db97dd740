// Attention over a block of KvInt4: codes become floats in registers, and all query vectors of a
// tile share one such step. A number is scale * (code - 7.5) + middle, so that products are made of
// codes alone and scales come once a group: a score is scale * (q . codes) + middle * (sum of q),
// and weights are multiplied with the scales of their positions first.
#pragma once
#include "kernels/kv_block.h"

namespace strata::STRATA_ISA {

// Accumulators of a tile fill the registers: 6 x 4 of 32, or 3 x 2 (two registers each) of 16.
inline constexpr int kInt4Rows = kWidth == 16 ? 6 : 3;
inline constexpr int kInt4Slots = kWidth == 16 ? 4 : 2;    // vectors of 16 slots
inline constexpr int kInt4Chunks = kWidth == 16 ? 2 : 1;   // vectors of 32 dimensions

class Int4Block {
 public:
  // The sums of the groups of queries, which all blocks want.
  static void prepare(const float* q, int64_t vectors, int64_t k_dim, float* scratch) {
    for (int64_t r = 0; r < vectors; ++r, q += k_dim) {
      for (int64_t at = 0; at < k_dim; at += kKvGroup4) {
        F32x16 sum = zero16();
        each_vector(k_dim - at < kKvGroup4 ? k_dim - at : kKvGroup4,
                    [&](int64_t i, int lanes) { sum = sum + load_part(q + at + i, lanes); });
        *scratch++ = reduce_add(sum);
      }
    }
  }

  // `next` is how many bytes away the block lies that comes next, 0 if it is not to be asked for.
  Int4Block(const uint8_t* head, int64_t value_at, const KvShape& shape, int64_t next)
      : k_(head), v_(head + value_at), k_dim_(shape.k_dim), v_dim_(shape.v_dim), next_(next) {}

  // scores [vectors][kKvBlock] of q [vectors][k_dim].
  void score(const float* q, int64_t vectors, const float* scratch, float* scores) const {
    each_tile<kInt4Rows>(vectors, [&](int64_t r, auto rows) {
      for (int64_t slot = 0; slot < kKvBlock; slot += 16 * kInt4Slots)
        score_tile<rows.value>(q + r * k_dim_, scratch + r * kv_groups4(k_dim_), slot,
                               scores + r * kKvBlock);
    });
  }

  // Adds the values of slots [first, most), weighed by `weights` [vectors][kKvBlock], to vectors
  // `out`, `stride` floats apart. Slots that weigh nothing need not be numbers.
  void add_values(const float* weights, int64_t vectors, int64_t first, int64_t most,
                  float* scratch, float* out, int64_t stride) const {
    const int64_t chunks = (v_dim_ + 31) / 32;
    float* scaled = scratch + kQueryTile * kv_groups4(k_dim_);
    for (int64_t chunk = 0; chunk < chunks; chunk += kKvGroup4 / 32) {
      float middles[kQueryTile];
      for (int64_t r = 0; r < vectors; ++r)
        middles[r] = scale(weights + r * kKvBlock, chunk / (kKvGroup4 / 32), scaled + r * kKvBlock);
      const int64_t end = chunk + kKvGroup4 / 32 < chunks ? chunk + kKvGroup4 / 32 : chunks;
      each_tile<kInt4Rows>(vectors, [&](int64_t r, auto rows) {
        int64_t c = chunk;
        const auto tile = [&](auto count) {
          add_tile<rows.value, count.value>(scaled + r * kKvBlock, middles + r, c, first / 4,
                                            (most + 3) / 4, out + r * stride, stride);
          c += count.value;
        };
        while (c + kInt4Chunks <= end) tile(Count<kInt4Chunks>{});
        while (c < end) tile(Count<1>{});
      });
    }
  }

 private:
  template <int N> struct Count { static constexpr int value = N; };
  template <int Most, class F> static inline __attribute__((always_inline)) void each_tile(int64_t m, const F& f) {
    int64_t r = 0;
    for (; r + Most <= m; r += Most) f(r, Count<Most>{});
    if constexpr (Most > 1) {
      if (r < m) each_tile<Most - 1>(m - r, [&](int64_t i, auto rows) { f(r + i, rows); });
    }
  }
  // The lowest code of each lane, and what is left of them.
  static inline __attribute__((always_inline)) F32x16 take(I32x16& codes) {
    F32x16 r;
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      r.part[i] = vcentred4(codes.part[i]);
      codes.part[i] = vsra_i32<4>(codes.part[i]);
    }
    return r;
  }
  inline __attribute__((always_inline)) I32x16 load_codes(const uint8_t* p) const {
    ask(p);
    I32x16 r;
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i)
      r.part[i] = vload_i32(reinterpret_cast<const int32_t*>(p) + i * kWidth);
    return r;
  }
  // Asks for the line of the same place in the next block.
  inline __attribute__((always_inline)) void ask(const void* p) const {
    prefetch(static_cast<const uint8_t*>(p) + next_);
  }
  static inline __attribute__((always_inline)) F32x16 middle(const F32x16& scale, const uint16_t* least) {
    return fma(broadcast(7.5f), scale, load_f16(least));
  }

  template <int Rows>
  void score_tile(const float* q, const float* sums, int64_t slot, float* scores) const {
    const int64_t groups = kv_groups4(k_dim_), words = (k_dim_ + 7) / 8;
    const auto* scales = reinterpret_cast<const uint16_t*>(k_ + words * 4 * kKvBlock) + slot;
    const uint16_t* least = scales + groups * kKvBlock;
    const uint8_t* codes = k_ + 4 * slot;
    for (int64_t g = 0; g < groups; ++g) {
      F32x16 dot[Rows][kInt4Slots];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kInt4Slots; ++v) dot[r][v] = zero16();
      const int64_t end = (g + 1) * kKvGroup4 < k_dim_ ? (g + 1) * kKvGroup4 : k_dim_;
      for (int64_t dim = g * kKvGroup4; dim < end; dim += 8, codes += 4 * kKvBlock) {
        I32x16 word[kInt4Slots];
#pragma GCC unroll 8
        for (int v = 0; v < kInt4Slots; ++v) word[v] = load_codes(codes + 64 * v);
        const auto step = [&](int64_t d) __attribute__((always_inline)) {
          F32x16 w[kInt4Slots];
#pragma GCC unroll 8
          for (int v = 0; v < kInt4Slots; ++v) w[v] = take(word[v]);
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) {
            const F32x16 x = broadcast(q[r * k_dim_ + d]);
#pragma GCC unroll 8
            for (int v = 0; v < kInt4Slots; ++v) dot[r][v] = fma(x, w[v], dot[r][v]);
          }
        };
        if (dim + 8 <= end) {
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) step(dim + i);
        } else {
          for (int64_t d = dim; d < end; ++d) step(d);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < kInt4Slots; ++v) {
        if (v % 2 == 0) {
          ask(scales + g * kKvBlock + 16 * v);
          ask(least + g * kKvBlock + 16 * v);
        }
        const F32x16 scale = load_f16(scales + g * kKvBlock + 16 * v);
        const F32x16 mid = middle(scale, least + g * kKvBlock + 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          float* to = scores + r * kKvBlock + slot + 16 * v;
          const F32x16 before = g == 0 ? zero16() : load(to);
          const F32x16 sum = broadcast(sums[r * groups + g]);
          store(to, fma(mid, sum, fma(scale, dot[r][v], before)));
        }
      }
    }
  }

  // Weights times the scales of a group; gives the sum of weights times the middles.
  inline __attribute__((always_inline)) float scale(const float* weights, int64_t group, float* scaled) const {
    constexpr int kVectors = kKvBlock / 16;
    const auto* scales = reinterpret_cast<const uint16_t*>(v_ + (v_dim_ + 31) / 32 * 16 * kKvBlock) +
                         group * kKvBlock;
    const uint16_t* least = scales + kv_groups4(v_dim_) * kKvBlock;
    F32x16 sums[kVectors];
    const F32x16 some = broadcast(0x1p-149f);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      if (i % 2 == 0) {
        ask(scales + 16 * i);
        ask(least + 16 * i);
      }
      const F32x16 w = load(weights + 16 * i), s = load_f16(scales + 16 * i);
      store(scaled + 16 * i, select_lt(w, some, zero16(), w * s));
      sums[i] = select_lt(w, some, zero16(), w * middle(s, least + 16 * i));
    }
    return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  // Chunks of 32 dimensions, fours of slots [first, most).
  template <int Rows, int Chunks>
  void add_tile(const float* weights, const float* middles, int64_t chunk, int64_t first,
                int64_t most, float* out, int64_t stride) const {
    const int64_t chunks = (v_dim_ + 31) / 32;
    F32x16 acc[Rows][2 * Chunks];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < 2 * Chunks; ++c) acc[r][c] = zero16();
    for (int64_t four = first; four < most; ++four) {
      I32x16 word[Chunks];
#pragma GCC unroll 8
      for (int c = 0; c < Chunks; ++c)
        word[c] = load_codes(v_ + 64 * (four * chunks + chunk + c));
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) {
        F32x16 w[2 * Chunks];
#pragma GCC unroll 8
        for (int c = 0; c < 2 * Chunks; ++c) w[c] = take(word[c / 2]);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const F32x16 x = broadcast(weights[r * kKvBlock + 4 * four + s]);
#pragma GCC unroll 8
          for (int c = 0; c < 2 * Chunks; ++c) acc[r][c] = fma(x, w[c], acc[r][c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < 2 * Chunks; ++c) {
        const int64_t dim = 32 * chunk + 16 * c;
        if (dim >= v_dim_) continue;   // of a value row there are whole vectors of 16
        float* to = out + r * stride + dim;
        store(to, load(to) + (acc[r][c] + broadcast(middles[r])));
      }
    }
  }

  const uint8_t *k_, *v_;
  int64_t k_dim_, v_dim_, next_;
};

}  // namespace strata::STRATA_ISA
