// Sixteen float lanes on every instruction set, and the functions built from them. The bits of a
// lane never depend on its place or on the instruction set (scalar's vfma, rounding twice, apart).
#pragma once

namespace strata::STRATA_ISA {

inline constexpr int kParts = 16 / kWidth;

struct F32x16 { F32v part[kParts]; };
struct I32x16 { I32v part[kParts]; };

template <class F> STRATA_INLINE F32x16 each16(F f) {
  F32x16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.part[i] = f(i);
  return r;
}
// Lanes of part i among the first n of sixteen.
STRATA_INLINE int part_lanes(int n, int i) {
  const int left = n - i * kWidth;
  return left < 0 ? 0 : (left > kWidth ? kWidth : left);
}

STRATA_INLINE F32x16 load(const float* p) { return each16([&](int i) { return vload(p + i * kWidth); }); }
STRATA_INLINE void store(float* p, const F32x16& v) {
  for (int i = 0; i < kParts; ++i) vstore(p + i * kWidth, v.part[i]);
}
STRATA_INLINE void stream(float* p, const F32x16& v) {
  for (int i = 0; i < kParts; ++i) vstream(p + i * kWidth, v.part[i]);
}
// The first n lanes, 0 <= n <= 16; the others read as zero, nothing beyond is touched.
STRATA_INLINE F32x16 load_n(const float* p, int n) {
  return each16([&](int i) { return vload_n(p + i * kWidth, part_lanes(n, i)); });
}
STRATA_INLINE void store_n(float* p, const F32x16& v, int n) {
  for (int i = 0; i < kParts; ++i) vstore_n(p + i * kWidth, v.part[i], part_lanes(n, i));
}
STRATA_INLINE F32x16 broadcast(float x) { return each16([&](int) { return vset(x); }); }
STRATA_INLINE F32x16 zero16() { return each16([&](int) { return vzero(); }); }
STRATA_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vadd(a.part[i], b.part[i]); });
}
STRATA_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vsub(a.part[i], b.part[i]); });
}
STRATA_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vmul(a.part[i], b.part[i]); });
}
STRATA_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vdiv(a.part[i], b.part[i]); });
}
// a * b + c
STRATA_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return each16([&](int i) { return vfma(a.part[i], b.part[i], c.part[i]); });
}
// Where either is NaN the second comes back.
STRATA_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vmax(a.part[i], b.part[i]); });
}
STRATA_INLINE F32x16 min(const F32x16& a, const F32x16& b) {
  return each16([&](int i) { return vmin(a.part[i], b.part[i]); });
}
STRATA_INLINE F32x16 sqrt(const F32x16& a) { return each16([&](int i) { return vsqrt(a.part[i]); }); }
STRATA_INLINE F32x16 abs(const F32x16& a) { return each16([&](int i) { return vabs(a.part[i]); }); }
// a < b ? x : y
STRATA_INLINE F32x16 select_lt(const F32x16& a, const F32x16& b, const F32x16& x, const F32x16& y) {
  return each16([&](int i) { return vselect_lt(a.part[i], b.part[i], x.part[i], y.part[i]); });
}

// float16 and bfloat16 in memory, 16 elements or the first n; stores round to nearest even.
STRATA_INLINE F32v vload_bf16(const uint16_t* p) { return vcast_f32(vshl_i32<16>(vload_u16(p))); }
STRATA_INLINE void vstore_bf16(uint16_t* p, F32v v) {
  const I32v bits = vcast_i32(v);
  const I32v top = vshr_i32(bits, 16);
  const I32v half = vadd_i32(vand_i32(top, vset_i32(1)), vset_i32(0x7fff));
  const I32v rounded = vshr_i32(vadd_i32(bits, half), 16);
  // Rounding could carry a NaN beyond the exponent: it keeps its top half, made quiet.
  const I32v quiet = vor_i32(top, vset_i32(0x40));
  vstore_u16(p, vcast_i32(vselect_lt(vset(-1.0f), vabs(v), vcast_f32(rounded), vcast_f32(quiet))));
}
STRATA_INLINE F32x16 load_f16(const uint16_t* p) {
  return each16([&](int i) { return vload_f16(p + i * kWidth); });
}
STRATA_INLINE F32x16 load_bf16(const uint16_t* p) {
  return each16([&](int i) { return vload_bf16(p + i * kWidth); });
}
STRATA_INLINE void store_f16(uint16_t* p, const F32x16& v) {
  for (int i = 0; i < kParts; ++i) vstore_f16(p + i * kWidth, v.part[i]);
}
STRATA_INLINE void store_bf16(uint16_t* p, const F32x16& v) {
  for (int i = 0; i < kParts; ++i) vstore_bf16(p + i * kWidth, v.part[i]);
}
template <F32x16 (*kLoad)(const uint16_t*)>
STRATA_INLINE F32x16 load_narrow_n(const uint16_t* p, int n) {
  uint16_t t[16] = {};
  __builtin_memcpy(t, p, static_cast<size_t>(n) * 2);
  return kLoad(t);
}
template <void (*kStore)(uint16_t*, const F32x16&)>
STRATA_INLINE void store_narrow_n(uint16_t* p, const F32x16& v, int n) {
  uint16_t t[16];
  kStore(t, v);
  __builtin_memcpy(p, t, static_cast<size_t>(n) * 2);
}
STRATA_INLINE F32x16 load_f16_n(const uint16_t* p, int n) { return load_narrow_n<load_f16>(p, n); }
STRATA_INLINE F32x16 load_bf16_n(const uint16_t* p, int n) { return load_narrow_n<load_bf16>(p, n); }
STRATA_INLINE void store_f16_n(uint16_t* p, const F32x16& v, int n) {
  store_narrow_n<store_f16>(p, v, n);
}
STRATA_INLINE void store_bf16_n(uint16_t* p, const F32x16& v, int n) {
  store_narrow_n<store_bf16>(p, v, n);
}

// Over the lanes in one order on every instruction set: i with i+8, then i+4, i+2, i+1.
STRATA_INLINE float reduce_add(const F32x16& v) {
  if constexpr (kParts == 1) return vreduce_add(v.part[0]);
  else if constexpr (kParts == 2) return vreduce_add(vadd(v.part[0], v.part[1]));
  else return vreduce_add(vadd(vadd(v.part[0], v.part[2]), vadd(v.part[1], v.part[3])));
}
STRATA_INLINE float reduce_max(const F32x16& v) {
  if constexpr (kParts == 1) return vreduce_max(v.part[0]);
  else if constexpr (kParts == 2) return vreduce_max(vmax(v.part[0], v.part[1]));
  else return vreduce_max(vmax(vmax(v.part[0], v.part[2]), vmax(v.part[1], v.part[3])));
}

// e^x within 1.5 ulp: x = n ln 2 + r, a polynomial in r (relative error 2^-26), and 2^n in two
// factors, so that results grow to infinity and shrink through the subnormals on their own.
STRATA_INLINE F32v vexp(F32v x) {
  x = vmin(vset(89.0f), vmax(vset(-104.0f), x));   // NaN passes through both
  const F32v n = vround(vmul(x, vset(1.44269504f)));
  F32v r = vfma(n, vset(-0.693359375f), x);   // nine bits: exact times n
  r = vfma(n, vset(2.12194440e-4f), r);
  F32v p = vset(0.000198992871446535f);
  p = vfma(p, r, vset(0.0013933652080595493f));
  p = vfma(p, r, vset(0.0083332983776927f));
  p = vfma(p, r, vset(0.04166646674275398f));
  p = vfma(p, r, vset(0.1666666716337204f));
  p = vfma(p, r, vset(0.5f));
  p = vadd(vfma(p, vmul(r, r), r), vset(1.0f));
  const I32v i = vcvt_i32(n);
  const I32v half = vsra_i32<1>(i);
  const I32v rest = vsub_i32(i, half);
  const I32v bias = vset_i32(127);
  p = vmul(p, vcast_f32(vshl_i32<23>(vadd_i32(half, bias))));
  return vmul(p, vcast_f32(vshl_i32<23>(vadd_i32(rest, bias))));
}
// tanh within 2 ulp: an odd polynomial below 0.625, through e^2x above.
STRATA_INLINE F32v vtanh(F32v x) {
  const F32v a = vabs(x);
  const F32v z = vmul(x, x);
  F32v p = vset(0.0022957525216042995f);
  p = vfma(p, z, vset(-0.008346904069185257f));
  p = vfma(p, z, vset(0.021769938990473747f));
  p = vfma(p, z, vset(-0.053959403187036514f));
  p = vfma(p, z, vset(0.13333304226398468f));
  p = vfma(p, z, vset(-0.3333333432674408f));
  const F32v small = vfma(vmul(x, z), p, x);
  const F32v e = vexp(vadd(a, a));
  const F32v large = vsub(vset(1.0f), vdiv(vset(2.0f), vadd(e, vset(1.0f))));
  const F32v signed_large = vselect_lt(x, vset(0.0f), vsub(vset(0.0f), large), large);
  return vselect_lt(a, vset(0.625f), small, signed_large);
}
STRATA_INLINE F32x16 exp(const F32x16& x) { return each16([&](int i) { return vexp(x.part[i]); }); }
STRATA_INLINE F32x16 tanh(const F32x16& x) { return each16([&](int i) { return vtanh(x.part[i]); }); }

}  // namespace strata::STRATA_ISA
