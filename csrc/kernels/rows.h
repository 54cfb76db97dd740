// Kernels over single rows: norms, activation functions, RoPE. Included once per instruction set,
// after its simd header. Every sum has one fixed order that depends on the row's length alone.
#pragma once
#include "kernels/step_kernels.h"

namespace strata::STRATA_ISA {

// Calls f(offset, lanes) for vectors of 16 and then for the rest; `lanes` is 16 but for the last.
template <class F> STRATA_INLINE void each_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, static_cast<int>(n - i));
}

STRATA_INLINE F32x16 load_part(const float* p, int lanes) {
  return lanes == 16 ? load(p) : load_n(p, lanes);
}
STRATA_INLINE void store_part(float* p, const F32x16& v, int lanes) {
  if (lanes == 16) store(p, v);
  else store_n(p, v, lanes);
}

template <class F>
STRATA_INLINE void map_row(const float* x, int64_t n, float* out, F f) {
  each_vector(n, [&](int64_t i, int lanes) {
    store_part(out + i, f(load_part(x + i, lanes)), lanes);
  });
}

// Sum of f(vector) over a row; four running sums hide the latency of the addition.
template <class F> STRATA_INLINE float sum_row(const float* x, int64_t n, F f) {
  F32x16 sums[4] = {zero16(), zero16(), zero16(), zero16()};
  int which = 0;
  each_vector(n, [&](int64_t i, int lanes) {
    sums[which & 3] = f(load_part(x + i, lanes), lanes, sums[which & 3]);
    ++which;
  });
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const float squares =
      sum_row(x, n, [](const F32x16& v, int, const F32x16& s) { return fma(v, v, s); });
  const F32x16 factor =
      broadcast(1.0f) / sqrt(broadcast(squares / static_cast<float>(n) + eps));
  each_vector(n, [&](int64_t i, int lanes) {
    F32x16 v = load_part(x + i, lanes) * factor;
    if (weight != nullptr) v = v * load_part(weight + i, lanes);
    store_part(out + i, v, lanes);
  });
}

static void layer_norm(const float* x, const float* weight, const float* bias, float eps,
                       int64_t n, float* out) {
  const float count = static_cast<float>(n);
  const float total = sum_row(x, n, [](const F32x16& v, int, const F32x16& s) { return s + v; });
  const F32x16 mean = broadcast(total / count);
  const float squares = sum_row(x, n, [&](const F32x16& v, int lanes, const F32x16& s) {
    F32x16 d = v - mean;
    if (lanes != 16) {   // lanes past the end hold -mean: drop them
      float t[16];
      store(t, d);
      d = load_n(t, lanes);
    }
    return fma(d, d, s);
  });
  const F32x16 factor = broadcast(1.0f) / sqrt(broadcast(squares / count + eps));
  each_vector(n, [&](int64_t i, int lanes) {
    F32x16 v = (load_part(x + i, lanes) - mean) * factor;
    if (weight != nullptr) v = v * load_part(weight + i, lanes);
    if (bias != nullptr) v = v + load_part(bias + i, lanes);
    store_part(out + i, v, lanes);
  });
}

STRATA_INLINE F32x16 silu(const F32x16& x) {
  return x / (broadcast(1.0f) + exp(zero16() - x));
}

STRATA_INLINE F32x16 gelu_tanh(const F32x16& x) {
  const F32x16 cube = (x * x) * x;
  const F32x16 inner = broadcast(0.7978845608028654f) * fma(broadcast(0.044715f), cube, x);
  return (broadcast(0.5f) * x) * (broadcast(1.0f) + tanh(inner));
}

// Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
STRATA_INLINE F32x16 erf(const F32x16& x) {
  const F32x16 a = abs(x);
  const F32x16 t = broadcast(1.0f) / fma(broadcast(0.3275911f), a, broadcast(1.0f));
  F32x16 p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  const F32x16 r = broadcast(1.0f) - (p * t) * exp(zero16() - a * a);
  return select_lt(x, zero16(), zero16() - r, r);
}

STRATA_INLINE F32x16 gelu(const F32x16& x) {
  return (broadcast(0.5f) * x) * (broadcast(1.0f) + erf(x * broadcast(0.7071067811865476f)));
}

STRATA_INLINE F32x16 sigmoid(const F32x16& x) {
  return broadcast(1.0f) / (broadcast(1.0f) + exp(zero16() - x));
}

// log(1 + e^x) = max(x, 0) + log(1 + t), t = e^-|x|; the logarithm as 2 atanh(t / (2 + t)), whose
// series in s^2 <= 1/9 ends below 2^-26.
STRATA_INLINE F32x16 softplus(const F32x16& x) {
  const F32x16 t = exp(zero16() - abs(x));
  const F32x16 s = t / (t + broadcast(2.0f));
  const F32x16 z = s * s;
  F32x16 p = broadcast(2.0f / 15);
  for (int k = 13; k >= 1; k -= 2) p = fma(p, z, broadcast(2.0f / static_cast<float>(k)));
  return fma(p, s, max(x, zero16()));
}

// NaN stays, where a maximum would lose it, and -0 is 0; so below.
STRATA_INLINE F32x16 relu(const F32x16& x) {
  return select_lt(x, zero16(), zero16(), x + zero16());
}

STRATA_INLINE F32x16 signed_sqrt(const F32x16& x) {
  const F32x16 root = sqrt(max(abs(x), broadcast(1e-6f)));
  const F32x16 positive = select_lt(zero16(), x, root, x + zero16());
  return select_lt(x, zero16(), zero16() - root, positive);
}

// Calls f with the activation as a function object, so that the choice is made once a row.
template <class F> STRATA_INLINE void with_activation(Activation a, F f) {
  switch (a) {
    case Activation::silu: f([](const F32x16& x) { return silu(x); }); break;
    case Activation::gelu: f([](const F32x16& x) { return gelu(x); }); break;
    case Activation::gelu_tanh: f([](const F32x16& x) { return gelu_tanh(x); }); break;
    case Activation::relu: f([](const F32x16& x) { return relu(x); }); break;
    case Activation::relu2:
      f([](const F32x16& x) {
        const F32x16 r = relu(x);
        return r * r;
      });
      break;
    case Activation::sigmoid: f([](const F32x16& x) { return sigmoid(x); }); break;
    case Activation::tanh: f([](const F32x16& x) { return tanh(x); }); break;
    case Activation::softplus: f([](const F32x16& x) { return softplus(x); }); break;
    case Activation::gelu_quick:
      f([](const F32x16& x) { return x * sigmoid(x * broadcast(1.702f)); });
      break;
    case Activation::exp: f([](const F32x16& x) { return exp(x); }); break;
    case Activation::signed_sqrt: f([](const F32x16& x) { return signed_sqrt(x); }); break;
  }
}

static void glu(Activation a, const float* gate, const float* up, int64_t n, float* out) {
  with_activation(a, [&](auto act) {
    each_vector(n, [&](int64_t i, int lanes) {
      store_part(out + i, act(load_part(gate + i, lanes)) * load_part(up + i, lanes), lanes);
    });
  });
}

static void activate(Activation a, const float* x, int64_t n, float* out) {
  with_activation(a, [&](auto act) { map_row(x, n, out, act); });
}

static void add_rows(const float* a, const float* b, int64_t n, float* out) {
  each_vector(n, [&](int64_t i, int lanes) {
    store_part(out + i, load_part(a + i, lanes) + load_part(b + i, lanes), lanes);
  });
}

static void multiply_rows(const float* a, const float* b, int64_t n, float* out) {
  each_vector(n, [&](int64_t i, int lanes) {
    store_part(out + i, load_part(a + i, lanes) * load_part(b + i, lanes), lanes);
  });
}

static void clamp_row(const float* x, float low, float high, int64_t n, float* out) {
  const F32x16 least = broadcast(low), most = broadcast(high);
  map_row(x, n, out, [&](const F32x16& v) { return min(most, max(least, v)); });
}

static void xielu_row(const float* x, float negative, float positive, float beta, float eps,
                      int64_t n, float* out) {
  const F32x16 a = broadcast(negative), b = broadcast(positive), most = broadcast(eps);
  map_row(x, n, out, [&](const F32x16& v) {
    const F32x16 below = ((exp(min(most, v)) - broadcast(1.0f)) - v) * a;
    const F32x16 above = (v * v) * b;
    return fma(broadcast(beta), v, select_lt(zero16(), v, above, below));
  });
}

static void scale_row(const float* x, float factor, int64_t n, float* out) {
  const F32x16 f = broadcast(factor);
  map_row(x, n, out, [&](const F32x16& v) { return v * f; });
}

static void softcap_row(const float* x, float cap, int64_t n, float* out) {
  const F32x16 c = broadcast(cap);
  map_row(x, n, out, [&](const F32x16& v) { return c * tanh(v / c); });
}

static void rope(const float* x, const float* cos, const float* sin, int64_t half,
                 int64_t head_dim, bool interleaved, float* out) {
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = a * cos[i] - b * sin[i];
      out[2 * i + 1] = a * sin[i] + b * cos[i];
    }
  } else {
    each_vector(half, [&](int64_t i, int lanes) {
      const F32x16 a = load_part(x + i, lanes), b = load_part(x + half + i, lanes);
      const F32x16 c = load_part(cos + i, lanes), s = load_part(sin + i, lanes);
      store_part(out + i, a * c - b * s, lanes);
      store_part(out + half + i, a * s + b * c, lanes);
    });
  }
  if (out != x) {
    for (int64_t i = 2 * half; i < head_dim; ++i) out[i] = x[i];
  }
}

static void short_conv(const float* const* rows, const float* weight, const float* bias,
                       int64_t stride, int64_t taps, int64_t n, float* out) {
  each_vector(n, [&](int64_t i, int lanes) {
    F32x16 sum = bias == nullptr ? zero16() : load_part(bias + i, lanes);
    for (int64_t j = 0; j < taps; ++j)
      sum = fma(load_part(weight + j * stride + i, lanes), load_part(rows[j] + i, lanes), sum);
    store_part(out + i, sum, lanes);
  });
}

}  // namespace strata::STRATA_ISA
