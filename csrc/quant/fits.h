// Scales by weighted least squares: candidates around what the extremes of a block suggest, each
// with the scale that is best for its codes, then codes and scales in turn.
#pragma once
#include <initializer_list>

#include "quant/lanes.h"

namespace strata::STRATA_ENCODE_ISA {

// Levels kLow .. kHigh, whole numbers.
template <int kLow, int kHigh>
struct Uniform {
  static constexpr float kEnd = -kLow >= kHigh ? kLow : kHigh;   // of largest magnitude
  static constexpr bool kMirrored = -kLow == kHigh;
  static Lanes level(Lanes t) { return nearest_whole(between(t, kLow, kHigh)); }
  static Bytes codes(Lanes levels) {
    return __builtin_convertvector(__builtin_convertvector(levels, Mask) - kLow, Bytes);
  }
};

// Levels of a table, ascending: the one behind as many middles as lie below.
template <class Table>
struct Levels {
  static constexpr float kEnd = Table::values[0];
  static constexpr bool kMirrored = Table::values[0] == -Table::values[Table::count - 1];
#if defined(__AVX512F__)
  static_assert(Table::count <= 16);
  static Lanes level(Lanes t) {
    alignas(64) static constexpr auto kFilled = [] {
      struct { float middles[16], values[16]; } out{};
      for (int i = 0; i < 16; ++i) {
        const bool last = i + 1 >= Table::count;
        out.middles[i] = last ? HUGE_VALF : 0.5f * (Table::values[i] + Table::values[i + 1]);
        out.values[i] = Table::values[i < Table::count ? i : Table::count - 1];
      }
      return out;
    }();
    const Lanes middles = _mm512_load_ps(kFilled.middles);
    __m512i below = _mm512_setzero_si512();
    for (int step = 8; step > 0; step /= 2) {
      const __m512i at = _mm512_add_epi32(below, _mm512_set1_epi32(step - 1));
      const __mmask16 more = _mm512_cmp_ps_mask(t, _mm512_permutexvar_ps(at, middles), _CMP_GT_OQ);
      below = _mm512_mask_add_epi32(below, more, below, _mm512_set1_epi32(step));
    }
    return _mm512_permutexvar_ps(below, _mm512_load_ps(kFilled.values));
  }
#else
  static Lanes level(Lanes t) {
    Lanes out = all(Table::values[0]);
    for (int i = 1; i < Table::count; ++i) {
      const float middle = 0.5f * (Table::values[i - 1] + Table::values[i]);
      out = pick(t > middle, all(Table::values[i]), out);
    }
    return out;
  }
#endif
  static Bytes codes(Lanes levels) {
    Mask below = Mask{};
    for (int i = 1; i < Table::count; ++i) below -= levels >= all(Table::values[i]);
    Bytes out;
    for (int l = 0; l < kLanes; ++l) out[l] = static_cast<uint8_t>(Table::codes[below[l]]);
    return out;
  }
};

struct Iq4Table {
  static constexpr int count = 16;
  static constexpr float values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1, 13, 25, 38, 53, 69, 89, 113};
  static constexpr int codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};
// E2M1 doubled; minus zero is not used.
struct Fp4Table {
  static constexpr int count = 15;
  static constexpr float values[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
  static constexpr int codes[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
};

// Sums of w * level * x and w * level^2 for the levels nearest to x / scale.
template <class Code>
static inline void project(const Lanes* x, const float* w, int n, Lanes inverse, Lanes& num,
                           Lanes& den) {
  num = Lanes{};
  den = Lanes{};
  for (int j = 0; j < n; ++j) {
    const Lanes level = Code::level(x[j] * inverse);
    const Lanes weighted = level * w[j];
    num += weighted * x[j];
    den += weighted * level;
  }
}

// The scale s of x ~ s * level. `reach` are shares of the levels' end that the extreme value may
// land on; both signs are tried where the levels are not symmetric.
template <class Code, int kReaches>
static inline Lanes fit_scale(const Lanes* x, const float* w, int n, const float (&reach)[kReaches],
                              int turns) {
  const Lanes largest = extreme(x, n);
  Lanes best = Lanes{}, scale = Lanes{}, num, den;
  for (int sign = 0; sign < (Code::kMirrored ? 1 : 2); ++sign) {
    for (float share : reach) {
      project<Code>(x, w, n, over(all(sign ? -share * Code::kEnd : share * Code::kEnd), largest),
                    num, den);
      const Lanes gain = over(num * num, den);
      const Mask better = gain > best;
      best = pick(better, gain, best);
      scale = pick(better, over(num, den), scale);
    }
  }
  for (int turn = 0; turn < turns; ++turn) {
    project<Code>(x, w, n, over(all(1.0f), scale), num, den);
    const Lanes gain = over(num * num, den);
    const Mask better = gain > best;
    best = pick(better, gain, best);
    scale = pick(better, over(num, den), scale);
  }
  return scale;
}

// Weighted error of x ~ scale * level + shift under scales as a reader has them.
template <class Code>
static inline Lanes error_under(const Lanes* x, const float* w, int n, Lanes scale, Lanes shift) {
  const Lanes inverse = over(all(1.0f), scale);
  Lanes sum = Lanes{};
  for (int j = 0; j < n; ++j) {
    const Lanes gap = x[j] - (Code::level((x[j] - shift) * inverse) * scale + shift);
    sum += gap * gap * w[j];
  }
  return sum;
}

struct Line {
  Lanes scale, shift;
};

// scale and shift of x ~ scale * level + shift, levels 0 .. kTop. With kBelow the shift is at most 0,
// as formats want it that store a minimum to subtract.
template <int kTop, bool kBelow, int kReaches>
static inline Line fit_line(const Lanes* x, const float* w, int n, const float (&reach)[kReaches],
                            int turns) {
  using Code = Uniform<0, kTop>;
  Lanes low = x[0], high = x[0], sum_w = Lanes{}, sum_x = Lanes{};
  for (int j = 0; j < n; ++j) {
    low = lesser(low, x[j]);
    high = greater(high, x[j]);
    sum_w += w[j];
    sum_x += x[j] * w[j];
  }
  if (kBelow) {
    low = lesser(low, Lanes{});
    high = greater(high, Lanes{});
  }
  const Lanes span = high - low;
  Line line = {Lanes{}, kBelow ? Lanes{} : over(sum_x, sum_w)};
  Lanes best = line.shift * sum_x;
  const auto attempt = [&](Lanes scale, Lanes shift) {
    const Lanes inverse = over(all(1.0f), scale);
    Lanes q1 = Lanes{}, q2 = Lanes{}, qx = Lanes{};
    for (int j = 0; j < n; ++j) {
      const Lanes level = Code::level((x[j] - shift) * inverse);
      const Lanes weighted = level * w[j];
      q1 += weighted;
      q2 += weighted * level;
      qx += weighted * x[j];
    }
    const Lanes det = sum_w * q2 - q1 * q1;
    Lanes a = over(sum_w * qx - sum_x * q1, det), b = over(q2 * sum_x - q1 * qx, det);
    if (kBelow) {
      const Mask above = b > 0.0f;
      a = pick(above, over(qx, q2), a);
      b = pick(above, Lanes{}, b);
    }
    const Lanes gain = a * qx + b * sum_x;
    const Mask better = (gain > best) & (a > 0.0f) & (det > 0.0f);
    best = pick(better, gain, best);
    line.scale = pick(better, a, line.scale);
    line.shift = pick(better, b, line.shift);
  };
  for (float share : reach) {
    attempt(span * (share / kTop), low + span * (0.5f - 0.5f * share));
  }
  for (int turn = 0; turn < turns; ++turn) attempt(line.scale, line.shift);
  return line;
}

}  // namespace strata::STRATA_ENCODE_ISA
