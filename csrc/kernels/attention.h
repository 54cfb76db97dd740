// Attention in one pass with an online softmax (Milakov and Gimelshein 2018; FlashAttention,
// arXiv 2205.14135) over KV blocks; keys are cut into splits at fixed positions whose results merge
// in order (Flash-Decoding), so the bits of a row depend on its position and its keys alone.
#pragma once
#include "kernels/read_block.h"
#include "kernels/scans.h"
#include "kernels/streams.h"

namespace strata::STRATA_ISA {

// Query vectors up to which attention is bound by reading keys rather than by arithmetic.
inline constexpr int64_t kStreamVectors = 12;
inline constexpr float kNoKey = -__builtin_huge_valf();

STRATA_INLINE float exp1(float x) {
  float t[16];
  store(t, exp(broadcast(x)));
  return t[0];
}

// Keys that the row at `position` sees: [first, last].
STRATA_INLINE int64_t last_key(const AttentionArgs& a, int64_t position) {
  if (a.seen <= 0) return position;
  // A window looks both ways where rows see what comes after them.
  const int64_t ahead = a.window > 0 ? position + a.window : a.seen;
  return (ahead < a.seen ? ahead : a.seen) - 1;
}

// One partial result: maximum, sum of weights, unnormalised output.
STRATA_INLINE void clear_partial(float* p, int64_t v_dim) {
  p[0] = kNoKey;
  p[1] = 0.0f;
  for (int64_t i = 2; i < partial_floats(v_dim); ++i) p[i] = 0.0f;
}

// Adds the partial result of a later split to `into`; both orders of magnitude are kept apart.
STRATA_INLINE void merge_partial(float* into, const float* p, int64_t v_dim) {
  if (p[0] == kNoKey) return;
  const int64_t width = kv_value_stride(v_dim);
  if (into[0] == kNoKey) {
    for (int64_t i = 0; i < 2 + width; ++i) into[i] = p[i];
    return;
  }
  const float top = into[0] > p[0] ? into[0] : p[0];
  const float old_factor = exp1(into[0] - top), new_factor = exp1(p[0] - top);
  into[0] = top;
  into[1] = into[1] * old_factor + p[1] * new_factor;
  const F32x16 fo = broadcast(old_factor), fn = broadcast(new_factor);
  for (int64_t i = 0; i < width; i += 16)
    store(into + 2 + i, fma(load(p + 2 + i), fn, load(into + 2 + i) * fo));
}

STRATA_INLINE void write_output(const AttentionArgs& a, int64_t head, const float* p, float* out) {
  if (a.sinks == nullptr) {
    const F32x16 sum = broadcast(p[1]);
    each_vector(a.shape.v_dim, [&](int64_t i, int lanes) {
      store_part(out + i, load(p + 2 + i) / sum, lanes);
    });
    rotate(out, a.shape.v_dim, a.v_rotation);
    return;
  }
  // The sink comes last, whatever the splits: both orders of magnitude are kept apart.
  const float sink = a.sinks[head], top = sink > p[0] ? sink : p[0];
  const float factor = exp1(p[0] - top);
  const F32x16 f = broadcast(factor), sum = broadcast(p[1] * factor + exp1(sink - top));
  each_vector(a.shape.v_dim, [&](int64_t i, int lanes) {
    store_part(out + i, (load(p + 2 + i) * f) / sum, lanes);
  });
  rotate(out, a.shape.v_dim, a.v_rotation);
}

// The scores of one row over one block become weights, in place; keys outside [lo, hi), and those
// without a bit in `keys`, weigh an exact zero. Updates maximum and sum, and scales the output so far. `here` is the row's position
// counted from the block's first key.
STRATA_INLINE void soften(const AttentionArgs& a, int64_t head, int64_t here, float* s, int64_t lo,
                          int64_t hi, uint64_t keys, float* p) {
  constexpr int kVectors = kKvBlock / 16;
  if (a.softcap > 0.0f) softcap_row(s, a.softcap, kKvBlock, s);
  if (a.slopes != nullptr) {
    for (int64_t j = lo; j < hi; ++j) {
      const int64_t distance = here > j ? here - j : j - here;
      s[j] = s[j] - a.slopes[head] * static_cast<float>(distance);
    }
  }
  for (int64_t j = 0; j < lo; ++j) s[j] = kNoKey;
  for (int64_t j = hi; j < kKvBlock; ++j) s[j] = kNoKey;
  const auto leave_out = [&](float weight) {
    for (uint64_t rest = ~keys; rest != 0; rest &= rest - 1) s[__builtin_ctzll(rest)] = weight;
  };
  leave_out(kNoKey);
  F32x16 v[kVectors];
  for (int i = 0; i < kVectors; ++i) v[i] = load(s + 16 * i);
  const float top = reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
  const float old = p[0];
  const float now = old > top ? old : top;
  for (int i = 0; i < kVectors; ++i) {
    v[i] = exp(v[i] - broadcast(now));
    store(s + 16 * i, v[i]);
  }
  for (int64_t j = 0; j < lo; ++j) s[j] = 0.0f;
  for (int64_t j = hi; j < kKvBlock; ++j) s[j] = 0.0f;
  leave_out(0.0f);
  for (int i = 0; i < kVectors; ++i) v[i] = load(s + 16 * i);
  const float sum = reduce_add((v[0] + v[1]) + (v[2] + v[3]));
  p[0] = now;
  if (old == kNoKey) {
    p[1] = sum;
    return;
  }
  if (now == old) {
    p[1] += sum;
    return;
  }
  const float factor = exp1(old - now);
  p[1] = p[1] * factor + sum;
  const F32x16 f = broadcast(factor);
  for (int64_t i = 0; i < kv_value_stride(a.shape.v_dim); i += 16)
    store(p + 2 + i, load(p + 2 + i) * f);
}

// Scaled queries of rows [row0, row1) for the heads of one KV head: vector i is row i / group,
// head i % group.
STRATA_INLINE void gather_queries(const AttentionArgs& a, const float* from, int64_t kv_head,
                                  int64_t row0, int64_t row1, float* q) {
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t r = row0; r < row1; ++r)
    for (int64_t g = 0; g < group; ++g, q += a.shape.k_dim)
    {
      scale_row(from + r * a.q_stride + (kv_head * group + g) * a.shape.k_dim, a.scale,
                a.shape.k_dim, q);
      rotate(q, a.shape.k_dim, a.k_rotation);
    }
}

// Goes on with the partial results of all query vectors over blocks [block, end), of which a row
// sees what its window has, or with `Beginning` what that left behind. p holds one partial a vector;
// `unpacked` has room for what a block wants.
template <class Kv, bool Beginning>
static void run_blocks(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                       int64_t block, int64_t end, const float* q, float* scores, float* p,
                       float* unpacked) {
  const int64_t group = a.heads / a.kv_heads, vectors = (row1 - row0) * group;
  const int64_t stride = partial_floats(a.shape.v_dim);
  const auto seen = [&](int64_t number) {
    if (a.chosen == nullptr) return true;
    for (int64_t r = row0; r < row1; ++r)
      if (sees_block(a, r, number)) return true;
    return false;
  };
  Block<Kv>::prepare(a, q, vectors, unpacked);
  for (; block < end; ++block) {
    if (!seen(block)) continue;   // it need not even be there
    const uint8_t* head = a.kv + a.table[block] * a.block_stride + kv_head / a.shares * a.head_bytes;
    const int64_t base = block * kKvBlock;
    // A few queries wait for memory: every read asks for the same place of the next block, so that
    // memory never rests while this block is worked on.
    const bool ahead = vectors <= kStreamVectors && block + 1 < end;
    const int64_t next =
        ahead ? (a.table[block + 1] - a.table[block]) * a.block_stride : 0;
    const Block<Kv> kv(a, head, next, unpacked);
    kv.score(q, vectors, scores);
    int64_t first = kKvBlock, most = 0;
    for (int64_t i = 0; i < vectors; ++i) {
      int64_t position = a.past + row0 + i / group;
      int64_t lo = first_key(a, position) - base, hi = last_key(a, position) + 1 - base;
      if (Beginning) {
        hi = lo + base > 0 ? a.beginning - base : 0;
        lo = 0;
        position = a.window + a.beginning - 1;
      }
      if (lo < 0) lo = 0;
      if (hi > kKvBlock) hi = kKvBlock;
      if (lo >= hi || !sees_block(a, row0 + i / group, block)) {   // nothing to see for this row: it keeps what it has
        for (int64_t j = 0; j < kKvBlock; ++j) scores[i * kKvBlock + j] = 0.0f;
        continue;
      }
      soften(a, kv_head * group + i % group, position - base, scores + i * kKvBlock, lo, hi,
             seen_keys(a, row0 + i / group, block), p + i * stride);
      if (lo < first) first = lo;
      if (hi > most) most = hi;
    }
    kv.add_values(scores, vectors, first, most, p);
  }
}

// The partial results of one split for all query vectors; p holds one partial a vector, cleared.
template <class Kv>
static void run_split(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                      int64_t split, const float* q, float* scores, float* p, float* unpacked) {
  int64_t block = first_key(a, a.past + row0) / kKvBlock;
  if (block < split * kSplitBlocks) block = split * kSplitBlocks;
  int64_t end = last_key(a, a.past + row1 - 1) / kKvBlock + 1;
  if (end > (split + 1) * kSplitBlocks) end = (split + 1) * kSplitBlocks;
  run_blocks<Kv, false>(a, kv_head, row0, row1, block, end, q, scores, p, unpacked);
}

// Whether a row sees the beginning from beyond its window.
STRATA_INLINE bool sees_beginning(const AttentionArgs& a, int64_t row1) {
  return a.beginning > 0 && first_key(a, a.past + row1 - 1) > 0;
}

// What comes first in split 0. Takes the place of what q holds.
template <class Kv>
static void run_beginning(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                          float* q, float* scores, float* p, float* unpacked) {
  gather_queries(a, a.q_beginning, kv_head, row0, row1, q);
  run_blocks<Kv, true>(a, kv_head, row0, row1, 0, (a.beginning + kKvBlock - 1) / kKvBlock, q,
                       scores, p, unpacked);
}

template <class Kv>
static void attend(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                   float* scratch) {
  const int64_t group = a.heads / a.kv_heads, vectors = (row1 - row0) * group;
  const int64_t stride = partial_floats(a.shape.v_dim);
  float* q = scratch;
  float* scores = q + kQueryTile * a.shape.k_dim;
  float* part = scores + kQueryTile * kKvBlock;
  float* all = part + kQueryTile * stride;
  float* unpacked = all + kQueryTile * stride;
  const int64_t first = first_key(a, a.past + row0) / (kKvBlock * kSplitBlocks);
  const int64_t last = last_key(a, a.past + row1 - 1) / (kKvBlock * kSplitBlocks);
  for (int64_t i = 0; i < vectors; ++i) {
    clear_partial(all + i * stride, a.shape.v_dim);
    clear_partial(part + i * stride, a.shape.v_dim);
  }
  const auto merge = [&] {
    for (int64_t i = 0; i < vectors; ++i) {
      merge_partial(all + i * stride, part + i * stride, a.shape.v_dim);
      clear_partial(part + i * stride, a.shape.v_dim);
    }
  };
  if (sees_beginning(a, row1)) {
    run_beginning<Kv>(a, kv_head, row0, row1, q, scores, part, unpacked);
    if (first > 0) merge();
  }
  gather_queries(a, a.q, kv_head, row0, row1, q);
  for (int64_t split = first; split <= last; ++split) {
    run_split<Kv>(a, kv_head, row0, row1, split, q, scores, part, unpacked);
    merge();
  }
  for (int64_t i = 0; i < vectors; ++i) {
    const int64_t head = kv_head * group + i % group;
    float* out = a.out + (row0 + i / group) * a.out_stride + head * a.shape.v_dim;
    write_output(a, head, all + i * stride, out);
  }
}

template <class Kv>
static void attend_split(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                         int64_t split, int64_t place, int64_t splits, float* partials,
                         float* scratch) {
  const int64_t group = a.heads / a.kv_heads, vectors = (row1 - row0) * group;
  const int64_t stride = partial_floats(a.shape.v_dim);
  float* q = scratch;
  float* scores = q + kQueryTile * a.shape.k_dim;
  float* part = scores + kQueryTile * kKvBlock;
  float* unpacked = part + 2 * kQueryTile * stride;
  for (int64_t i = 0; i < vectors; ++i) clear_partial(part + i * stride, a.shape.v_dim);
  if (split == 0 && sees_beginning(a, row1))
    run_beginning<Kv>(a, kv_head, row0, row1, q, scores, part, unpacked);
  gather_queries(a, a.q, kv_head, row0, row1, q);
  run_split<Kv>(a, kv_head, row0, row1, split, q, scores, part, unpacked);
  for (int64_t i = 0; i < vectors; ++i) {
    const int64_t row = row0 + i / group, head = kv_head * group + i % group;
    float* to = partials + ((row * a.heads + head) * splits + place) * stride;
    for (int64_t j = 0; j < stride; ++j) to[j] = part[i * stride + j];
  }
}

template <class Kv>
static void attend_on(const AttentionArgs& a, int64_t kv_head, int64_t row0, int64_t row1,
                      int64_t split0, int64_t split1, bool first, float* running, float* scratch) {
  const int64_t group = a.heads / a.kv_heads, vectors = (row1 - row0) * group;
  const int64_t stride = partial_floats(a.shape.v_dim);
  float* q = scratch;
  float* scores = q + kQueryTile * a.shape.k_dim;
  float* part = scores + kQueryTile * kKvBlock;
  gather_queries(a, a.q, kv_head, row0, row1, q);
  const auto kept = [&](int64_t i) {
    return running + ((row0 + i / group) * a.heads + kv_head * group + i % group) * stride;
  };
  for (int64_t i = 0; first && i < vectors; ++i) clear_partial(kept(i), a.shape.v_dim);
  const int64_t begin = first_key(a, a.past + row0) / (kKvBlock * kSplitBlocks);
  const int64_t last = last_key(a, a.past + row1 - 1) / (kKvBlock * kSplitBlocks);
  for (int64_t split = split0 > begin ? split0 : begin; split < split1 && split <= last; ++split) {
    for (int64_t i = 0; i < vectors; ++i) clear_partial(part + i * stride, a.shape.v_dim);
    run_split<Kv>(a, kv_head, row0, row1, split, q, scores, part,
                  part + 2 * kQueryTile * stride);
    for (int64_t i = 0; i < vectors; ++i)
      merge_partial(kept(i), part + i * stride, a.shape.v_dim);
  }
}

static void merge_splits(const AttentionArgs& a, int64_t row, int64_t head, int64_t splits,
                         const float* partials, float* scratch) {
  const int64_t stride = partial_floats(a.shape.v_dim);
  const float* p = partials + (row * a.heads + head) * splits * stride;
  clear_partial(scratch, a.shape.v_dim);
  for (int64_t s = 0; s < splits; ++s) merge_partial(scratch, p + s * stride, a.shape.v_dim);
  write_output(a, head, scratch, a.out + row * a.out_stride + head * a.shape.v_dim);
}

static void bound_keys(const float* keys, int64_t k_dim, uint16_t* bounds) {
  const int64_t stride = kv_value_stride(k_dim);
  for (int64_t i = 0; i < 2 * stride; ++i) bounds[i] = 0;
  for (int64_t dim = 0; dim < k_dim; ++dim, keys += kKvBlock) {
    F32x16 most = load(keys), least = load(keys);
    for (int64_t i = 16; i < kKvBlock; i += 16) {
      most = max(most, load(keys + i));
      least = min(least, load(keys + i));
    }
    uint16_t t[16];
    store_f16(t, within(broadcast(-reduce_max(zero16() - least)), 65504.0f));
    bounds[dim] = t[0];
    store_f16(t, within(broadcast(reduce_max(most)), 65504.0f));
    bounds[stride + dim] = t[0];
  }
}

static void weigh_blocks(const AttentionArgs& a, int64_t row, const KeyBounds& bounds,
                         int64_t first, int64_t end, float* scratch, float* each, float* out) {
  const int64_t group = a.heads / a.kv_heads, count = end - first, k_dim = a.shape.k_dim;
  const int64_t stride = kv_value_stride(k_dim);
  for (int64_t i = 0; i < count; i += 16) store(out + i, zero16());
  for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
    gather_queries(a, a.q, kv_head, row, row + 1, scratch);
    for (int64_t g = 0; g < group; ++g) {
      const float* q = scratch + g * k_dim;
      float top = kNoKey;
      for (int64_t i = 0; i < count; ++i) {
        const auto* least = reinterpret_cast<const uint16_t*>(
            bounds.data + a.table[first + i] * bounds.block_bytes +
            kv_head / a.shares * bounds.head_bytes);
        F32x16 sum = zero16();
        each_vector(k_dim, [&](int64_t d, int lanes) {
          const F32x16 x = load_part(q + d, lanes);
          sum = sum + max(x * load_f16(least + d), x * load_f16(least + stride + d));
        });
        each[i] = reduce_add(sum);
        if (each[i] > top) top = each[i];
      }
      for (int64_t i = count; i % 16 != 0; ++i) each[i] = kNoKey;
      for (int64_t i = 0; i < count; i += 16)
        store(out + i, load(out + i) + exp(load(each + i) - broadcast(top)));
    }
  }
}

template <class Kv>
static void weigh_keys(const AttentionArgs& a, const float* weights, int64_t row, int64_t end,
                       float* scratch, float* out) {
  constexpr int kVectors = kKvBlock / 16;
  const int64_t group = a.heads / a.kv_heads, each = group * a.shape.k_dim;
  const int64_t blocks = (end + kKvBlock - 1) / kKvBlock;
  float* q = scratch;
  float* scores = q + a.heads * a.shape.k_dim;
  for (int64_t part = 0; part < a.kv_heads; ++part)
    gather_queries(a, a.q, part, row, row + 1, q + part * each);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t next =
        block + 1 < blocks ? (a.table[block + 1] - a.table[block]) * a.block_stride : 0;
    const Block<Kv> kv(a, a.kv + a.table[block] * a.block_stride, next,
                       scores + kQueryTile * kKvBlock);
    F32x16 sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = zero16();
    for (int64_t head = 0; head < a.heads; ++head) {
      if (head % group == 0) kv.score(q + head * a.shape.k_dim, group, scores);
      const float* s = scores + head % group * kKvBlock;
      if (weights == nullptr) {
        float* const own = out + (head * blocks + block) * kKvBlock;
        for (int i = 0; i < kVectors; ++i) store(own + 16 * i, load(s + 16 * i));
        continue;
      }
      const F32x16 weight = broadcast(weights[head]);
      for (int i = 0; i < kVectors; ++i)
        sum[i] = fma(max(load(s + 16 * i), zero16()), weight, sum[i]);
    }
    if (weights == nullptr) continue;
    for (int i = 0; i < kVectors; ++i) store(out + block * kKvBlock + 16 * i, sum[i]);
  }
}

template <class Kv> constexpr AttendKernels attend_kernels() {
  return {attend<Kv>, attend_split<Kv>, attend_on<Kv>, weigh_keys<Kv>};
}
template <class Kv> constexpr KvKernels kv_kernels() {
  return {Kv::store_key, Kv::store_value, unpack_keys<Kv>, unpack_values<Kv>, attend_kernels<Kv>()};
}

static const StepKernels* step_table() {
  static const StepKernels table = {
      rms_norm, layer_norm, glu, activate, add_rows, multiply_rows, clamp_row, xielu_row,
      scale_row, softcap_row, rope, short_conv, grouped_rms_norm, l2_norm, decay_row,
      mix, sinkhorn, match_rms, cutoff,
      group_sum, softmax_groups,
      {ssm_scan_head, ssm_scan_channels, gated_delta, wkv6, wkv7, linear_attention},
      merge_splits,
      bound_keys, weigh_blocks,
      {kv_kernels<KvF16>(), kv_kernels<KvBf16>(), kv_kernels<KvQ8>(),
       {KvInt4::store_key, KvInt4::store_value, KvInt4::unpack_keys, KvInt4::unpack_values,
        attend_kernels<KvInt4>()}},
      attend_kernels<KvUnpacked>()};
  return &table;
}

}  // namespace strata::STRATA_ISA
