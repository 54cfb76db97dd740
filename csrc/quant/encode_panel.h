// Sixteen rows through one format: scales of a block, its codes, and what rounding them leaves to the
// columns behind (GPTQ, arXiv 2210.17323).
#pragma once
#include <algorithm>

#include "quant/codebook_types.h"
#include "quant/scalar_types.h"

namespace strata::STRATA_ENCODE_ISA {

static inline float number_at(Format source, const uint8_t* x, int64_t i) {
  if (source == Format::F32) return load_le<float>(x + 4 * i);
  const uint16_t bits = load_le<uint16_t>(x + 2 * i);
  return source == Format::F16 ? half_to_float(bits)
                               : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// The sixteen rows, a share of them after the other: `enter` takes a share's lanes of a block, whose
// columns are then `rounded`; when all shares were, `propagate` goes on to the blocks behind.
class Panel {
 public:
  Panel(const EncodeCall& call, int64_t panel, int elements, float* scratch)
      : call_(call), elements_(elements), first_(panel * kEncodeLanes) {
    x_ = reinterpret_cast<Lanes*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    gaps_ = x_ + call.k * kShares;
    const int64_t rows = std::min<int64_t>(kEncodeLanes, call.rows - first_);
    // Row by row: of rows a power of two apart a column's values would be in the same few places of
    // the first cache.
    alignas(64) float read[kEncodeLanes][256] = {};
    for (int64_t p = 0; p < call.k / elements; ++p) {
      for (int64_t l = 0; l < rows; ++l) {
        const int64_t from = (first_ + l) * call.k + place(p) * elements;
        for (int j = 0; j < elements; ++j) read[l][j] = number_at(call.source, call.x, from + j);
        int odd = 0;
        for (int j = 0; j < elements; ++j) {
          odd |= (std::bit_cast<int32_t>(read[l][j]) & 0x7f800000) == 0x7f800000;
        }
        finite_ &= odd == 0;
      }
      for (int j = 0; j < elements; ++j) {
        alignas(64) float v[kEncodeLanes];
        for (int l = 0; l < kEncodeLanes; ++l) v[l] = read[l][j];
        std::memcpy(x_ + (p * elements + j) * kShares, v, sizeof v);
      }
    }
  }
  // Whether all its numbers are; the call is told where they are not.
  bool finite() const {
    if (!finite_) call_.odd->store(true, std::memory_order_relaxed);
    return finite_;
  }
  int64_t blocks() const { return call_.k / elements_; }
  // Which block of the row is the p-th to be rounded.
  int64_t place(int64_t p) const { return call_.blocks == nullptr ? p : call_.blocks[p]; }
  // The share's lanes of block p, which stay in place until the next call.
  Lanes* enter(int64_t p, int share) {
    share_ = share;
    for (int j = 0; j < elements_; ++j) block_[j] = x_[(p * elements_ + j) * kShares + share];
    return block_;
  }
  // Rows of the share.
  int count() const {
    return static_cast<int>(std::clamp<int64_t>(call_.rows - row(), 0, kLanes));
  }
  const float* weights(int64_t p) const {
    return call_.importance == nullptr ? ones() : call_.importance + place(p) * elements_;
  }
  uint8_t* out(int64_t p, int lane, int bytes) {
    return call_.out + ((row() + lane) * blocks() + place(p)) * bytes;
  }
  // Column j of block p was rounded to `value`.
  void rounded(int64_t p, int j, Lanes value) {
    const int64_t c = p * elements_ + j;
    if (call_.decoded != nullptr) {
      const int rows = count();
      for (int l = 0; l < rows; ++l) {
        call_.decoded[(row() + l) * call_.k + place(p) * elements_ + j] = value[l];
      }
    }
    if (call_.factor == nullptr) return;
    const float* factor = call_.factor + c * call_.k + p * elements_;
    const Lanes gap = (block_[j] - value) / all(factor[j]);
    gaps_[c * kShares + share_] = gap;
    for (int t = j + 1; t < elements_; ++t) block_[t] -= gap * factor[t];
  }
  // All of block p was: those behind it take its errors, in the order of the columns.
  void propagate(int64_t p) {
    if (call_.factor == nullptr) return;
    constexpr int kColumns = kShares == 1 ? 16 : 8 / kShares;   // whose sums are in registers
    constexpr int kTile = kColumns * kShares;
    for (int64_t t = (p + 1) * elements_; t + kColumns <= call_.k; t += kColumns) {
      Lanes* to = x_ + t * kShares;
      Lanes sum[kTile];
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) sum[i] = to[i];
      for (int64_t c = p * elements_; c < (p + 1) * elements_; ++c) {
        const float* factor = call_.factor + c * call_.k + t;
        const Lanes* gaps = gaps_ + c * kShares;
#pragma GCC unroll 16
        for (int i = 0; i < kTile; ++i) sum[i] -= gaps[i % kShares] * factor[i / kShares];
      }
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) to[i] = sum[i];
    }
  }

 private:
  int64_t row() const { return first_ + share_ * kLanes; }   // the share's first
  static const float* ones() {
    static constexpr auto values = [] {
      struct { float v[256]; } out{};
      for (float& v : out.v) v = 1;
      return out;
    }();
    return values.v;
  }
  const EncodeCall& call_;
  int elements_;
  int64_t first_;
  int share_ = 0;
  bool finite_ = true;
  Lanes* x_;      // [k][kShares], and so are the gaps
  Lanes* gaps_;
  Lanes block_[256];
};

template <class T>
static void encode_scalars(const EncodeCall& call, int64_t panel, float* scratch) {
  Panel rows(call, panel, T::elements, scratch);
  if (!rows.finite()) return;
  Bytes columns[T::elements];
  uint8_t codes[kLanes][T::elements];
  for (int64_t p = 0; p < rows.blocks(); ++p) {
    for (int share = 0; share < kShares; ++share) {
      Lanes* x = rows.enter(p, share);
      Scales s;
      T::fit(x, rows.weights(p), s);
      for (int j = 0; j < T::elements; ++j) {
        const int part = j / T::width;
        const Lanes level = T::Code::level((x[j] - s.b[part]) * over(all(1.0f), s.a[part]));
        columns[j] = T::Code::codes(level);
        rows.rounded(p, j, level * s.a[part] + s.b[part]);
      }
      for (int j = 0; j < T::elements; ++j) {
        for (int l = 0; l < kLanes; ++l) codes[l][j] = columns[j][l];
      }
      for (int l = 0; l < rows.count(); ++l) T::pack(s, l, codes[l], rows.out(p, l, T::bytes));
    }
    rows.propagate(p);
  }
}

template <class T>
static void encode_groups(const EncodeCall& call, int64_t panel, float* scratch) {
  const Codebook& book = *codebook_of(T::format);
  Panel rows(call, panel, 256, scratch);
  if (!rows.finite()) return;
  Chosen chosen[kLanes];
  for (int64_t p = 0; p < rows.blocks(); ++p) {
    const float* w = rows.weights(p);
    for (int share = 0; share < kShares; ++share) {
      Lanes* x = rows.enter(p, share);
      const int count = rows.count();
      for (int l = 0; l < count; ++l) {
        float row[256];
        for (int j = 0; j < 256; ++j) row[j] = x[j][l];
        fit_chosen<T>(book, row, w, chosen[l]);
      }
      for (int g = 0; g < 32; ++g) {
        Lanes value[8] = {};
        for (int l = 0; l < count; ++l) {
          Chosen& c = chosen[l];
          float eight[8];
          for (int i = 0; i < 8; ++i) eight[i] = x[8 * g + i][l];
          const float a = c.a[8 * g / T::width];
          const Eight level = choose_scaled<T>(book, eight, w + 8 * g, a, c, g,
                                               T::shared_shift ? c.signs[g] : -1);
          for (int i = 0; i < 8; ++i) value[i][l] = level[i] * a;
        }
        for (int i = 0; i < 8; ++i) rows.rounded(p, 8 * g + i, value[i]);
      }
      for (int l = 0; l < count; ++l) T::pack(chosen[l], rows.out(p, l, T::bytes));
    }
    rows.propagate(p);
  }
}

static void encode_any(const EncodeCall& call, int64_t panel, float* scratch) {
  switch (call.format) {
    case Format::Q4_0: return encode_scalars<Q4_0>(call, panel, scratch);
    case Format::Q4_1: return encode_scalars<Q4_1>(call, panel, scratch);
    case Format::Q5_0: return encode_scalars<Q5_0>(call, panel, scratch);
    case Format::Q5_1: return encode_scalars<Q5_1>(call, panel, scratch);
    case Format::Q8_0: return encode_scalars<Q8_0>(call, panel, scratch);
    case Format::Q2_K: return encode_scalars<Q2_K>(call, panel, scratch);
    case Format::Q3_K: return encode_scalars<Q3_K>(call, panel, scratch);
    case Format::Q4_K: return encode_scalars<Q4_K>(call, panel, scratch);
    case Format::Q5_K: return encode_scalars<Q5_K>(call, panel, scratch);
    case Format::Q6_K: return encode_scalars<Q6_K>(call, panel, scratch);
    case Format::IQ4_NL: return encode_scalars<IQ4_NL>(call, panel, scratch);
    case Format::IQ4_XS: return encode_scalars<IQ4_XS>(call, panel, scratch);
    case Format::TQ1_0: return encode_scalars<TQ1_0>(call, panel, scratch);
    case Format::TQ2_0: return encode_scalars<TQ2_0>(call, panel, scratch);
    case Format::MXFP4: return encode_scalars<MXFP4>(call, panel, scratch);
    case Format::NVFP4: return encode_scalars<NVFP4>(call, panel, scratch);
    case Format::Q1_0: return encode_scalars<Q1_0>(call, panel, scratch);
    case Format::Q2_0: return encode_scalars<Q2_0>(call, panel, scratch);
    case Format::IQ1_S: return encode_groups<IQ1_S>(call, panel, scratch);
    case Format::IQ1_M: return encode_groups<IQ1_M>(call, panel, scratch);
    case Format::IQ2_XXS: return encode_groups<IQ2_XXS>(call, panel, scratch);
    case Format::IQ2_XS: return encode_groups<IQ2_XS>(call, panel, scratch);
    case Format::IQ2_S: return encode_groups<IQ2_S>(call, panel, scratch);
    case Format::IQ3_XXS: return encode_groups<IQ3_XXS>(call, panel, scratch);
    case Format::IQ3_S: return encode_groups<IQ3_S>(call, panel, scratch);
    default: return;
  }
}

}  // namespace strata::STRATA_ENCODE_ISA
