// Recurrences with a matrix of state a head, for up to sixteen of its columns. Included once per
// instruction set, after rows.h. Sums over the rows of the state have one fixed order.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/rows.h"

// For lambdas: they are part of the loop that calls them.
#define STRATA_HERE __attribute__((always_inline))

namespace strata::STRATA_ISA {

static inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

STRATA_INLINE F32x16 sum4(const F32x16 (&s)[4]) { return (s[0] + s[1]) + (s[2] + s[3]); }

// Calls f(i, i % 4) for i < n. What takes turns with i, as sums do, is then in registers.
template <class F> STRATA_INLINE void by_fours(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) f(i + t, t);
  }
#pragma GCC unroll 4
  for (int t = 0; t < 3; ++t) {
    if (i + t < n) f(i + t, t);
  }
}

// A state that a step of one row leaves is read again a token later, when the weights have passed
// through the caches: it goes past them, and is not read before it is written.
STRATA_INLINE bool streams_state(const ScanArgs& s, int lanes) {
  return s.rows == 1 && lanes == 16 && reinterpret_cast<uintptr_t>(s.after) % 64 == 0;
}
// What follows, the next columns as well, is asked for this far ahead.
inline constexpr int64_t kStateAhead = 2048;   // floats

// Rows of the state that stay in registers while some rows of the step pass by, and how many pass.
inline constexpr int kHeldStates = kWidth == 16 ? 16 : 4;
inline constexpr int64_t kScanRows = 32;

// What a row of ssm_scan_head brings, and the four sums of its output so far.
struct SsmRow {
  float added[16];   // dt * x
  float sums[4][16];
  float decay;
  const float *b, *c;
};

// kStates rows of the state from `i` on, a multiple of 4 where they are more than one: read at
// `from` (null: zeros), left at `to`.
template <int kStates, bool kStreams>
STRATA_INLINE void ssm_states(SsmRow* rows, int64_t count, int64_t i, const float* from, float* to,
                              int lanes) {
  constexpr int kSums = kStates < 4 ? kStates : 4;
  F32x16 state[kStates];
#pragma GCC unroll 16
  for (int j = 0; j < kStates; ++j) {
    if (kStreams && from != nullptr) prefetch(from + (i + j) * lanes + kStateAhead);
    state[j] = from == nullptr ? zero16() : load_part(from + (i + j) * lanes, lanes);
  }
  for (int64_t r = 0; r < count; ++r) {
    SsmRow& row = rows[r];
    const F32x16 decay = broadcast(row.decay), added = load(row.added);
    const float *b = row.b + i, *c = row.c + i;
    F32x16 sums[kSums];
#pragma GCC unroll 4
    for (int t = 0; t < kSums; ++t) sums[t] = load(row.sums[(i + t) & 3]);
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) {
      state[j] = fma(state[j], decay, broadcast(b[j]) * added);
      sums[j % kSums] = fma(state[j], broadcast(c[j]), sums[j % kSums]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kSums; ++t) store(row.sums[(i + t) & 3], sums[t]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < kStates; ++j) {
    float* const at = to + (i + j) * lanes;
    if constexpr (kStreams) stream(at, state[j]);
    else store_part(at, state[j], lanes);
  }
}

template <bool kStreams>
STRATA_INLINE void ssm_scan(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  const int64_t group = head * s.key_heads / s.heads;
  const float a = s.parameters[0][head];
  const F32x16 d = broadcast(s.parameters[1][head]);
  const auto x = [&](int64_t r) { return load_part(s.at(0, r) + head * s.v_dim + column, lanes); };
  const float* state = s.before;
  SsmRow rows[kScanRows];
  for (int64_t first = 0; first < s.rows; first += kScanRows) {
    const int64_t count = s.rows - first < kScanRows ? s.rows - first : kScanRows;
    for (int64_t i = 0; i < count; ++i) {
      SsmRow& row = rows[i];
      const float dt = softplus(s.at(1, first + i)[head]);
      row.decay = std::exp(dt * a);
      row.b = s.at(2, first + i) + group * s.k_dim;
      row.c = s.at(3, first + i) + group * s.k_dim;
      store(row.added, broadcast(dt) * x(first + i));
      for (float* sum : row.sums) store(sum, zero16());
    }
    int64_t i = 0;
    for (; i + kHeldStates <= s.k_dim; i += kHeldStates) {
      ssm_states<kHeldStates, kStreams>(rows, count, i, state, s.after, lanes);
    }
    for (; i < s.k_dim; ++i) ssm_states<1, kStreams>(rows, count, i, state, s.after, lanes);
    for (i = 0; i < count; ++i) {
      const F32x16 sums[4] = {load(rows[i].sums[0]), load(rows[i].sums[1]), load(rows[i].sums[2]),
                              load(rows[i].sums[3])};
      store_part(s.row_out(first + i) + head * s.v_dim + column,
                 fma(d, x(first + i), sum4(sums)), lanes);
    }
    state = s.after;
  }
  if constexpr (kStreams) vstream_end();
}

// in: x, dt, b, c; parameters: a and d of the heads.
static void ssm_scan_head(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  if (streams_state(s, lanes)) ssm_scan<true>(s, head, column, lanes);
  else ssm_scan<false>(s, head, column, lanes);
}

// The state that a row starts from: what was before the span, then what the row before has left.
STRATA_INLINE const float* begin_scan(const ScanArgs& a, int lanes) {
  if (a.before != nullptr) return a.before;
  std::memset(a.after, 0, static_cast<size_t>(a.k_dim * lanes) * sizeof(float));
  return a.after;
}

// The same where every column is a head: `a` is [k_dim][columns], dt and d have all columns.
static void ssm_scan_channels(const ScanArgs& s, int64_t, int64_t column, int lanes) {
  const float* a = s.parameters[0] + column;
  const F32x16 d = load_part(s.parameters[1] + column, lanes);
  const float* state = begin_scan(s, lanes);
  for (int64_t r = 0; r < s.rows; ++r) {
    float steps[16] = {};
    for (int i = 0; i < lanes; ++i) steps[i] = softplus(s.at(1, r)[column + i]);
    const F32x16 dt = load(steps);
    const float* b = s.at(2, r);
    const float* c = s.at(3, r);
    const F32x16 x = load_part(s.at(0, r) + column, lanes);
    const F32x16 added = dt * x;
    F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
    by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
      const F32x16 decay = exp(dt * load_part(a + i * s.v_dim, lanes));
      const F32x16 now = fma(load_part(state + i * lanes, lanes), decay, broadcast(b[i]) * added);
      store_part(s.after + i * lanes, now, lanes);
      sums[t] = fma(now, broadcast(c[i]), sums[t]);
    });
    store_part(s.row_out(r) + column, fma(d, x, sum4(sums)), lanes);
    state = s.after;
  }
}

// The same of one row: the state that has decayed is computed twice, not stored in between.
STRATA_INLINE void gated_delta_row(const ScanArgs& s, int64_t head, int64_t key_head,
                                   int64_t column) {
  const float *q = s.at(0, 0) + key_head * s.k_dim, *k = s.at(1, 0) + key_head * s.k_dim;
  const float* by = s.at(3, 0) + (s.by_key ? head * s.k_dim : head);
  const int64_t step = s.by_key ? 1 : 0;
  F32x16 found[4] = {zero16(), zero16(), zero16(), zero16()};
  F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
  by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
    prefetch(s.before + i * 16 + kStateAhead);
    found[t] = fma(load(s.before + i * 16) * broadcast(by[i * step]), broadcast(k[i]), found[t]);
  });
  const F32x16 v = load(s.at(2, 0) + head * s.v_dim + column);
  const F32x16 delta = broadcast(s.at(4, 0)[head]) * (v - sum4(found));
  by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
    const F32x16 decayed = load(s.before + i * 16) * broadcast(by[i * step]);
    const F32x16 now = fma(broadcast(k[i]), delta, decayed);
    stream(s.after + i * 16, now);
    sums[t] = fma(now, broadcast(q[i]), sums[t]);
  });
  vstream_end();
  store(s.row_out(0) + head * s.v_dim + column, sum4(sums));
}

// in: q, k, v, decay, beta. A pass over the state takes a row's correction in and lets what the next
// row finds decay, so that each element is read and written once a row.
static void gated_delta(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  const int64_t key_head = s.tiled ? head % s.key_heads : head * s.key_heads / s.heads;
  const auto key = [&](int64_t r) { return s.at(1, r) + key_head * s.k_dim; };
  const auto decay = [&](int64_t r) { return s.at(3, r) + (s.by_key ? head * s.k_dim : head); };
  const int64_t step = s.by_key ? 1 : 0;
  if (s.before != nullptr && streams_state(s, lanes)) {
    gated_delta_row(s, head, key_head, column);
    return;
  }
  const float* state = begin_scan(s, lanes);
  F32x16 found[4] = {zero16(), zero16(), zero16(), zero16()};
  const float *k = key(0), *by = decay(0);
  by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
    const F32x16 now = load_part(state + i * lanes, lanes) * broadcast(by[i * step]);
    store_part(s.after + i * lanes, now, lanes);
    found[t] = fma(now, broadcast(k[i]), found[t]);
  });
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* q = s.at(0, r) + key_head * s.k_dim;
    k = key(r);
    const F32x16 v = load_part(s.at(2, r) + head * s.v_dim + column, lanes);
    const F32x16 delta = broadcast(s.at(4, r)[head]) * (v - sum4(found));
    F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
    if (r + 1 == s.rows) {
      by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
        const F32x16 now = fma(broadcast(k[i]), delta, load_part(s.after + i * lanes, lanes));
        store_part(s.after + i * lanes, now, lanes);
        sums[t] = fma(now, broadcast(q[i]), sums[t]);
      });
    } else {
      const float* next = key(r + 1);
      by = decay(r + 1);
      for (F32x16& sum : found) sum = zero16();
      by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
        F32x16 now = fma(broadcast(k[i]), delta, load_part(s.after + i * lanes, lanes));
        sums[t] = fma(now, broadcast(q[i]), sums[t]);
        now = now * broadcast(by[i * step]);
        store_part(s.after + i * lanes, now, lanes);
        found[t] = fma(now, broadcast(next[i]), found[t]);
      });
    }
    store_part(s.row_out(r) + head * s.v_dim + column, sum4(sums), lanes);
  }
}

// in: q, k, v and, by key, the decay; else parameters: the decay of the heads.
static void linear_attention(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  const int64_t first = head * s.k_dim;
  const float* state = begin_scan(s, lanes);
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* q = s.at(0, r) + first;
    const float* k = s.at(1, r) + first;
    const float* decay = s.by_key ? s.at(3, r) + first : s.parameters[0] + head;
    const F32x16 v = load_part(s.at(2, r) + head * s.v_dim + column, lanes);
    F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
    by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
      const F32x16 kept = broadcast(decay[s.by_key ? i : 0]) * load_part(state + i * lanes, lanes);
      const F32x16 now = fma(broadcast(k[i]), v, kept);
      store_part(s.after + i * lanes, now, lanes);
      sums[t] = fma(now, broadcast(q[i]), sums[t]);
    });
    store_part(s.row_out(r) + head * s.v_dim + column, sum4(sums), lanes);
    state = s.after;
  }
}

// in: r, k, v, w; parameters: u of all columns.
static void wkv6(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  const int64_t first = head * s.k_dim;
  const float* u = s.parameters[0] + first;
  const float* state = begin_scan(s, lanes);
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* q = s.at(0, r) + first;
    const float* k = s.at(1, r) + first;
    const float* w = s.at(3, r) + first;
    const F32x16 v = load_part(s.at(2, r) + first + column, lanes);
    F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
    by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
      const F32x16 kv = broadcast(k[i]) * v, was = load_part(state + i * lanes, lanes);
      sums[t] = fma(broadcast(q[i]), fma(broadcast(u[i]), kv, was), sums[t]);
      const float decay = std::exp(-std::exp(w[i]));
      store_part(s.after + i * lanes, fma(broadcast(decay), was, kv), lanes);
    });
    store_part(s.row_out(r) + first + column, sum4(sums), lanes);
    state = s.after;
  }
}

// in: r, w, k, v, a, b.
static void wkv7(const ScanArgs& s, int64_t head, int64_t column, int lanes) {
  const int64_t first = head * s.k_dim;
  const float* state = begin_scan(s, lanes);
  for (int64_t r = 0; r < s.rows; ++r) {
    const float *q = s.at(0, r) + first, *w = s.at(1, r) + first, *k = s.at(2, r) + first;
    const float *a = s.at(4, r) + first, *b = s.at(5, r) + first;
    const F32x16 v = load_part(s.at(3, r) + first + column, lanes);
    F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
    by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
      sums[t] = fma(broadcast(a[i]), load_part(state + i * lanes, lanes), sums[t]);
    });
    const F32x16 removed = sum4(sums);
    for (F32x16& sum : sums) sum = zero16();
    by_fours(s.k_dim, [&](int64_t i, int t) STRATA_HERE {
      F32x16 now = broadcast(w[i]) * load_part(state + i * lanes, lanes);
      now = fma(broadcast(b[i]), removed, now);
      now = fma(broadcast(k[i]), v, now);
      store_part(s.after + i * lanes, now, lanes);
      sums[t] = fma(now, broadcast(q[i]), sums[t]);
    });
    store_part(s.row_out(r) + first + column, sum4(sums), lanes);
    state = s.after;
  }
}

static void grouped_rms_norm(const float* x, const float* weight, float eps, int64_t group,
                             int64_t n, float* out) {
  for (int64_t g = 0; g < n; g += group) rms_norm(x + g, weight + g, eps, group, out + g);
}

static void l2_norm(const float* x, float eps, float factor, int64_t group, int64_t n, float* out) {
  for (int64_t g = 0; g < n; g += group) {
    const float squares = sum_row(
        x + g, group, [](const F32x16& v, int, const F32x16& s) { return fma(v, v, s); });
    const F32x16 by = broadcast(factor) / sqrt(broadcast(squares + eps));
    map_row(x + g, group, out + g, [&](const F32x16& v) { return v * by; });
  }
}

static void group_sum(const float* x, int64_t group, int64_t n, float* out) {
  for (int64_t g = 0; g < n; g += group) {
    out[g / group] =
        sum_row(x + g, group, [](const F32x16& v, int, const F32x16& s) { return v + s; });
  }
}

// For groups of a few columns: one after the other.
static void softmax_groups(const float* x, int64_t group, int64_t n, float* out) {
  for (int64_t g = 0; g < n; g += group) {
    float most = x[g], sum = 0;
    for (int64_t i = 1; i < group; ++i) most = std::max(most, x[g + i]);
    for (int64_t i = 0; i < group; ++i) sum += out[g + i] = std::exp(x[g + i] - most);
    for (int64_t i = 0; i < group; ++i) out[g + i] /= sum;
  }
}

static void decay_row(const float* x, const float* a, int64_t each, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = std::exp(a[i / each] * softplus(x[i]));
}

}  // namespace strata::STRATA_ISA
