// KV blocks as attention reads them: in place, unpacked, or as codes.
#pragma once
#include "kernels/int4_block.h"

namespace strata::STRATA_ISA {

// Accumulators of a tile fill the registers: 6 x 4 of 32, or 3 x 2 (two registers each) of 16.
inline constexpr int kProductRows = kWidth == 16 ? 6 : 3;
inline constexpr int kProductVectors = kWidth == 16 ? 4 : 2;

// c[r, :] += a[r, k] * b(k, :) for k in [k0, k1), one fma a step for every element of c: the order
// is that of k, whatever the tile. b(k, j) gives columns j .. j + 15 of row k.
template <int Rows, int Vectors, class B>
STRATA_INLINE void product_tile(const float* a, int64_t lda, const B& b, int64_t j, int64_t k0,
                                int64_t k1, float* c, int64_t ldc) {
  F32x16 acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[r][v] = load(c + r * ldc + j + 16 * v);
  for (int64_t k = k0; k < k1; ++k) {
    F32x16 w[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) w[v] = b(k, j + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const F32x16 x = broadcast(a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + j + 16 * v, acc[r][v]);
}

template <int Rows, class B>
STRATA_INLINE void product_rows(const float* a, int64_t lda, const B& b, int64_t k0, int64_t k1,
                                int64_t n, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 16 * kProductVectors <= n; j += 16 * kProductVectors)
    product_tile<Rows, kProductVectors>(a, lda, b, j, k0, k1, c, ldc);
  for (; j < n; j += 16) product_tile<Rows, 1>(a, lda, b, j, k0, k1, c, ldc);
}

// c [m, n] += a [m, k] * b [k, n]; n is a multiple of 16.
template <class B>
static void product(const float* a, int64_t lda, const B& b, int64_t k0, int64_t k1, int64_t m,
                    int64_t n, float* c, int64_t ldc) {
  int64_t r = 0;
  for (; r + kProductRows <= m; r += kProductRows)
    product_rows<kProductRows>(a + r * lda, lda, b, k0, k1, n, c + r * ldc, ldc);
  for (; r + 3 <= m; r += 3) product_rows<3>(a + r * lda, lda, b, k0, k1, n, c + r * ldc, ldc);
  for (; r < m; ++r) product_rows<1>(a + r * lda, lda, b, k0, k1, n, c + r * ldc, ldc);
}

// Values that are part of the keys, of slots [first, most) and those beside them up to whole
// vectors: out [kKvBlock][value stride].
template <class Kv>
static __attribute__((noinline)) void values_of_keys(const Kv& kv, int64_t v_dim, int64_t first,
                                                     int64_t most, float* out) {
  const int64_t stride = kv_value_stride(v_dim);
  float t[16][16] = {};
  for (int64_t slot = first / 16 * 16; slot < most; slot += 16) {
    for (int64_t dim = 0; dim < v_dim; dim += 16) {
      const int64_t n = v_dim - dim < 16 ? v_dim - dim : 16;
      for (int64_t d = 0; d < n; ++d) store(t[d], kv.keys(dim + d, slot));
      float* to = out + slot * stride + dim;
      for (int64_t s = 0; s < 16; ++s, to += stride)
        for (int64_t d = 0; d < 16; ++d) to[d] = d < n ? t[d][s] : 0.0f;
    }
  }
}

// A block as run_blocks reads it: in place, or (KvUnpacked) unpacked. `next` is how many bytes away
// the block lies that comes next, where every read asks for the same place of it.
template <class Kv> class Block {
 public:
  static void prepare(const AttentionArgs&, const float*, int64_t, float*) {}
  Block(const AttentionArgs& a, const uint8_t* head, int64_t next, float* scratch)
      : a_(a), kv_(head, head + a.value_at, a.shape.k_dim, a.shape.v_dim), next_(next),
        scratch_(scratch) {}

  // scores [vectors][kKvBlock] of q [vectors][k_dim]
  void score(const float* q, int64_t vectors, float* scores) const {
    for (int64_t i = 0; i < vectors * kKvBlock; ++i) scores[i] = 0.0f;
    const auto keys = [this](int64_t dim, int64_t slot) {
      kv_.fetch_keys(dim, slot, next_);
      return kv_.keys(dim, slot);
    };
    product(q, a_.shape.k_dim, keys, 0, a_.shape.k_dim, vectors, kKvBlock, scores, kKvBlock);
  }
  // Adds what slots [first, most) weigh to the partial results.
  void add_values(const float* weights, int64_t vectors, int64_t first, int64_t most,
                  float* p) const {
    const int64_t stride = partial_floats(a_.shape.v_dim), width = kv_value_stride(a_.shape.v_dim);
    if (a_.shape.v_in_k) {
      float* apart = scratch_ + kKvBlock * a_.shape.k_dim;
      values_of_keys(kv_, a_.shape.v_dim, first, most, apart);
      const auto values = [apart, width](int64_t slot, int64_t dim) {
        return load(apart + slot * width + dim);
      };
      product(weights, kKvBlock, values, first, most, vectors, width, p + 2, stride);
      return;
    }
    const auto values = [this](int64_t slot, int64_t dim) {
      kv_.fetch_values(slot, dim, next_);
      return kv_.values(slot, dim);
    };
    product(weights, kKvBlock, values, first, most, vectors, width, p + 2, stride);
  }

 private:
  const AttentionArgs& a_;
  Kv kv_;
  int64_t next_;
  float* scratch_;
};

// Rows of floats as run_blocks reads them.
struct Floats {
  F32x16 keys(int64_t dim, int64_t slot) const { return load(k + dim * kKvBlock + slot); }
  const float* k;
};
struct KvUnpacked {};
template <> class Block<KvUnpacked> {
 public:
  static void prepare(const AttentionArgs&, const float*, int64_t, float*) {}
  Block(const AttentionArgs& a, const uint8_t* head, int64_t, float* scratch)
      : a_(a), head_(head), k_(scratch), v_(scratch + kKvBlock * a.shape.k_dim) {
    a.keys->unpack_keys(head, a.shape.k_dim, k_);
  }
  void score(const float* q, int64_t vectors, float* scores) const {
    for (int64_t i = 0; i < vectors * kKvBlock; ++i) scores[i] = 0.0f;
    const auto keys = [this](int64_t dim, int64_t slot) { return load(k_ + dim * kKvBlock + slot); };
    product(q, a_.shape.k_dim, keys, 0, a_.shape.k_dim, vectors, kKvBlock, scores, kKvBlock);
  }
  // Keys of which values are a part are turned back.
  void add_values(const float* weights, int64_t vectors, int64_t first, int64_t most,
                  float* p) const {
    const int64_t v_dim = a_.shape.v_dim, width = kv_value_stride(v_dim);
    if (a_.shape.v_in_k) {
      KvInt4::rotate_rows(k_, a_.shape.k_dim, a_.k_rotation);
      values_of_keys(Floats{k_}, v_dim, first, most, v_);
    } else {
      a_.values->unpack_values(head_ + a_.value_at, v_dim, first, most, v_);
    }
    const auto values = [this, width](int64_t slot, int64_t dim) {
      return load(v_ + slot * width + dim);
    };
    product(weights, kKvBlock, values, first, most, vectors, width, p + 2, partial_floats(v_dim));
  }

 private:
  const AttentionArgs& a_;
  const uint8_t* head_;
  float *k_, *v_;
};
template <> class Block<KvInt4> {
 public:
  static void prepare(const AttentionArgs& a, const float* q, int64_t vectors, float* scratch) {
    Int4Block::prepare(q, vectors, a.shape.k_dim, scratch);
  }
  Block(const AttentionArgs& a, const uint8_t* head, int64_t next, float* scratch)
      : codes_(head, a.value_at, a.shape, next), stride_(partial_floats(a.shape.v_dim)),
        scratch_(scratch) {}
  void score(const float* q, int64_t vectors, float* scores) const {
    codes_.score(q, vectors, scratch_, scores);
  }
  void add_values(const float* weights, int64_t vectors, int64_t first, int64_t most,
                  float* p) const {
    codes_.add_values(weights, vectors, first, most, scratch_, p + 2, stride_);
  }

 private:
  Int4Block codes_;
  int64_t stride_;
  float* scratch_;
};

}  // namespace strata::STRATA_ISA
