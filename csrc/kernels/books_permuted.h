// Codebooks in vector registers (AVX-512 with VBMI and GFNI): bytes of 64 indices at once are looked
// up in tables of 128 bytes. An entry has a byte for each half of its elements, fields of two or
// four bits (Book::fields), which become codes by a second permutation.
#pragma once
#include "kernels/decode.h"
#include "kernels/layout.h"

namespace strata::STRATA_ISA {

struct ByteVector { alignas(64) uint8_t v[64]; };
template <class F> constexpr ByteVector byte_vector(F f) {
  ByteVector b{};
  for (int i = 0; i < 64; ++i) b.v[i] = static_cast<uint8_t>(f(i));
  return b;
}
// In units of four bytes: which row of a pair of rows (64 bits), and which byte of the row.
constexpr int pair_bit(int i) { return i / 4 % 2 * 32; }

template <Format kFormat> struct Permuted {
  static constexpr BookLayout kL = book_layout(kFormat);
  static constexpr int kIndices = 8 / kL.entry;   // vectors of indices in 32 elements
  static constexpr int kTables = kL.tables;
  static constexpr bool kEighths = kFormat == Format::IQ1_S || kFormat == Format::IQ1_M;
  static constexpr bool kEven = kFormat == Format::IQ2_XXS || kFormat == Format::IQ3_XXS;
  // Vectors that are looked up together: a table that is read serves all.
  static constexpr int kTogether = 4;

  // Both halves of the entries of 64 indices; of entries of four elements their words, two groups
  // of four elements each.
  alignas(64) uint8_t fields[8 * kIndices][2][64];

  static constexpr BookValues kNumbers = book_values(kFormat);
  static constexpr ByteVector kValues =
      byte_vector([](int i) { return kNumbers.v[kL.entry == 8 ? i % 4 : i % 16]; });

  STRATA_INLINE __m512i constant(const ByteVector& b) { return _mm512_load_si512(b.v); }

  // Four bits at a time (`step` of them from one to the next) of a number a lane, one place up.
  template <int kStep, int kFrom>
  STRATA_INLINE __m512i spread(__m512i lanes) {
    static constexpr ByteVector places =
        byte_vector([](int i) { return (pair_bit(i) + kFrom + kStep * (i % 4) + 63) % 64; });
    return _mm512_multishift_epi64_epi8(constant(places), lanes);
  }

  // Bits from the eighth on of the indices in `low`, one place up.
  STRATA_INLINE __m512i high_bits(const uint8_t* block, int sub, int vector) {
    const uint8_t* high = block + kL.high_at() + 2 * kL.high_bytes * sub;
    if constexpr (kFormat == Format::IQ1_S) {
      return spread<3, 0>(vload_u16(reinterpret_cast<const uint16_t*>(high)));
    }
    if constexpr (kFormat == Format::IQ1_M) {
      return spread<4, 0>(vload_u16(reinterpret_cast<const uint16_t*>(high)));
    }
    if constexpr (kFormat == Format::IQ2_S) return spread<2, 0>(vload_u8_i32(high));
    if constexpr (kFormat == Format::IQ3_S) {
      const __m512i bits = vload_u8_i32(high);
      return vector == 0 ? spread<1, 0>(bits) : spread<1, 4>(bits);
    }
    if constexpr (kFormat == Format::IQ2_XS) {
      const __m512i b = vload_u8(block + kL.head() + sub * kL.sub() + kL.signs_at());
      return _mm512_add_epi8(b, b);
    }
    return _mm512_setzero_si512();
  }

  STRATA_INLINE void look_up(Permuted& l, const uint8_t* block, int) {
    const uint8_t* tables = book_of_fields();
    constexpr int kVectors = 8 * kIndices;
#pragma GCC unroll 1
    for (int first = 0; first < kVectors; first += kTogether) {
      __m512i x[kTogether], y[kTogether], which[kTogether];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const int sub = (first + i) / kIndices, vector = i % kIndices;
        x[i] = vload_u8(block + kL.head() + sub * kL.sub() + 64 * vector);
        which[i] = _mm512_and_si512(_mm512_srli_epi16(x[i], 7), _mm512_set1_epi8(1));
        if constexpr (kTables > 2) {
          which[i] = vor_masked_u8(which[i], high_bits(block, sub, vector),
                                   _mm512_set1_epi8(kTables - 2));
        }
        if constexpr (kL.entry == 4) {
          // Two indices of each of four rows, then the other two, so that unpacking puts rows in
          // order.
          const __m512i order = _mm512_broadcast_i32x4(
              _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
          x[i] = _mm512_shuffle_epi8(x[i], order);
          which[i] = _mm512_shuffle_epi8(which[i], order);
        }
        y[i] = x[i];
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTables; ++t) {
        const __m512i a0 = vload_u8(tables + 128 * t), a1 = vload_u8(tables + 128 * t + 64);
        const __m512i b0 = vload_u8(tables + 128 * (kTables + t));
        const __m512i b1 = vload_u8(tables + 128 * (kTables + t) + 64);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          // What is looked up takes the place of its index.
          const __mmask64 here = _mm512_cmpeq_epi8_mask(which[i], _mm512_set1_epi8(static_cast<char>(t)));
          x[i] = _mm512_mask2_permutex2var_epi8(a0, x[i], here, a1);
          y[i] = _mm512_mask2_permutex2var_epi8(b0, y[i], here, b1);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        if constexpr (kL.entry == 4) {
          vstore_u8(l.fields[first + i][0], _mm512_unpacklo_epi8(x[i], y[i]));
          vstore_u8(l.fields[first + i][1], _mm512_unpackhi_epi8(x[i], y[i]));
        } else {
          vstore_u8(l.fields[first + i][0], x[i]);
          vstore_u8(l.fields[first + i][1], y[i]);
        }
      }
    }
  }

  STRATA_INLINE const uint8_t* book_of_fields() {
    static const uint8_t* const fields = book_of(kFormat).fields;
    return fields;
  }

  // Codes from fields that begin at these bits of a row.
  template <int kFrom> STRATA_INLINE __m512i codes(__m512i fields) {
    static constexpr ByteVector places = byte_vector(
        [](int i) { return pair_bit(i) + kFrom + (kL.entry == 8 ? 2 : 4) * (i % 4); });
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(constant(places), fields),
                                   constant(kValues));
  }
  // Byte kByte of each lane four times.
  template <int kByte> STRATA_INLINE __m512i repeated(__m512i v) {
    static constexpr ByteVector places = byte_vector([](int i) { return i % 16 / 4 * 4 + kByte; });
    return _mm512_shuffle_epi8(v, constant(places));
  }

  STRATA_INLINE void read(const Permuted& l, int, const uint8_t* p, int sub, int, U8v* c) {
    if constexpr (kL.entry == 8) {
      const __m512i a = vload_u8(l.fields[sub][0]), b = vload_u8(l.fields[sub][1]);
      unrolled<0, 4>([&](auto h) {
        c[2 * h.value] = codes<8 * h.value>(a);
        c[2 * h.value + 1] = codes<8 * h.value>(b);
      });
    } else {
      unrolled<0, 4>([&](auto h) {
        const __m512i words = vload_u8(l.fields[2 * sub + h.value / 2][h.value % 2]);
        c[2 * h.value] = codes<0>(words);
        c[2 * h.value + 1] = codes<16>(words);
      });
    }
    if constexpr (kEighths) move_up(p, sub, c);
    else negate(p, c);
  }

  STRATA_INLINE void move_up(const uint8_t* p, int sub, U8v* c) {
    const uint8_t* high = p - sub * kL.sub() - kL.head() + kL.high_at() + 32 * sub;
    const __m512i words = vload_u16(reinterpret_cast<const uint16_t*>(high));
    unrolled<0, 4>([&](auto h) {
      // Two more where the bit is not set.
      const int bit = kFormat == Format::IQ1_S ? 15 : 4 * h.value + 3;
      const __mmask16 up = _mm512_testn_epi32_mask(words, _mm512_set1_epi32(1 << bit));
      const __m512i add = _mm512_maskz_mov_epi32(up, _mm512_set1_epi8(2));
      c[2 * h.value] = _mm512_add_epi8(c[2 * h.value], add);
      c[2 * h.value + 1] = _mm512_add_epi8(c[2 * h.value + 1], add);
    });
  }

  STRATA_INLINE void negate(const uint8_t* p, U8v* c) {
    __m512i signs = vload_u8(p + kL.signs_at());
    // A matrix of bits for each byte: seven signs, and their parity at the top.
    if constexpr (kEven) {
      static constexpr ByteVector sevens =
          byte_vector([](int i) { return pair_bit(i) + 7 * (i % 4); });
      signs = _mm512_multishift_epi64_epi8(constant(sevens), signs);
      signs = _mm512_gf2p8affine_epi64_epi8(signs, _mm512_set1_epi64(0x010204081020407f), 0);
    } else if constexpr (kFormat == Format::IQ2_XS) {
      signs = _mm512_gf2p8affine_epi64_epi8(signs, _mm512_set1_epi64(0x02040810204080fe), 0);
    }
    const __m512i twice = _mm512_set1_epi8(static_cast<char>(2 * kL.zero));
    unrolled<0, 4>([&](auto h) {
      const __m512i here = repeated<h.value>(signs);
      const __mmask64 first = _mm512_test_epi8_mask(here, _mm512_set1_epi32(0x08040201));
      const __mmask64 second = _mm512_test_epi8_mask(here, _mm512_set1_epi32(static_cast<int>(0x80402010)));
      c[2 * h.value] = _mm512_mask_sub_epi8(c[2 * h.value], first, twice, c[2 * h.value]);
      c[2 * h.value + 1] = _mm512_mask_sub_epi8(c[2 * h.value + 1], second, twice, c[2 * h.value + 1]);
    });
  }
};

}  // namespace strata::STRATA_ISA
