// Formats whose values are chosen some at a time from a grid: IQ1 to IQ3. One row after the other;
// scales are searched with the grid points that each candidate chooses. Layouts: the numpy decoders.
#pragma once
#include <initializer_list>

#include "quant/codebook_tables.h"
#include "quant/lanes.h"

namespace strata::STRATA_ENCODE_ISA {

typedef float Eight __attribute__((vector_size(32)));

static inline float sum_of(Eight v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// What a block stores beside its scale: of each eight values.
struct Chosen {
  uint16_t index[64];
  uint8_t signs[32];    // a bit set: negative; IQ1: 1 where the shift is downwards
  int whole[16];
  float d;
  float a[16];          // as a reader has them
};

enum class SignBits { none, even, free };

// The grid points nearest to |v| (or v) in the weighted sense; gives the values, without a scale.
template <class T>
static inline Eight choose_eight(const Codebook& book, Eight v, Eight w, Chosen& c, int group,
                                 int fixed_shift) {
  constexpr int kParts = 8 / T::dims;
  if constexpr (T::signs == SignBits::none) {
    Eight best{};
    float least = 0;
    for (int down = 0; down < 2; ++down) {
      if (fixed_shift >= 0 && down != fixed_shift) continue;
      const Eight moved = v - (down ? -0.125f : 0.125f);
      size_t place = 0, power = 1;
      for (int i = 0; i < 8; ++i, power *= 3) {
        place += power * (moved[i] < -0.5f ? 0 : moved[i] > 0.5f ? 2 : 1);
      }
      const uint16_t* near = book.near.data() + place * kNear;
      for (int n = 0; n < kNear; ++n) {
        Eight point;
        std::memcpy(&point, book.points.data() + 8 * near[n], sizeof point);
        const Eight gap = moved - point;
        const float error = sum_of(gap * gap * w);
        if ((n == 0 && (down == 0 || fixed_shift >= 0)) || error < least) {
          least = error;
          best = point + (down ? -0.125f : 0.125f);
          c.index[group] = near[n];
          c.signs[group] = static_cast<uint8_t>(down);
        }
      }
    }
    return best;
  } else {
    int bits = 0;
    Eight m = v;
    for (int i = 0; i < 8; ++i) {
      if (v[i] < 0) {
        bits |= 1 << i;
        m[i] = -v[i];
      }
    }
    if (T::signs == SignBits::even && (std::popcount(static_cast<unsigned>(bits)) & 1)) {
      // One sign has to be wrong: that of the value which costs least.
      int least = 0;
      for (int i = 1; i < 8; ++i) {
        if (w[i] * m[i] * (m[i] + book.levels[0]) < w[least] * m[least] * (m[least] + book.levels[0])) least = i;
      }
      bits ^= 1 << least;
      m[least] = -m[least];
    }
    c.signs[group] = static_cast<uint8_t>(bits);
    Eight best{};
    const int levels = static_cast<int>(book.levels.size());
    for (int part = 0; part < kParts; ++part) {
      size_t place = 0, power = 1;
      for (int i = 0; i < T::dims; ++i, power *= static_cast<size_t>(levels)) {
        int level = 0;
        const float value = m[part * T::dims + i];
        while (level + 1 < levels && value > 0.5f * (book.levels[level] + book.levels[level + 1])) ++level;
        place += power * static_cast<size_t>(level);
      }
      const uint16_t* near = book.near.data() + place * kNear;
      float least = 0;
      Eight mine = m, weight = w;
      if (T::dims == 4 && part == 1) {
        mine = Eight{m[4], m[5], m[6], m[7], 0, 0, 0, 0};
        weight = Eight{w[4], w[5], w[6], w[7], 0, 0, 0, 0};
      } else if (T::dims == 4) {
        weight = Eight{w[0], w[1], w[2], w[3], 0, 0, 0, 0};
      }
      uint16_t found = near[0];
      for (int n = 0; n < kNear; ++n) {
        Eight point{};
        std::memcpy(&point, book.points.data() + T::dims * near[n], sizeof(float) * T::dims);
        const Eight gap = mine - point;
        const float error = sum_of(gap * gap * weight);
        if (n == 0 || error < least) {
          least = error;
          found = near[n];
        }
      }
      c.index[group * kParts + part] = found;
      for (int i = 0; i < T::dims; ++i) {
        best[part * T::dims + i] = book.points[static_cast<size_t>(found) * T::dims + i];
      }
    }
    for (int i = 0; i < 8; ++i) {
      if (bits >> i & 1) best[i] = -best[i];
    }
    return best;
  }
}

template <class T>
static inline Eight choose_scaled(const Codebook& book, const float* x, const float* w, float scale,
                                  Chosen& c, int group, int fixed_shift) {
  Eight v, weight;
  std::memcpy(&v, x, sizeof v);
  std::memcpy(&weight, w, sizeof weight);
  if (!(scale > 0)) return choose_eight<T>(book, Eight{}, weight, c, group, fixed_shift);
  return choose_eight<T>(book, v * (1.0f / scale), weight, c, group, fixed_shift);
}

// Scales and shifts of one block.
template <class T>
static void fit_chosen(const Codebook& book, const float* x, const float* w, Chosen& c) {
  constexpr int kParts = 256 / T::width, kGroups = T::width / 8;
  float wanted[kParts], most = 0;
  int shift[kParts];
  const auto project = [&](int p, float scale, int fixed, float& num, float& den) {
    Eight n{}, d{};
    for (int g = p * kGroups; g < (p + 1) * kGroups; ++g) {
      const Eight level = choose_scaled<T>(book, x + 8 * g, w + 8 * g, scale, c, g, fixed);
      Eight v, weight;
      std::memcpy(&v, x + 8 * g, sizeof v);
      std::memcpy(&weight, w + 8 * g, sizeof weight);
      n += weight * level * v;
      d += weight * level * level;
    }
    num = sum_of(n);
    den = sum_of(d);
  };
  for (int p = 0; p < kParts; ++p) {
    float largest = 0;
    for (int j = p * T::width; j < (p + 1) * T::width; ++j) largest = std::max(largest, std::fabs(x[j]));
    float best = 0;
    wanted[p] = 0;
    shift[p] = T::shared_shift ? 0 : -1;
    if (largest > 0) {
      const auto attempt = [&](float scale, int fixed) {
        float num, den;
        project(p, scale, fixed, num, den);
        if (num > 0 && den > 0 && num * num / den > best) {
          best = num * num / den;
          wanted[p] = num / den;
          shift[p] = fixed;
        }
      };
      for (int down = 0; down < (T::shared_shift ? 2 : 1); ++down) {
        for (float share : T::reach) attempt(share * largest / T::end, T::shared_shift ? down : -1);
      }
      for (int turn = 0; turn < 2; ++turn) attempt(wanted[p], shift[p]);
    }
    most = std::max(most, wanted[p]);
  }
  float unit = most / (2 * T::top + 1);   // a = (2 * whole + 1) * unit, unit = d * T::share
  const auto stored_unit = [&](float u) {
    return half_to_float(float_to_half(std::min(u / T::share, 65504.0f))) * T::share;
  };
  unit = stored_unit(unit);
  const auto error_of = [&](int p, int whole) {
    const float a = static_cast<float>(2 * whole + 1) * unit;
    Eight sum{};
    for (int g = p * kGroups; g < (p + 1) * kGroups; ++g) {
      const Eight level = choose_scaled<T>(book, x + 8 * g, w + 8 * g, a, c, g, shift[p]);
      Eight v, weight;
      std::memcpy(&v, x + 8 * g, sizeof v);
      std::memcpy(&weight, w + 8 * g, sizeof weight);
      const Eight gap = v - level * a;
      sum += gap * gap * weight;
    }
    return sum_of(sum);
  };
  for (int p = 0; p < kParts; ++p) {
    const float t = unit > 0 ? 0.5f * (wanted[p] / unit - 1) + 0.5f : 0;
    c.whole[p] = static_cast<int>(std::min(std::max(t, 0.0f), static_cast<float>(T::top)));
  }
  for (int turn = 0; turn < 2; ++turn) {
    float num = 0, den = 0;
    for (int p = 0; p < kParts; ++p) {
      const float step = static_cast<float>(2 * c.whole[p] + 1);
      float n, d;
      project(p, step * unit, shift[p], n, d);
      num += n * step;
      den += d * step * step;
    }
    if (num > 0 && den > 0) unit = stored_unit(num / den);
    for (int p = 0; p < kParts; ++p) {
      float least = error_of(p, c.whole[p]);
      const int middle = c.whole[p];
      for (int whole : {middle - 1, middle + 1}) {
        if (whole < 0 || whole > T::top) continue;
        const float error = error_of(p, whole);
        if (error < least) {
          least = error;
          c.whole[p] = whole;
        }
      }
    }
  }
  c.d = unit / T::share;
  for (int p = 0; p < kParts; ++p) {
    c.a[p] = static_cast<float>(2 * c.whole[p] + 1) * unit;
    if (T::shared_shift) {
      for (int g = p * kGroups; g < (p + 1) * kGroups; ++g) c.signs[g] = static_cast<uint8_t>(shift[p]);
    }
  }
}

template <Format kFormat, int kBytes, int kDims, int kWidth, int kTop, SignBits kSigns>
struct FromGrid {
  static constexpr Format format = kFormat;
  static constexpr int elements = 256, bytes = kBytes, dims = kDims, width = kWidth, top = kTop;
  static constexpr SignBits signs = kSigns;
  static constexpr bool shared_shift = false;
};

static inline void put_f16(uint8_t* out, float v) {
  const uint16_t bits = float_to_half(v);
  std::memcpy(out, &bits, 2);
}
template <class U> static inline void put_le(uint8_t* out, U v) { std::memcpy(out, &v, sizeof v); }

struct IQ2_XXS : FromGrid<Format::IQ2_XXS, 66, 8, 32, 15, SignBits::even> {
  static constexpr float end = 43, share = 0.125f;
  static constexpr float reach[7] = {0.55f, 0.65f, 0.75f, 0.85f, 0.97f, 1.1f, 1.3f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int s = 0; s < 8; ++s) {
      uint32_t word = static_cast<uint32_t>(c.whole[s]) << 28;
      for (int i = 0; i < 4; ++i) {
        out[2 + 8 * s + i] = static_cast<uint8_t>(c.index[4 * s + i]);
        word |= static_cast<uint32_t>(c.signs[4 * s + i] & 127) << 7 * i;
      }
      put_le(out + 6 + 8 * s, word);
    }
  }
};
struct IQ2_XS : FromGrid<Format::IQ2_XS, 74, 8, 16, 15, SignBits::even> {
  static constexpr float end = 43, share = 0.125f;
  static constexpr float reach[6] = {0.6f, 0.7f, 0.8f, 0.92f, 1.05f, 1.25f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int g = 0; g < 32; ++g) {
      put_le(out + 2 + 2 * g, static_cast<uint16_t>(c.index[g] | (c.signs[g] & 127) << 9));
    }
    for (int p = 0; p < 8; ++p) out[66 + p] = static_cast<uint8_t>(c.whole[2 * p] | c.whole[2 * p + 1] << 4);
  }
};
struct IQ2_S : FromGrid<Format::IQ2_S, 82, 8, 16, 15, SignBits::free> {
  static constexpr float end = 43, share = 0.125f;
  static constexpr float reach[6] = {0.6f, 0.7f, 0.8f, 0.92f, 1.05f, 1.25f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int g = 0; g < 32; ++g) {
      out[2 + g] = static_cast<uint8_t>(c.index[g]);
      out[34 + g] = c.signs[g];
    }
    for (int p = 0; p < 8; ++p) {
      int high = 0;
      for (int i = 0; i < 4; ++i) high |= (c.index[4 * p + i] >> 8) << 2 * i;
      out[66 + p] = static_cast<uint8_t>(high);
      out[74 + p] = static_cast<uint8_t>(c.whole[2 * p] | c.whole[2 * p + 1] << 4);
    }
  }
};
struct IQ3_XXS : FromGrid<Format::IQ3_XXS, 98, 4, 32, 15, SignBits::even> {
  static constexpr float end = 62, share = 0.25f;
  static constexpr float reach[6] = {0.7f, 0.8f, 0.88f, 0.96f, 1.05f, 1.2f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int i = 0; i < 64; ++i) out[2 + i] = static_cast<uint8_t>(c.index[i]);
    for (int s = 0; s < 8; ++s) {
      uint32_t word = static_cast<uint32_t>(c.whole[s]) << 28;
      for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(c.signs[4 * s + i] & 127) << 7 * i;
      put_le(out + 66 + 4 * s, word);
    }
  }
};
struct IQ3_S : FromGrid<Format::IQ3_S, 110, 4, 32, 15, SignBits::free> {
  static constexpr float end = 15, share = 1;
  static constexpr float reach[6] = {0.7f, 0.8f, 0.88f, 0.96f, 1.05f, 1.2f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int i = 0; i < 64; ++i) out[2 + i] = static_cast<uint8_t>(c.index[i]);
    for (int b = 0; b < 8; ++b) {
      int high = 0;
      for (int i = 0; i < 8; ++i) high |= (c.index[8 * b + i] >> 8) << i;
      out[66 + b] = static_cast<uint8_t>(high);
    }
    for (int g = 0; g < 32; ++g) out[74 + g] = c.signs[g];
    for (int p = 0; p < 4; ++p) out[106 + p] = static_cast<uint8_t>(c.whole[2 * p] | c.whole[2 * p + 1] << 4);
  }
};
struct IQ1_S : FromGrid<Format::IQ1_S, 50, 8, 32, 7, SignBits::none> {
  static constexpr bool shared_shift = true;
  static constexpr float end = 1, share = 1;
  static constexpr float reach[6] = {0.25f, 0.33f, 0.42f, 0.52f, 0.65f, 0.85f};
  static void pack(const Chosen& c, uint8_t* out) {
    put_f16(out, c.d);
    for (int g = 0; g < 32; ++g) out[2 + g] = static_cast<uint8_t>(c.index[g]);
    for (int s = 0; s < 8; ++s) {
      int word = c.whole[s] << 12 | (c.signs[4 * s] ? 0x8000 : 0);
      for (int i = 0; i < 4; ++i) word |= (c.index[4 * s + i] >> 8) << 3 * i;
      put_le(out + 34 + 2 * s, static_cast<uint16_t>(word));
    }
  }
};
struct IQ1_M : FromGrid<Format::IQ1_M, 56, 8, 16, 7, SignBits::none> {
  static constexpr float end = 1, share = 1;
  static constexpr float reach[6] = {0.3f, 0.38f, 0.47f, 0.58f, 0.72f, 0.9f};
  static void pack(const Chosen& c, uint8_t* out) {
    const uint16_t d = float_to_half(c.d);
    for (int g = 0; g < 32; ++g) out[g] = static_cast<uint8_t>(c.index[g]);
    for (int b = 0; b < 16; ++b) {
      int byte = 0;
      for (int i = 0; i < 2; ++i) {
        byte |= ((c.index[2 * b + i] >> 8) | (c.signs[2 * b + i] ? 8 : 0)) << 4 * i;
      }
      out[32 + b] = static_cast<uint8_t>(byte);
    }
    for (int s = 0; s < 4; ++s) {
      int word = (d >> 4 * s & 15) << 12;
      for (int i = 0; i < 4; ++i) word |= c.whole[4 * s + i] << 3 * i;
      put_le(out + 48 + 2 * s, static_cast<uint16_t>(word));
    }
  }
};

}  // namespace strata::STRATA_ENCODE_ISA
