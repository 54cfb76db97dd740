// Numbers of the file formats as plain C++: little-endian loads and small floats. For the files
// that run on every processor; the kernels have vectors for these.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace strata {

template <class T> inline T load_le(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if (body >= 0x0f800000u) return std::bit_cast<float>(sign | body | 0x7f800000u);
  // The exponent is 112 too small; multiplying mends it, for subnormal halves as well.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(body) * 0x1p112f));
}
inline float load_half(const uint8_t* p) { return half_to_float(load_le<uint16_t>(p)); }

// 2^(e - 128), the E8M0 scale for values kept doubled; the two smallest are subnormal.
inline float e8m0_half(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

// OCP 8-bit float E4M3: bias 7, no infinities, NaN where all seven bits are set.
inline float e4m3_to_float(uint8_t b) {
  const int exponent = (b >> 3) & 15;
  const int mantissa = b & 7;
  const float power = std::bit_cast<float>((exponent + 117) << 23);   // 2^(exponent - 10)
  float v = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                          : static_cast<float>(8 + mantissa) * power;
  if ((b & 127) == 127) v = std::nanf("");
  return b & 128 ? -v : v;
}

// The E4M3 number whose half a scale of NVFP4 is. ggml reads 0x7f as zero, 0xff as 480, and ignores
// the sign bit of the others.
inline uint8_t nvfp4_byte(uint8_t b) {
  return b == 0x7f ? uint8_t{0} : static_cast<uint8_t>(b & 127);
}
// An E4M3 number without a sign, 480 where all seven bits are set.
inline float e4m3_scale(uint8_t b) { return b == 0x7f ? 480.0f : e4m3_to_float(b); }

}  // namespace strata
