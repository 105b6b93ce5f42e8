// The vector vocabulary: everything a kernel may say, over LANES floats. Kernels above it are
// written once; what differs between instruction sets is in this file alone.
//
//   amx      16 lanes, VNNI dot products, and tiles for more than 8 tokens (tiles.h)
//   avx512   16 lanes, VNNI dot products
//   avx2     8 lanes, FMA, F16C, int16 dot products (vpmaddubsw)
//   base     8 lanes as pairs of SSE2 vectors: any x86-64
//   avx2x16  the 16-lane logic on pairs of AVX2 vectors, tiles in plain words; for tests on
//   machines
//            without AVX-512 or AMX
//
// Plain arithmetic is GCC's vector extension (the compiler splits vectors the CPU lacks). A fused
// multiply-add is always written as fma() and nothing else is contracted (-ffp-contract=off), so a
// number does not depend on how the compiler schedules a loop.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(SW_AVX512)
#define SW_LANES 16
#elif defined(SW_AVX2X16)
#define SW_LANES 16
#else
#define SW_LANES 8
#endif

#define SW_INLINE static inline __attribute__((always_inline))

namespace {

constexpr int LANES = SW_LANES;

typedef float F __attribute__((vector_size(SW_LANES * 4)));
typedef int32_t I __attribute__((vector_size(SW_LANES * 4)));
typedef uint32_t U __attribute__((vector_size(SW_LANES * 4)));
typedef uint8_t B __attribute__((vector_size(SW_LANES * 4)));
typedef uint16_t H __attribute__((vector_size(SW_LANES * 2)));
typedef double D __attribute__((vector_size(SW_LANES * 4)));  // half as many lanes
typedef uint64_t L __attribute__((vector_size(SW_LANES * 4)));

template <class V, class T>
SW_INLINE V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
SW_INLINE void store(T* p, V v) {
  memcpy(p, &v, sizeof v);
}
SW_INLINE F all(float x) { return x - F{}; }
SW_INLINE D all(double x) { return x - D{}; }
SW_INLINE I all(int32_t x) { return x - I{}; }
SW_INLINE F maximum(F a, F b) { return a > b ? a : b; }
SW_INLINE I maximum(I a, I b) { return a > b ? a : b; }
SW_INLINE I minimum(I a, I b) { return a < b ? a : b; }
SW_INLINE F magnitude(F x) { return (F)((I)x & 0x7fffffff); }

SW_INLINE int32_t load_int(const void* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return x;
}
SW_INLINE float load_float(const void* p) {
  float x;
  memcpy(&x, p, 4);
  return x;
}

#if SW_LANES == 16
constexpr I LANE_NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
SW_INLINE F swap_pairs(F x) {
  return __builtin_shuffle(x, I{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
}
#else
constexpr I LANE_NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7};
SW_INLINE F swap_pairs(F x) { return __builtin_shuffle(x, I{1, 0, 3, 2, 5, 4, 7, 6}); }
#endif

// Horizontal reductions by halves, one order for every caller: lane i takes lane i + LANES / 2,
// then i + LANES / 4, ... Each half is a narrower vector: shuffles across 512 bits are slow. The
// result is in lane 0 of four: what stays in vector registers there is spared the way to others.
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
#define SW_SHUFFLE __builtin_shufflevector
#if SW_LANES == 16
#define SW_EIGHT(x, take) \
  take(SW_SHUFFLE(x, x, 0, 1, 2, 3, 4, 5, 6, 7), SW_SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15))
#else
#define SW_EIGHT(x, take) x
#endif
#define SW_REDUCE(x, take)                                                                      \
  const auto eight = SW_EIGHT(x, take);                                                         \
  auto four = take(SW_SHUFFLE(eight, eight, 0, 1, 2, 3), SW_SHUFFLE(eight, eight, 4, 5, 6, 7)); \
  four = take(four, SW_SHUFFLE(four, four, 2, 3, 0, 1));                                        \
  four = take(four, SW_SHUFFLE(four, four, 1, 0, 1, 0));                                        \
  return four
template <class V>
SW_INLINE V added(V a, V b) {
  return a + b;
}
template <class V>
SW_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
SW_INLINE F4 sum_in_four(F x) { SW_REDUCE(x, added); }
SW_INLINE I4 sum_in_four(I x) { SW_REDUCE(x, added); }
SW_INLINE F4 largest_in_four(F x) { SW_REDUCE(x, larger); }
SW_INLINE I4 largest_in_four(I x) { SW_REDUCE(x, larger); }
// The same of four vectors at once, each in that order: 13 operations where one by one they are 28.
#if SW_LANES == 16
#define SW_REDUCE_FOUR(a, b, c, d, take)                                                           \
  const auto ab =                                                                                  \
      take(SW_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),               \
           SW_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));        \
  const auto cd =                                                                                  \
      take(SW_SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),               \
           SW_SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));        \
  auto all = take(SW_SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),    \
                  SW_SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)); \
  all = take(all, SW_SHUFFLE(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));     \
  all = take(all, SW_SHUFFLE(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));     \
  return SW_SHUFFLE(all, all, 0, 4, 8, 12)
#else
#define SW_REDUCE_FOUR(a, b, c, d, take)                                         \
  const auto ab = take(SW_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11),               \
                       SW_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15));            \
  const auto cd = take(SW_SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11),               \
                       SW_SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15));            \
  auto all = take(SW_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13), /* a, c, b, d */ \
                  SW_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15));               \
  all = take(all, SW_SHUFFLE(all, all, 1, 0, 3, 2, 5, 4, 7, 6));                 \
  return SW_SHUFFLE(all, all, 0, 4, 2, 6)
#endif
SW_INLINE F4 sums_of_four(F a, F b, F c, F d) { SW_REDUCE_FOUR(a, b, c, d, added); }
SW_INLINE I4 sums_of_four(I a, I b, I c, I d) { SW_REDUCE_FOUR(a, b, c, d, added); }
SW_INLINE I4 largest_of_four(I a, I b, I c, I d) { SW_REDUCE_FOUR(a, b, c, d, larger); }
SW_INLINE float sum(F x) { return sum_in_four(x)[0]; }
SW_INLINE float largest(F x) { return largest_in_four(x)[0]; }
#undef SW_SHUFFLE
#undef SW_EIGHT
#undef SW_REDUCE
#undef SW_REDUCE_FOUR

// x in a register: each use would else be a load of its own where the compiler likes that better.
template <class V>
SW_INLINE V once(V x) {
#if defined(SW_AVX512) || defined(SW_AVX2)
  asm("" : "+v"(x));
#endif
  return x;
}

// n, of which nothing is known: a mask made of it is made again and takes no register meanwhile.
SW_INLINE int anew(int n) {
  asm volatile("" : "+r"(n));
  return n;
}

// Lanes 0, 2, 4, ... of a, then of b; lanes 1, 3, 5, ...
#if SW_LANES == 16
SW_INLINE F evens(F a, F b) {
  return __builtin_shuffle(a, b, I{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
}
SW_INLINE F odds(F a, F b) {
  return __builtin_shuffle(a, b, I{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
}
#else
SW_INLINE F evens(F a, F b) { return __builtin_shuffle(a, b, I{0, 2, 4, 6, 8, 10, 12, 14}); }
SW_INLINE F odds(F a, F b) { return __builtin_shuffle(a, b, I{1, 3, 5, 7, 9, 11, 13, 15}); }
#endif

// a * b + c
#if defined(SW_AVX512)
SW_INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
SW_INLINE D fma(D a, D b, D c) { return (D)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(SW_AVX2)
SW_INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
SW_INLINE D fma(D a, D b, D c) { return (D)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#elif defined(SW_AVX2X16)
struct FPair {
  __m256 half[2];
};
struct DPair {
  __m256d half[2];
};
SW_INLINE F fma(F a, F b, F c) {
  const FPair x = load<FPair>(&a), y = load<FPair>(&b), z = load<FPair>(&c);
  return load<F>(FPair{_mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]),
                       _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1])}
                     .half);
}
SW_INLINE D fma(D a, D b, D c) {
  const DPair x = load<DPair>(&a), y = load<DPair>(&b), z = load<DPair>(&c);
  return load<D>(DPair{_mm256_fmadd_pd(x.half[0], y.half[0], z.half[0]),
                       _mm256_fmadd_pd(x.half[1], y.half[1], z.half[1])}
                     .half);
}
#else
// Two roundings: libm's software fma would cost a call a lane.
SW_INLINE F fma(F a, F b, F c) { return a * b + c; }
SW_INLINE D fma(D a, D b, D c) { return a * b + c; }
#endif

// Bit of each of 64 bytes that is not 0.
SW_INLINE uint64_t bytes_set(const uint8_t* p) {
#if defined(SW_AVX512)
  const __m512i x = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(x, x);
#else
  uint64_t zeros = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i x = load<__m128i>(p + 16 * i);
    zeros |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128()))
             << 16 * i;
  }
  return ~zeros;
#endif
}

// Bit of each lane in which a > b; NaN is above nothing.
SW_INLINE uint32_t lanes_above(F a, F b) {
#if defined(SW_AVX512)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(SW_AVX2)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#else
  uint32_t bits = 0;
  __m128 x[sizeof(F) / 16], y[sizeof(F) / 16];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  for (int i = 0; i < LANES / 4; ++i) bits |= _mm_movemask_ps(_mm_cmpgt_ps(x[i], y[i])) << 4 * i;
  return bits;
#endif
}

// The first n of LANES floats, 0 <= n <= LANES: zeros beyond, and no byte beyond is touched.
#if defined(SW_AVX512)
SW_INLINE F load_first(const float* p, int n) {
  return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
SW_INLINE void store_first(float* p, F x, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
#elif defined(SW_AVX2)
SW_INLINE F load_first(const float* p, int n) {
  return (F)_mm256_maskload_ps(p, (__m256i)(LANE_NUMBERS < n));
}
SW_INLINE void store_first(float* p, F x, int n) {
  _mm256_maskstore_ps(p, (__m256i)(LANE_NUMBERS < n), (__m256)x);
}
#else
SW_INLINE F load_first(const float* p, int n) {
  float lanes[LANES] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load<F>(lanes);
}
SW_INLINE void store_first(float* p, F x, int n) {
  float lanes[LANES];
  store(lanes, x);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// The same of 2 LANES numbers of 16 bits, and of LANES of them.
#if defined(SW_AVX512)
SW_INLINE U load_first_pairs(const uint16_t* p, int n) {
  return (U)_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p);
}
SW_INLINE __m256i load_first_halves(const uint16_t* p, int n) {
  return _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
}
#elif defined(SW_AVX2)
// Whole pairs, and the last number alone where n is odd.
SW_INLINE U load_first_pairs(const uint16_t* p, int n) {
  const I last = LANE_NUMBERS == (n & 1 ? n / 2 : -1);
  const __m256i whole = _mm256_maskload_epi32((const int*)p, (__m256i)(LANE_NUMBERS < n / 2));
  return (U)whole | ((U)last & (n & 1 ? p[n - 1] : 0u));
}
SW_INLINE __m128i load_first_halves(const uint16_t* p, int n) {
  uint64_t low = 0, high = 0;  // by way of other registers: vectors are scarce
  for (int i = n - 1; i >= 4; --i) high = high << 16 | p[i];
  for (int i = n < 4 ? n - 1 : 3; i >= 0; --i) low = low << 16 | p[i];
  return _mm_set_epi64x((long long)high, (long long)low);
}
#else
SW_INLINE U load_first_pairs(const uint16_t* p, int n) {
  uint16_t lanes[2 * LANES] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load<U>(lanes);
}
#endif

// float16 to float, exact.
#if defined(SW_AVX512)
SW_INLINE F load_half(const uint16_t* p) {
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
#elif defined(SW_AVX2)
SW_INLINE F load_half(const uint16_t* p) {
  return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
#elif defined(SW_AVX2X16)
SW_INLINE F load_half(const uint16_t* p) {
  return load<F>(FPair{_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
                       _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))}
                     .half);
}
#else
SW_INLINE F load_half(const uint16_t* p) {
  const U h = __builtin_convertvector(load<H>(p), U);
  const U sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  const U small = (U)((F)rest * 0x1p112f);
  const U special = rest | 0x7f800000u;  // infinities and NaN
  return (F)(sign | (rest < 0x0f800000u ? small : special));
}
#endif

SW_INLINE F load_first_half(const uint16_t* p, int n) {
#if defined(SW_AVX512)
  return (F)_mm512_cvtph_ps(load_first_halves(p, n));
#elif defined(SW_AVX2)
  return (F)_mm256_cvtph_ps(load_first_halves(p, n));
#else
  uint16_t lanes[LANES] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load_half(lanes);
#endif
}

// float to float16, to nearest, finite numbers saturating at 65504, NaN kept.
SW_INLINE F saturate_half(F x) {
  x = x > 65504.0f ? all(65504.0f) : x;
  return x < -65504.0f ? all(-65504.0f) : x;
}
#if defined(SW_AVX512)
SW_INLINE H to_half(F x) {
  return (H)_mm512_cvtps_ph((__m512)saturate_half(x), _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(SW_AVX2)
SW_INLINE H to_half(F x) {
  return (H)_mm256_cvtps_ph((__m256)saturate_half(x), _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(SW_AVX2X16)
SW_INLINE H to_half(F x) {
  const F y = saturate_half(x);
  const FPair v = load<FPair>(&y);
  const __m128i h[2] = {_mm256_cvtps_ph(v.half[0], _MM_FROUND_TO_NEAREST_INT),
                        _mm256_cvtps_ph(v.half[1], _MM_FROUND_TO_NEAREST_INT)};
  return load<H>(h);
}
#else
SW_INLINE H to_half(F x) {
  const U bits = (U)saturate_half(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  // Normal: round the mantissa to 10 bits, ties to even, and move the bias.
  const U normal = (rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13;
  // Subnormal: adding 0.5 leaves the number in units of 2^-24 in the mantissa's low bits.
  const U subnormal = (U)((F)rest + 0.5f) - 0x3f000000u;
  const U nan = U{} + 0x7e00u;
  const U half = rest < 0x38800000u ? subnormal : (rest > 0x7f800000u ? nan : normal);
  return __builtin_convertvector(sign | half, H);
}
#endif

SW_INLINE F load_bfloat(const uint16_t* p) {
  return (F)(__builtin_convertvector(load<H>(p), U) << 16);
}

// Round to nearest, |x| < 2^22. NaN gives some integer.
SW_INLINE I round_int(F x) { return (I)((U)(x + 12582912.0f) - 0x4b400000u); }

// The low bytes of the 32 numbers of x.
SW_INLINE void store_low_bytes(uint8_t* out, const I* x) {
#if defined(SW_AVX512)
  store(out, _mm512_cvtepi32_epi8((__m512i)x[0]));
  store(out + 16, _mm512_cvtepi32_epi8((__m512i)x[1]));
#elif defined(SW_AVX2)
  const I low[4] = {x[0] & 255, x[1] & 255, x[2] & 255, x[3] & 255};
  const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32((__m256i)low[0], (__m256i)low[1]),
                                            _mm256_packus_epi32((__m256i)low[2], (__m256i)low[3]));
  store(out, _mm256_permutevar8x32_epi32(bytes, (__m256i)I{0, 4, 1, 5, 2, 6, 3, 7}));
#else
  __m128i low[8];
  memcpy(low, x, sizeof low);
  for (__m128i& four : low) four = _mm_and_si128(four, _mm_set1_epi32(255));
  for (int i = 0; i < 2; ++i, out += 16)
    store(out, _mm_packus_epi16(_mm_packs_epi32(low[4 * i], low[4 * i + 1]),
                                _mm_packs_epi32(low[4 * i + 2], low[4 * i + 3])));
#endif
}

// e^x, relative error below 2e-7; exactly 0 below -87 and 1 at 0; NaN stays.
SW_INLINE F exponential(F x) {
  const F y = x > 88.0f ? all(88.0f) : (x < -87.0f ? all(-87.0f) : x);
  const F shifted = y * 1.44269504f + 12582912.0f;
  const F n = shifted - 12582912.0f;
  const F r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), y));  // y - n ln 2
  F p = fma(r, all(1.98412698e-4f), all(1.38888889e-3f));
  p = fma(p, r, all(8.33333333e-3f));
  p = fma(p, r, all(4.16666667e-2f));
  p = fma(p, r, all(1.66666667e-1f));
  p = fma(p, r, all(0.5f));
  p = fma(p, r, all(1.0f));
  p = fma(p, r, all(1.0f));
  const F power = (F)(((U)shifted - 0x4b400000u + 127u) << 23);
  return x < -87.0f ? F{} : p * power;
}

// e^x in double for x <= 0, relative error below 4e-16; 0 below -700; NaN stays.
SW_INLINE D exponential(D x) {
  const D y = x < -700.0 ? all(-700.0) : x;
  const D shifted = y * 1.4426950408889634 + 6755399441055744.0;
  const D n = shifted - 6755399441055744.0;
  const D r = fma(n, all(-1.9082149292705877e-10), fma(n, all(-0.69314718036912382), y));
  D p = all(1.6059043836821613e-10);
  p = fma(p, r, all(2.0876756987868099e-9));
  p = fma(p, r, all(2.5052108385441719e-8));
  p = fma(p, r, all(2.7557319223985891e-7));
  p = fma(p, r, all(2.7557319223985893e-6));
  p = fma(p, r, all(2.4801587301587302e-5));
  p = fma(p, r, all(1.9841269841269841e-4));
  p = fma(p, r, all(1.3888888888888889e-3));
  p = fma(p, r, all(8.3333333333333332e-3));
  p = fma(p, r, all(4.1666666666666664e-2));
  p = fma(p, r, all(1.6666666666666666e-1));
  p = fma(p, r, all(0.5));
  p = fma(p, r, all(1.0));
  p = fma(p, r, all(1.0));
  const D power = (D)(((L)shifted - 0x4338000000000000u + 1023u) << 52);
  return x < -700.0 ? D{} : p * power;
}

}  // namespace
