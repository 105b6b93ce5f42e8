// Integer dot products of a 32-column block: one vector lane a row, M tokens. Exact, so the order
// of the sums is free and each instruction set takes its fastest.
//
//   dots_u4: weights 0..15, a byte holds columns c and c + 16.   sum_c w[row][c] q[token][c]
//   dots_8:  weights int8 (stored plus 128 where UNSIGNED_Q8).
// q: int8 [M][32]. minus_8: int32 [M], -8 times the sums of q. With OFFSET dots_u4 starts from it,
// which turns w into w - 8.
#pragma once
#include "quantise.h"

namespace {

#if defined(SW_AVX512) || defined(SW_AVX2X16)
constexpr bool UNSIGNED_Q8 = true;  // vpdpbusd multiplies unsigned by signed
#else
constexpr bool UNSIGNED_Q8 = false;
#endif

#if defined(SW_AVX512) || defined(SW_AVX2X16)

#if defined(SW_AVX512)
// acc[lane] += sum_{j<4} w[4 lane + j] * q[j]
SW_INLINE I dot4(I acc, B w, const uint8_t* q) {
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(load_int(q)));
}
#else
struct BytePair {
  __m256i half[2];
};
// vpmaddubsw saturates at 2 * 255 * 127, so the top bit goes apart: exact as vpdpbusd.
SW_INLINE I dot4(I acc, B w, const uint8_t* q) {
  BytePair x = load<BytePair>(&w);
  const __m256i a = _mm256_set1_epi32(load_int(q)), low = _mm256_set1_epi8(0x7f);
  for (__m256i& half : x.half) {
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(half, 7), _mm256_set1_epi8(1));
    const __m256i rest = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(half, low), a),
                                           _mm256_set1_epi16(1));
    half = _mm256_add_epi32(
        rest, _mm256_madd_epi16(_mm256_maddubs_epi16(top, a), _mm256_set1_epi16(128)));
  }
  return acc + load<I>(&x);
}
#endif

template <int M, bool OFFSET>
SW_INLINE void dots_u4(const uint8_t* w, const uint8_t* q, const uint8_t* minus_8, I* dots) {
  // Few tokens need two chains each to hide the latency; more have enough, and save the sum.
  constexpr bool ONE_CHAIN = M > 4;
  B low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    const B v = load<B>(w + i * LANES * 4);
    low[i] = v & 15;
    high[i] = (B)((U)v >> 4) & 15;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const uint8_t* x = q + m * BLOCK;
    I first = OFFSET ? all(load_int(minus_8 + 4 * m)) : I{};
    I second = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      first = dot4(first, low[i], x + 4 * i);
      I& other = ONE_CHAIN ? first : second;
      other = dot4(other, high[i], x + 16 + 4 * i);
    }
    dots[m] = ONE_CHAIN ? first : first + second;
  }
}

template <int M>
SW_INLINE void dots_8(const uint8_t* w, const uint8_t* q, const uint8_t* minus_8, I* dots) {
  B v[8];
  for (int i = 0; i < 8; ++i) v[i] = load<B>(w + i * LANES * 4);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const uint8_t* x = q + m * BLOCK;
    I first = all(load_int(minus_8 + 4 * m)) * 16;  // -128 sums: the weights' offset
    I second = {};
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      first = dot4(first, v[i], x + 4 * i);
      second = dot4(second, v[i + 1], x + 4 * i + 4);
    }
    dots[m] = first + second;
  }
}

#elif defined(SW_AVX2)

SW_INLINE __m256i four(const uint8_t* q) { return _mm256_set1_epi32(load_int(q)); }

// Keeps GCC from starting later products before these are summed: left alone it begins all of a
// block at once and spills most of them, at half the speed.
SW_INLINE void pin(__m256i& x) { asm volatile("" : "+x"(x)); }

// int16 sums hold a whole block: 16 products of at most 15 * 127 a lane, 30,480 < 32,768.
template <int M, bool OFFSET>
SW_INLINE void dots_u4(const uint8_t* w, const uint8_t* q, const uint8_t* minus_8, I* dots) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i sums[M];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i v = load<__m256i>(w + i * LANES * 4);
    __m256i low = _mm256_and_si256(v, mask);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
    pin(low);
    pin(high);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const uint8_t* token = q + m * BLOCK + 4 * i;
      const __m256i x = _mm256_maddubs_epi16(low, four(token));
      const __m256i y = _mm256_maddubs_epi16(high, four(token + 16));
      sums[m] = i == 0 ? _mm256_add_epi16(x, y) : _mm256_add_epi16(_mm256_add_epi16(sums[m], x), y);
      pin(sums[m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    dots[m] = (I)_mm256_madd_epi16(sums[m], _mm256_set1_epi16(1));
    if (OFFSET) dots[m] += all(load_int(minus_8 + 4 * m));
  }
}

// |w| unsigned times q with the sign of w: 2 * 128 * 127 = 32,512 fits int16.
template <int M>
SW_INLINE void dots_8(const uint8_t* w, const uint8_t* q, const uint8_t*, I* dots) {
  __m256i sums[M];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    __m256i v = load<__m256i>(w + i * LANES * 4);
    __m256i magnitude = _mm256_abs_epi8(v);
    pin(v);
    pin(magnitude);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m256i token = _mm256_sign_epi8(four(q + m * BLOCK + 4 * i), v);
      const __m256i pairs = _mm256_maddubs_epi16(magnitude, token);
      const __m256i x = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      sums[m] = i == 0 ? x : _mm256_add_epi32(sums[m], x);
      pin(sums[m]);
    }
  }
  for (int m = 0; m < M; ++m) dots[m] = (I)sums[m];
}

#else  // base: int16 products by pmaddwd, two partial sums a row until the end

struct RowPairs {
  __m128i rows[4];  // {row 2i: columns 0+1, 2+3; row 2i+1: columns 0+1, 2+3}
};

SW_INLINE __m128i widen_signed(__m128i bytes_twice) { return _mm_srai_epi16(bytes_twice, 8); }

// The 4 int8 of q as int16, twice.
SW_INLINE __m128i four(const uint8_t* q) {
  const __m128i x = _mm_set1_epi32(load_int(q));
  return widen_signed(_mm_unpacklo_epi8(x, x));
}
SW_INLINE void multiply_add(RowPairs& s, const __m128i* w, __m128i q) {
  for (int i = 0; i < 4; ++i) s.rows[i] = _mm_add_epi32(s.rows[i], _mm_madd_epi16(w[i], q));
}
SW_INLINE I finish(const RowPairs& s) {
  __m128i out[2];
  for (int i = 0; i < 2; ++i) {
    const __m128 x = (__m128)s.rows[2 * i], y = (__m128)s.rows[2 * i + 1];
    out[i] =
        _mm_add_epi32((__m128i)_mm_shuffle_ps(x, y, 0x88), (__m128i)_mm_shuffle_ps(x, y, 0xdd));
  }
  return load<I>(out);
}

template <int M, bool OFFSET>
SW_INLINE void dots_u4(const uint8_t* w, const uint8_t* q, const uint8_t* minus_8, I* dots) {
  const __m128i mask = _mm_set1_epi8(15), zero = _mm_setzero_si128();
  RowPairs sums[M] = {};
  for (int i = 0; i < 4; ++i) {
    __m128i low[4], high[4];
    for (int half = 0; half < 2; ++half) {
      const __m128i v = load<__m128i>(w + i * LANES * 4 + half * 16);
      const __m128i l = _mm_and_si128(v, mask), h = _mm_and_si128(_mm_srli_epi16(v, 4), mask);
      low[2 * half] = _mm_unpacklo_epi8(l, zero);
      low[2 * half + 1] = _mm_unpackhi_epi8(l, zero);
      high[2 * half] = _mm_unpacklo_epi8(h, zero);
      high[2 * half + 1] = _mm_unpackhi_epi8(h, zero);
    }
    for (int m = 0; m < M; ++m) {
      multiply_add(sums[m], low, four(q + m * BLOCK + 4 * i));
      multiply_add(sums[m], high, four(q + m * BLOCK + 16 + 4 * i));
    }
  }
  for (int m = 0; m < M; ++m) {
    dots[m] = finish(sums[m]);
    if (OFFSET) dots[m] += all(load_int(minus_8 + 4 * m));
  }
}

template <int M>
SW_INLINE void dots_8(const uint8_t* w, const uint8_t* q, const uint8_t*, I* dots) {
  RowPairs sums[M] = {};
  for (int i = 0; i < 8; ++i) {
    __m128i v[4];
    for (int half = 0; half < 2; ++half) {
      const __m128i x = load<__m128i>(w + i * LANES * 4 + half * 16);
      v[2 * half] = widen_signed(_mm_unpacklo_epi8(x, x));
      v[2 * half + 1] = widen_signed(_mm_unpackhi_epi8(x, x));
    }
    for (int m = 0; m < M; ++m) multiply_add(sums[m], v, four(q + m * BLOCK + 4 * i));
  }
  for (int m = 0; m < M; ++m) dots[m] = finish(sums[m]);
}

#endif

}  // namespace
