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
  static constexpr int kTables = kL.tables;
  static constexpr bool kEighths = kFormat == Format::IQ1_S || kFormat == Format::IQ1_M;
  static constexpr bool kEven = kFormat == Format::IQ2_XXS || kFormat == Format::IQ3_XXS;
  // Tables that are larger than the registers: one that is read serves as many vectors of indices,
  // and what is looked up of a block waits here, both halves of the entries.
  static constexpr bool kLarge = kTables > 4;
  static constexpr int kTogether = 4;
  alignas(64) uint8_t fields[kLarge ? 8 : 1][2][64];
  const uint8_t* tables;

  static constexpr BookValues kNumbers = book_values(kFormat);
  // The code of a field and, in the bit above it, its sign; what lies above that is another field's.
  static constexpr ByteVector kValues = byte_vector([](int i) {
    constexpr int count = kL.entry == 8 ? 4 : 8;
    const int code = kNumbers.v[i % count];
    return kEighths || i / count % 2 == 0 ? code : 2 * kL.zero - code;
  });

  STRATA_INLINE __m512i constant(const ByteVector& b) { return _mm512_load_si512(b.v); }

  // Four bits at a time (kStep of them from one to the next) of a number a lane, one place up.
  template <int kStep> STRATA_INLINE __m512i spread(__m512i lanes) {
    static constexpr ByteVector places =
        byte_vector([](int i) { return (pair_bit(i) + kStep * (i % 4) + 63) % 64; });
    return _mm512_multishift_epi64_epi8(constant(places), lanes);
  }

  // Bits from the eighth on of the indices of 32 elements, one place up.
  STRATA_INLINE __m512i high_bits(const uint8_t* block, int sub) {
    const uint8_t* high = block + kL.high_at() + 2 * kL.high_bytes * sub;
    if constexpr (kFormat == Format::IQ2_S) return spread<2>(vload_u8_i32(high));
    return spread<kFormat == Format::IQ1_S ? 3 : 4>(
        vload_u16(reinterpret_cast<const uint16_t*>(high)));
  }

  STRATA_INLINE void look_up(Permuted& l, const uint8_t* block, int) {
    l.tables = book_of(kFormat).fields;
    if constexpr (kLarge) {
#pragma GCC unroll 1
      for (int first = 0; first < 8; first += kTogether) look_up_some(l, block, first);
    }
  }

  // Of `kTogether` times 32 elements, a table at a time.
  STRATA_INLINE void look_up_some(Permuted& l, const uint8_t* block, int first) {
    __m512i x[kTogether], y[kTogether], which[kTogether];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      const int sub = first + i;
      x[i] = y[i] = vload_u8(block + kL.head() + sub * kL.sub());
      which[i] = vor_masked_u8(_mm512_and_si512(_mm512_srli_epi16(x[i], 7), _mm512_set1_epi8(1)),
                               high_bits(block, sub), _mm512_set1_epi8(kTables - 2));
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTables; ++t) {
      const __m512i a0 = vload_u8(l.tables + 128 * t), a1 = vload_u8(l.tables + 128 * t + 64);
      const __m512i b0 = vload_u8(l.tables + 128 * (kTables + t));
      const __m512i b1 = vload_u8(l.tables + 128 * (kTables + t) + 64);
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
      vstore_u8(l.fields[first + i][0], x[i]);
      vstore_u8(l.fields[first + i][1], y[i]);
    }
  }

  // Which of 64 indices have a ninth bit.
  template <int kVector> STRATA_INLINE __mmask64 ninth_bits(const uint8_t* p, int sub) {
    if constexpr (kFormat == Format::IQ2_XS) {
      return _mm512_test_epi8_mask(vload_u8(p + kL.signs_at()), _mm512_set1_epi8(1));
    } else {
      // A byte of each row, in the places of its indices.
      static constexpr ByteVector rows = byte_vector([](int i) { return i / 16 * 4 + i % 8 / 2; });
      static constexpr ByteVector bits =
          byte_vector([](int i) { return 1 << (4 * kVector + i % 16 / 8 * 2 + i % 2); });
      const uint8_t* high = p - sub * kL.sub() - kL.head() + kL.high_at() + 16 * sub;
      const __m512i all =
          _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high)));
      return _mm512_test_epi8_mask(_mm512_shuffle_epi8(all, constant(rows)), constant(bits));
    }
  }

  // The bytes of 64 indices in kCount tables from `table` on; masks have the bits that choose.
  template <int kCount>
  STRATA_INLINE __m512i in_tables(const uint8_t* table, __m512i x, const __mmask64* masks) {
    if constexpr (kCount == 1) {
      return _mm512_permutex2var_epi8(vload_u8(table), x, vload_u8(table + 64));
    } else {
      return _mm512_mask_blend_epi8(masks[log2_of(kCount) - 1],
                                    in_tables<kCount / 2>(table, x, masks),
                                    in_tables<kCount / 2>(table + 64 * kCount, x, masks));
    }
  }

  // Both halves of the entries of 64 indices.
  template <int kVector>
  STRATA_INLINE void halves(const Permuted& l, const uint8_t* p, int sub, __m512i* half) {
    __m512i x = vload_u8(p + 64 * kVector);
    if constexpr (kL.entry == 4) {
      // Two indices of each of four rows, then the other two, so that unpacking puts rows in order.
      x = _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                     0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
    }
    __mmask64 masks[2] = {_mm512_movepi8_mask(x)};
    if constexpr (kTables > 2) masks[1] = ninth_bits<kVector>(p, sub);
    half[0] = in_tables<kTables>(l.tables, x, masks);
    half[1] = in_tables<kTables>(l.tables + 128 * kTables, x, masks);
  }

  // Codes of fields that begin at these bits of a row: each byte takes those from its place on.
  template <int kFrom> STRATA_INLINE __m512i windows(__m512i fields) {
    static constexpr ByteVector places = byte_vector(
        [](int i) { return pair_bit(i) + kFrom + (kL.entry == 8 ? 2 : 4) * (i % 4); });
    return _mm512_multishift_epi64_epi8(constant(places), fields);
  }
  STRATA_INLINE __m512i codes(__m512i windows) {
    return _mm512_permutexvar_epi8(windows, constant(kValues));
  }
  // Bits of a row's word from kFrom on at these places of the bytes of `fields`.
  template <int kFrom, int kPlaces>
  STRATA_INLINE __m512i with_signs(__m512i fields, __m512i signs) {
    static constexpr ByteVector places = byte_vector([](int i) {
      return (pair_bit(i) + kFrom + i % 4 - log2_of(kPlaces & -kPlaces) + 64) % 64;
    });
    const __m512i here = _mm512_multishift_epi64_epi8(constant(places), signs);
    // fields & ~mask | here & mask
    return _mm512_ternarylogic_epi32(fields, here, _mm512_set1_epi8(static_cast<char>(kPlaces)), 0xd8);
  }

  STRATA_INLINE void read(const Permuted& l, int, const uint8_t* p, int sub, int, U8v* c) {
    if constexpr (kL.entry == 8) {
      __m512i half[2];
      if constexpr (kLarge) {
        half[0] = vload_u8(l.fields[sub][0]);
        half[1] = vload_u8(l.fields[sub][1]);
      } else {
        halves<0>(l, p, sub, half);
      }
      __m512i each[8];
      unrolled<0, 8>([&](auto g) {
        each[g.value] = windows<8 * (g.value / 2)>(half[g.value % 2]);
      });
      if constexpr (!kEighths) {
        const __m512i s = signs(p);
        unrolled<0, 8>([&](auto g) {
          each[g.value] = with_signs<4 * g.value, 4>(each[g.value], s);
        });
      }
      unrolled<0, 8>([&](auto g) { c[g.value] = codes(each[g.value]); });
      if constexpr (kEighths) move_up(p, sub, c);
    } else {
      const __m512i s = signs(p);
      unrolled<0, 2>([&](auto v) {
        __m512i half[2];
        halves<v.value>(l, p, sub, half);
        // Rows' words: two indices, both halves of the first, both of the second.
        const __m512i words[2] = {_mm512_unpacklo_epi8(half[0], half[1]),
                                  _mm512_unpackhi_epi8(half[0], half[1])};
        unrolled<0, 2>([&](auto h) {
          constexpr int at = 2 * v.value + h.value;
          const __m512i all = with_signs<8 * at, 0x88>(words[h.value], s);
          c[2 * at] = codes(windows<0>(all));
          c[2 * at + 1] = codes(windows<16>(all));
        });
      });
    }
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

  // The signs of a row's 32 elements; of entries of four elements the even ones of each eight, then
  // the odd ones, so that both fields of a byte get theirs at once.
  STRATA_INLINE __m512i signs(const uint8_t* p) {
    constexpr bool apart = kL.entry == 4;
    const __m512i s = vload_u8(p + kL.signs_at());
    // A matrix of bits for each byte: seven signs, and their parity at the top.
    if constexpr (kEven) {
      static constexpr ByteVector sevens =
          byte_vector([](int i) { return pair_bit(i) + 7 * (i % 4); });
      return _mm512_gf2p8affine_epi64_epi8(
          _mm512_multishift_epi64_epi8(constant(sevens), s),
          _mm512_set1_epi64(apart ? 0x010410400208207f : 0x010204081020407f), 0);
    } else if constexpr (kFormat == Format::IQ2_XS) {
      return _mm512_gf2p8affine_epi64_epi8(s, _mm512_set1_epi64(0x02040810204080fe), 0);
    } else if constexpr (apart) {
      return _mm512_gf2p8affine_epi64_epi8(s, _mm512_set1_epi64(0x0104104002082080), 0);
    } else {
      return s;
    }
  }
};

}  // namespace strata::STRATA_ISA
