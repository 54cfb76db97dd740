// Kernels over a residual of several streams side by side, and over whole rows. Included once per
// instruction set. Streams are added up in their order.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/rows.h"

namespace strata::STRATA_ISA {

static void mix(const float* x, const float* weights, int64_t streams, int64_t width,
                float* out) {
  each_vector(width, [&](int64_t i, int lanes) {
    F32x16 sum = broadcast(weights[0]) * load_part(x + i, lanes);
    for (int64_t s = 1; s < streams; ++s) {
      sum = fma(broadcast(weights[s]), load_part(x + s * width + i, lanes), sum);
    }
    store_part(out + i, sum, lanes);
  });
}

// A few numbers a row: plain loops in a fixed order.
static void sinkhorn(const float* x, int64_t streams, int64_t iterations, float eps, float* out) {
  const int64_t n = streams;
  // Turned already: element (to, from) of what `mix` takes.
  const auto at = [&](int64_t from, int64_t to) -> float& { return out[to * n + from]; };
  for (int64_t from = 0; from < n; ++from) {
    const float* row = x + from * n;
    float most = row[0], sum = 0;
    for (int64_t to = 1; to < n; ++to) most = std::max(most, row[to]);
    for (int64_t to = 0; to < n; ++to) sum += at(from, to) = std::exp(row[to] - most);
    for (int64_t to = 0; to < n; ++to) at(from, to) = at(from, to) / sum + eps;
  }
  for (int64_t i = 0; i < iterations; ++i) {
    for (int64_t from = 0; i > 0 && from < n; ++from) {
      float sum = eps;
      for (int64_t to = 0; to < n; ++to) sum += at(from, to);
      for (int64_t to = 0; to < n; ++to) at(from, to) /= sum;
    }
    for (int64_t to = 0; to < n; ++to) {
      float sum = eps;
      for (int64_t from = 0; from < n; ++from) sum += at(from, to);
      for (int64_t from = 0; from < n; ++from) at(from, to) /= sum;
    }
  }
}

STRATA_INLINE float mean_square(const float* x, int64_t n) {
  return sum_row(x, n, [](const F32x16& v, int, const F32x16& s) { return fma(v, v, s); }) /
         static_cast<float>(n);
}

static void match_rms(const float* x, const float* like, float least, int64_t n, float* out) {
  const float wanted = std::sqrt(mean_square(like, n));
  const float factor = wanted / std::sqrt(std::max(mean_square(x, n), least));
  map_row(x, n, out, [&](const F32x16& v) { return v * broadcast(factor); });
}

static void cutoff(const float* x, float deviations, int64_t spare, int64_t n, float* out) {
  const float total = sum_row(x, n, [](const F32x16& v, int, const F32x16& s) { return s + v; });
  const F32x16 mean = broadcast(total / static_cast<float>(n));
  const float squares = sum_row(x, n, [&](const F32x16& v, int lanes, const F32x16& s) {
    F32x16 d = v - mean;
    if (lanes != 16) {   // lanes past the end hold -mean: drop them
      float t[16];
      store(t, d);
      d = load_n(t, lanes);
    }
    return fma(d, d, s);
  });
  const F32x16 above =
      broadcast(deviations * std::sqrt(squares / static_cast<float>(n - spare)));
  map_row(x, n, out, [&](const F32x16& v) { return max((v - mean) - above, zero16()); });
}

}  // namespace strata::STRATA_ISA
