// Formats whose values are rounded one by one. Each type says how many elements a block has, how wide
// the parts are that share a scale, fits the scales of 16 blocks at once, and packs one of them.
// Layouts: the numpy decoders of strata.quant.
#pragma once
#include <cmath>

#include "quant/fits.h"

namespace strata::STRATA_ENCODE_ISA {

// Scales of a block as they are stored, and as a reader has them: value = a * level + b.
struct Scales {
  Lanes a[16], b[16];
  Lanes d, m;
  Lanes whole[16], low[16];   // quantised scales and minima
};

static inline void put_half(uint8_t* out, float v) {
  const uint16_t bits = float_to_half(v);
  std::memcpy(out, &bits, 2);
}
// Fields of `bits` bits: the first `group` of each byte group take the lowest bits.
static inline void put_fields(const uint8_t* codes, int n, int bits, int group, int shift,
                              uint8_t* out) {
  const int each = 8 / bits, mask = (1 << bits) - 1;
  for (int base = 0; base < n; base += each * group) {
    for (int i = 0; i < group; ++i) {
      int byte = 0;
      for (int f = 0; f < each; ++f) {
        byte |= (codes[base + f * group + i] >> shift & mask) << f * bits;
      }
      *out++ = static_cast<uint8_t>(byte);
    }
  }
}

// One half-precision scale a block.
template <class CodeT, int kElements, int kReaches>
struct OneScale {
  using Code = CodeT;
  static constexpr int elements = kElements, width = kElements;
  static void fit_with(const Lanes* x, const float* w, const float (&reach)[kReaches], Scales& s) {
    s.d = through_half(fit_scale<Code>(x, w, kElements, reach, 2));
    s.a[0] = s.d;
    s.b[0] = Lanes{};
  }
};

struct Q4_0 : OneScale<Uniform<-8, 7>, 32, 7> {
  static constexpr int bytes = 18;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.7f, 0.78f, 0.86f, 0.92f, 0.97f, 1.02f, 1.07f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_fields(q, 32, 4, 16, 0, out + 2);
  }
};
struct Q5_0 : OneScale<Uniform<-16, 15>, 32, 7> {
  static constexpr int bytes = 22;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.8f, 0.86f, 0.9f, 0.94f, 0.97f, 1.0f, 1.03f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_fields(q, 32, 1, 1, 4, out + 2);
    put_fields(q, 32, 4, 16, 0, out + 6);
  }
};
struct Q8_0 : OneScale<Uniform<-127, 127>, 32, 3> {
  static constexpr int bytes = 34;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.985f, 0.995f, 1.0f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    for (int j = 0; j < 32; ++j) out[2 + j] = static_cast<uint8_t>(q[j] - 127);
  }
};
struct IQ4_NL : OneScale<Levels<Iq4Table>, 32, 6> {
  static constexpr int bytes = 18;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.68f, 0.77f, 0.85f, 0.92f, 0.98f, 1.04f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_fields(q, 32, 4, 16, 0, out + 2);
  }
};
struct Q2_0 : OneScale<Uniform<-1, 2>, 64, 6> {
  static constexpr int bytes = 18;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.4f, 0.5f, 0.62f, 0.75f, 0.9f, 1.1f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_fields(q, 64, 2, 1, 0, out + 2);
  }
};
template <int kBytes>
struct Ternary : OneScale<Uniform<-1, 1>, 256, 6> {
  static constexpr int bytes = kBytes;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.7f, 1.0f, 1.4f, 1.9f, 2.5f, 3.3f}, s);
  }
};
struct TQ2_0 : Ternary<66> {
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_fields(q, 256, 2, 32, 0, out);
    put_half(out + 64, s.d[lane]);
  }
};
struct TQ1_0 : Ternary<54> {
  // Five base-3 digits are a fraction of 256, rounded up so that reading gets them back.
  static uint8_t digits(const uint8_t* q, int stride, int count) {
    int number = 0;
    for (int i = 0; i < 5; ++i) number = 3 * number + (i < count ? q[i * stride] : 0);
    return static_cast<uint8_t>((number * 256 + 242) / 243);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    for (int i = 0; i < 32; ++i) out[i] = digits(q + i, 32, 5);
    for (int i = 0; i < 16; ++i) out[32 + i] = digits(q + 160 + i, 16, 5);
    for (int i = 0; i < 4; ++i) out[48 + i] = digits(q + 240 + i, 4, 4);
    put_half(out + 52, s.d[lane]);
  }
};
// Two levels, -d and d.
struct Signs {
  static Lanes level(Lanes t) { return pick(t >= 0.0f, all(1.0f), all(-1.0f)); }
  static Bytes codes(Lanes levels) { return __builtin_convertvector((levels > 0.0f) & 1, Bytes); }
};
struct Q1_0 {
  using Code = Signs;
  static constexpr int elements = 128, width = 128, bytes = 18;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    Lanes sum = Lanes{};
    float all_w = 0;
    for (int j = 0; j < 128; ++j) {
      sum += magnitude(x[j]) * w[j];
      all_w += w[j];
    }
    s.d = through_half(over(sum, all(all_w)));
    s.a[0] = s.d;
    s.b[0] = Lanes{};
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_fields(q, 128, 1, 1, 0, out + 2);
  }
};

// A scale and a minimum in half precision.
template <int kTop, int kBytes>
struct OneLine {
  using Code = Uniform<0, kTop>;
  static constexpr int elements = 32, width = 32, bytes = kBytes;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    const Line line = fit_line<kTop, false>(
        x, w, 32, {0.8f, 0.87f, 0.92f, 0.96f, 1.0f, 1.03f}, 2);
    s.d = s.a[0] = through_half(line.scale);
    s.m = s.b[0] = through_half(line.shift);
  }
};
struct Q4_1 : OneLine<15, 20> {
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_half(out + 2, s.m[lane]);
    put_fields(q, 32, 4, 16, 0, out + 4);
  }
};
struct Q5_1 : OneLine<31, 24> {
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_half(out, s.d[lane]);
    put_half(out + 2, s.m[lane]);
    put_fields(q, 32, 1, 1, 4, out + 4);
    put_fields(q, 32, 4, 16, 0, out + 8);
  }
};

// Scales that can only be few numbers: each of a list is tried as it will be read.
struct MXFP4 {
  using Code = Levels<Fp4Table>;
  static constexpr int elements = 32, width = 32, bytes = 17;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    const Lanes largest = magnitude(extreme(x, 32));
    Lanes best = Lanes{};
    for (int step = 0; step < 4; ++step) {
      Lanes e, a;
      for (int l = 0; l < kLanes; ++l) {
        // The exponent that puts the largest value between 4 and 8, doubled, and its neighbours.
        const int bits = static_cast<int>(std::bit_cast<uint32_t>(largest[l]) >> 23);
        const int stored = largest[l] == 0 ? 0 : bits - 2 + (step - 1);
        const int kept = stored < 2 ? 2 : stored > 254 ? 254 : stored;   // 1 / a is finite
        e[l] = static_cast<float>(kept);
        a[l] = e8m0_half(static_cast<uint8_t>(kept));
      }
      const Lanes error = error_under<Code>(x, w, 32, a, Lanes{});
      const Mask better = step == 0 ? Mask{} == 0 : error < best;
      best = pick(better, error, best);
      s.d = pick(better, e, s.d);
      s.a[0] = pick(better, a, s.a[0]);
    }
    s.b[0] = Lanes{};
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    out[0] = static_cast<uint8_t>(s.d[lane]);
    put_fields(q, 32, 4, 16, 0, out + 1);
  }
};
// The unsigned E4M3 nearest to twice v.
static inline int to_ue4m3(float v) {
  v *= 2;
  int best = 0;
  for (int code = 0, step = 64; step > 0; step /= 2) {
    if (code + step <= 126 && e4m3_to_float(static_cast<uint8_t>(code + step)) <= v) code += step;
    best = code;
  }
  if (best >= 126) return 126;
  const float below = e4m3_to_float(static_cast<uint8_t>(best));
  const float above = e4m3_to_float(static_cast<uint8_t>(best + 1));
  return v - below > above - v ? best + 1 : best;
}
struct NVFP4 {
  using Code = Levels<Fp4Table>;
  static constexpr int elements = 64, width = 16, bytes = 36;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    for (int part = 0; part < 4; ++part) {
      const Lanes largest = magnitude(extreme(x + 16 * part, 16));
      Lanes best = Lanes{};
      bool first = true;
      for (float share : {1.0f, 0.9f, 0.8f, 0.7f, 1.1f, 1.25f, 1.5f}) {
        Lanes code, a;
        for (int l = 0; l < kLanes; ++l) {
          const int stored = to_ue4m3(largest[l] * share / 12);
          code[l] = static_cast<float>(stored);
          a[l] = 0.5f * e4m3_to_float(static_cast<uint8_t>(stored));
        }
        const Lanes error = error_under<Code>(x + 16 * part, w + 16 * part, 16, a, Lanes{});
        const Mask better = first ? Mask{} == 0 : error < best;
        best = pick(better, error, best);
        s.whole[part] = pick(better, code, s.whole[part]);
        s.a[part] = pick(better, a, s.a[part]);
        s.b[part] = Lanes{};
        first = false;
      }
    }
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    for (int p = 0; p < 4; ++p) out[p] = static_cast<uint8_t>(s.whole[p][lane]);
    put_fields(q, 64, 4, 8, 0, out + 4);
  }
};

// d times whole scales kLow .. kHigh over parts of `kWidth`.
template <class CodeT, int kWidth, int kLow, int kHigh, int kReaches>
struct ManyScales {
  using Code = CodeT;
  static constexpr int elements = 256, width = kWidth, parts = 256 / kWidth;
  static void fit_with(const Lanes* x, const float* w, const float (&reach)[kReaches], Scales& s) {
    Lanes wanted[parts];
    for (int p = 0; p < parts; ++p) {
      wanted[p] = fit_scale<Code>(x + p * kWidth, w + p * kWidth, kWidth, reach, 2);
    }
    s.d = through_half(extreme(wanted, parts) * (1.0f / kLow));
    for (int p = 0; p < parts; ++p) s.whole[p] = stored(over(wanted[p], s.d));
    for (int turn = 0; turn < 2; ++turn) {
      Lanes num = Lanes{}, den = Lanes{};
      for (int p = 0; p < parts; ++p) {
        const Lanes a = s.d * s.whole[p];
        Lanes part_num, part_den;
        project<Code>(x + p * kWidth, w + p * kWidth, kWidth, over(all(1.0f), a), part_num,
                      part_den);
        num += part_num * s.whole[p];
        den += part_den * s.whole[p] * s.whole[p];
      }
      const Lanes d = through_half(over(num, den));
      s.d = pick(d == 0.0f, s.d, d);
      for (int p = 0; p < parts; ++p) choose(x + p * kWidth, w + p * kWidth, s, p);
    }
    for (int p = 0; p < parts; ++p) {
      s.a[p] = s.d * s.whole[p];
      s.b[p] = Lanes{};
    }
  }
  static Lanes stored(Lanes v) { return nearest_whole(between(v, kLow, kHigh)); }
  // The whole scale that is best under d, of those around the one that is there.
  static void choose(const Lanes* x, const float* w, Scales& s, int p) {
    const Lanes middle = s.whole[p];
    Lanes best = error_under<Code>(x, w, kWidth, s.d * middle, Lanes{});
    for (float step : {-1.0f, 1.0f, -2.0f, 2.0f}) {
      const Lanes whole = between(middle + step, kLow, kHigh);
      const Lanes error = error_under<Code>(x, w, kWidth, s.d * whole, Lanes{});
      const Mask better = error < best;
      best = pick(better, error, best);
      s.whole[p] = pick(better, whole, s.whole[p]);
    }
  }
};
struct Q3_K : ManyScales<Uniform<-4, 3>, 16, -32, 31, 7> {
  static constexpr int bytes = 110;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.6f, 0.7f, 0.78f, 0.86f, 0.93f, 1.0f, 1.08f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    uint8_t scales[16];
    for (int p = 0; p < 16; ++p) scales[p] = static_cast<uint8_t>(s.whole[p][lane] + 32);
    put_fields(q, 256, 1, 32, 2, out);
    put_fields(q, 256, 2, 32, 0, out + 32);
    put_fields(scales, 16, 4, 8, 0, out + 96);
    put_fields(scales, 16, 2, 4, 4, out + 104);
    put_half(out + 108, s.d[lane]);
  }
};
struct Q6_K : ManyScales<Uniform<-32, 31>, 16, -128, 127, 4> {
  static constexpr int bytes = 210;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.92f, 0.965f, 1.0f, 1.02f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_fields(q, 256, 4, 64, 0, out);
    put_fields(q, 256, 2, 32, 4, out + 128);
    for (int p = 0; p < 16; ++p) {
      out[192 + p] = static_cast<uint8_t>(static_cast<int8_t>(s.whole[p][lane]));
    }
    put_half(out + 208, s.d[lane]);
  }
};
struct IQ4_XS : ManyScales<Levels<Iq4Table>, 32, -32, 31, 6> {
  static constexpr int bytes = 136;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.68f, 0.77f, 0.85f, 0.92f, 0.98f, 1.04f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    uint8_t scales[8];
    for (int p = 0; p < 8; ++p) scales[p] = static_cast<uint8_t>(s.whole[p][lane] + 32);
    put_half(out, s.d[lane]);
    put_fields(scales, 8, 2, 1, 4, out + 2);
    put_fields(scales, 8, 4, 1, 0, out + 4);
    put_fields(q, 256, 4, 16, 0, out + 8);
  }
};

// d times whole scales, less dmin times whole minima, both 0 .. kMost.
template <int kTop, int kWidth, int kMost, int kReaches>
struct ManyLines {
  using Code = Uniform<0, kTop>;
  static constexpr int elements = 256, width = kWidth, parts = 256 / kWidth;
  static void fit_with(const Lanes* x, const float* w, const float (&reach)[kReaches], Scales& s) {
    Line lines[parts];
    Lanes most = Lanes{}, lowest = Lanes{};
    for (int p = 0; p < parts; ++p) {
      lines[p] = fit_line<kTop, true>(x + p * kWidth, w + p * kWidth, kWidth, reach, 2);
      most = greater(most, lines[p].scale);
      lowest = lesser(lowest, lines[p].shift);
    }
    s.d = through_half(most * (1.0f / kMost));
    s.m = through_half(lowest * (-1.0f / kMost));
    for (int p = 0; p < parts; ++p) {
      s.whole[p] = stored(over(lines[p].scale, s.d));
      s.low[p] = stored(over(-lines[p].shift, s.m));
    }
    for (int turn = 0; turn < 2; ++turn) {
      improve(x, w, s);
      for (int p = 0; p < parts; ++p) choose(x + p * kWidth, w + p * kWidth, s, p);
    }
    for (int p = 0; p < parts; ++p) {
      s.a[p] = s.d * s.whole[p];
      s.b[p] = -(s.m * s.low[p]);
    }
  }
  static Lanes stored(Lanes v) { return nearest_whole(between(v, 0, kMost)); }
  // d and dmin that are best for the codes and whole scales that are there.
  static void improve(const Lanes* x, const float* w, Scales& s) {
    Lanes aa = Lanes{}, ab = Lanes{}, bb = Lanes{}, ax = Lanes{}, bx = Lanes{};
    for (int p = 0; p < parts; ++p) {
      const Lanes scale = s.d * s.whole[p], shift = -(s.m * s.low[p]);
      const Lanes inverse = over(all(1.0f), scale);
      for (int j = p * kWidth; j < (p + 1) * kWidth; ++j) {
        const Lanes u = Code::level((x[j] - shift) * inverse) * s.whole[p];
        const Lanes wu = u * w[j], wv = s.low[p] * w[j];
        aa += wu * u;
        ab += wu * s.low[p];
        bb += wv * s.low[p];
        ax += wu * x[j];
        bx += wv * x[j];
      }
    }
    // x ~ d * u - m * v
    const Lanes det = aa * bb - ab * ab;
    const Lanes d = through_half(over(ax * bb - ab * bx, det));
    const Lanes m = through_half(over(ab * ax - aa * bx, det));
    const Mask good = (det > 0.0f) & (d > 0.0f) & (m >= 0.0f);
    const Lanes alone = through_half(over(ax, aa));
    const Mask no_low = (bb == 0.0f) & (alone > 0.0f);
    s.d = pick(good, d, pick(no_low, alone, s.d));
    s.m = pick(good, m, s.m);
  }
  static void choose(const Lanes* x, const float* w, Scales& s, int p) {
    const Lanes scale = s.whole[p], low = s.low[p];
    Lanes best = error_under<Code>(x, w, kWidth, s.d * scale, -(s.m * low));
    for (int step = 0; step < 8; ++step) {
      static constexpr float kScale[8] = {-1, 1, 0, 0, -1, 1, -1, 1};
      static constexpr float kLow[8] = {0, 0, -1, 1, -1, 1, 1, -1};
      const Lanes a = between(scale + kScale[step], 0, kMost);
      const Lanes b = between(low + kLow[step], 0, kMost);
      const Lanes error = error_under<Code>(x, w, kWidth, s.d * a, -(s.m * b));
      const Mask better = error < best;
      best = pick(better, error, best);
      s.whole[p] = pick(better, a, s.whole[p]);
      s.low[p] = pick(better, b, s.low[p]);
    }
  }
};
struct Q2_K : ManyLines<3, 16, 15, 7> {
  static constexpr int bytes = 84;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.55f, 0.65f, 0.74f, 0.82f, 0.9f, 1.0f, 1.1f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    for (int p = 0; p < 16; ++p) {
      out[p] = static_cast<uint8_t>(static_cast<int>(s.whole[p][lane]) |
                                    static_cast<int>(s.low[p][lane]) << 4);
    }
    put_fields(q, 256, 2, 32, 0, out + 16);
    put_half(out + 80, s.d[lane]);
    put_half(out + 82, s.m[lane]);
  }
};
// What Q4_K and Q5_K begin with.
static inline void put_k4_head(const Scales& s, int lane, uint8_t* out) {
  put_half(out, s.d[lane]);
  put_half(out + 2, s.m[lane]);
  int scale[8], low[8];
  for (int p = 0; p < 8; ++p) {
    scale[p] = static_cast<int>(s.whole[p][lane]);
    low[p] = static_cast<int>(s.low[p][lane]);
  }
  for (int p = 0; p < 4; ++p) {
    out[4 + p] = static_cast<uint8_t>(scale[p] | scale[p + 4] >> 4 << 6);
    out[8 + p] = static_cast<uint8_t>(low[p] | low[p + 4] >> 4 << 6);
    out[12 + p] = static_cast<uint8_t>((scale[p + 4] & 15) | (low[p + 4] & 15) << 4);
  }
}
struct Q4_K : ManyLines<15, 32, 63, 6> {
  static constexpr int bytes = 144;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.8f, 0.87f, 0.92f, 0.96f, 1.0f, 1.03f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_k4_head(s, lane, out);
    put_fields(q, 256, 4, 32, 0, out + 16);
  }
};
struct Q5_K : ManyLines<31, 32, 63, 5> {
  static constexpr int bytes = 176;
  static void fit(const Lanes* x, const float* w, Scales& s) {
    fit_with(x, w, {0.88f, 0.93f, 0.97f, 1.0f, 1.02f}, s);
  }
  static void pack(const Scales& s, int lane, const uint8_t* q, uint8_t* out) {
    put_k4_head(s, lane, out);
    put_fields(q, 256, 1, 32, 4, out + 16);
    put_fields(q, 256, 4, 32, 0, out + 48);
  }
};

}  // namespace strata::STRATA_ENCODE_ISA
