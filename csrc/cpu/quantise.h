// Rows of floats to activations (layout: Activations in common/kernels.h), with or without RMSNorm.
//
//   q[i] = round(x[i] * 127 / max|x|),  scale = max|x| / 127,  a block of 32 at a time
//   |x[i] - scale q[i]| <= scale / 2 (1 + 2^-20)
//
// A value above 4 times every other of its block is kept as it is, and counts as 0 in q and max.
// A block that holds NaN or infinity gets such a scale, so that the logits of its token say so.
// Norm sums in float over LANES partial sums and then by halves: relative error of the mean square
// below cols / LANES * 2^-24. Bytes: reads 4 cols (and the weight), writes 1.6 cols a token.
#pragma once
#include "simd.h"

namespace {

using servewright::ACTIVATION_BYTES;
using servewright::Activations;
using servewright::BLOCK;
using servewright::MARKS;
using servewright::NormArgs;
using servewright::OUTLIER_ABOVE;

constexpr int VECTORS = BLOCK / LANES;  // of a block

// Tokens of an activation tile: the accumulators that fit the registers beside the weights.
#if defined(SW_AMX) || defined(SW_AVX2X16)
constexpr int TILE = 16;  // rows of a tile register
#elif defined(SW_AVX512)
constexpr int TILE = 8;  // 8 sums, 8 weights, scale and temporaries of 32 registers; 16 are slower
#elif defined(SW_AVX2)
constexpr int TILE = 6;  // 6 int16 sums, 2 weights, mask and temporaries of 16; measured over 3-6
#else
constexpr int TILE = 4;
#endif

SW_INLINE int tile_tokens(const Activations& a, int tile) {
  const int rest = a.tokens - tile * TILE;
  return rest < TILE ? rest : TILE;
}
SW_INLINE uint8_t* tile_q8(const Activations& a, int tile) {
  return a.q8 + (size_t)tile * TILE * (a.cols / BLOCK) * ACTIVATION_BYTES;
}
constexpr int MARKED_PARTS = (TILE + MARKS - 1) / MARKS;  // of a tile, MARKS tokens each
SW_INLINE size_t mark_bytes(int cols) {
  return (size_t)((cols / BLOCK + MARKS - 1) / MARKS * MARKS) * MARKS;
}
SW_INLINE uint8_t* tile_marks(const Activations& a, int tile) {
  return a.marks + tile * MARKED_PARTS * mark_bytes(a.cols);
}
// Where the marks of token m of a tile and those behind it begin.
SW_INLINE uint8_t* marks_of(const Activations& a, int tile, int m, int block) {
  return tile_marks(a, tile) + m / MARKS * mark_bytes(a.cols) + block * MARKS + m % MARKS;
}
SW_INLINE float* tile_f32(const Activations& a, int tile) {
  return a.f32 + (size_t)tile * TILE * a.cols;
}

// The magnitudes of x[0..31], in each lane the largest. As integers they order like the floats, and
// NaN is above infinity: it survives.
SW_INLINE I magnitudes_of(const F* x) {
  I most = (I)magnitude(x[0]);
#pragma GCC unroll 4
  for (int v = 1; v < VECTORS; ++v) most = maximum(most, (I)magnitude(x[v]));
  return most;
}

struct Outlier {
  float value = 0.0f;
  uint8_t mark = 0;  // 1 + column, or 0

  // Takes it out of x[0..31], whose largest magnitude is `most`, if there is one.
  inline __attribute__((always_inline)) bool take(F* x, float most) {
    uint32_t large = 0;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      large |= lanes_above(magnitude(x[v]), all(most / OUTLIER_ABOVE)) << v * LANES;
    // None is above infinity or NaN, or where all are 0.
    if (__builtin_expect(large == 0 || (large & (large - 1)) != 0, 1)) return false;
    const int column = __builtin_ctz(large);
    mark = (uint8_t)(column + 1);
    float values[BLOCK];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      store(values + v * LANES, x[v]);
      x[v] = LANE_NUMBERS + v * LANES == column ? F{} : x[v];
    }
    value = values[column];
    return true;
  }
};

// Block `block` of `token`, x[VECTORS]: any numbers.
__attribute__((noinline)) void store_block(const Activations& a, int token, int block, const F* x) {
  const int tile = token / TILE, m = token - tile * TILE, tokens = tile_tokens(a, tile);
  if (a.f32) {
    float* out = tile_f32(a, tile) + (size_t)block * BLOCK * tokens + m;
    float values[BLOCK];
    for (int v = 0; v < VECTORS; ++v) store(values + v * LANES, x[v]);
    for (int i = 0; i < BLOCK; ++i) out[i * tokens] = values[i];
  }
  if (a.q8) {
    uint8_t* out = tile_q8(a, tile) + (size_t)block * tokens * ACTIVATION_BYTES;
    F rest[VECTORS];
    for (int v = 0; v < VECTORS; ++v) rest[v] = x[v];
    const auto largest = [&] { return ((F4)largest_in_four(magnitudes_of(rest)))[0]; };
    Outlier outlier;
    outlier.take(rest, largest());
    const float most = largest();
    const float scale = most / 127.0f;
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    I sums = {}, q[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      // Below 2^-126 * 127 the inverse is infinite; the clamp keeps q in int8 all the same.
      q[v] = minimum(maximum(round_int(rest[v] * inverse), all(-127)), all(127));
      sums += q[v];
    }
    store_low_bytes(out + m * BLOCK, q);
    const I4 total = sum_in_four(sums);
    const int32_t minus_8 = (total * -8)[0];
    const float scaled = scale * __builtin_convertvector(total, F4)[0];
    uint8_t* tail = out + tokens * BLOCK + 4 * m;
    memcpy(tail, &scale, 4);
    memcpy(tail + 4 * tokens, &minus_8, 4);
    memcpy(tail + 8 * tokens, &scaled, 4);
    memcpy(tail + 12 * tokens, &outlier.value, 4);
    *marks_of(a, tile, m, block) = outlier.mark;
  }
}

template <int N>
SW_INLINE void store_tails(uint8_t* tail, int tokens, F4 scales, I4 sums) {
  const I4 minus_8 = sums * -8;
  const F4 scaled = scales * __builtin_convertvector(sums, F4);
  memcpy(tail, &scales, 4 * N);
  memcpy(tail + 4 * tokens, &minus_8, 4 * N);
  memcpy(tail + 8 * tokens, &scaled, 4 * N);
}

// Four of x[N] from n on, the last of them again where there are fewer.
#define SW_FOUR_OF(x, n, N) \
  x[n], x[n + 1 < N ? n + 1 : N - 1], x[n + 2 < N ? n + 2 : N - 1], x[n + 3 < N ? n + 3 : N - 1]

// The same of N tokens of a tile, x[N][VECTORS]. Several at once hide each other's latencies and
// share divisions and reductions.
template <int N>
SW_INLINE void store_blocks(const Activations& a, int token, int block, const F* x) {
  constexpr int FOURS = (N + 3) / 4;
  F rest[N * VECTORS];
  I magnitudes[N];
#pragma GCC unroll 32
  for (int i = 0; i < N * VECTORS; ++i) rest[i] = x[i];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) magnitudes[n] = magnitudes_of(rest + n * VECTORS);
  I4 most[FOURS];
  Outlier outliers[N];
  bool has_outlier = false;
#pragma GCC unroll 2
  for (int i = 0; i < FOURS; ++i)
    most[i] =
        N == 1 ? largest_in_four(magnitudes[0]) : largest_of_four(SW_FOUR_OF(magnitudes, 4 * i, N));
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
    if (outliers[n].take(rest + n * VECTORS, ((F4)most[n / 4])[n % 4])) {
      magnitudes[n] = magnitudes_of(rest + n * VECTORS);
      has_outlier = true;
    }
  F4 scales[FOURS], inverses[FOURS];
  I4 is_usual = ~I4{};
#pragma GCC unroll 2
  for (int i = 0; i < FOURS; ++i) {
    if (has_outlier)
      most[i] = N == 1 ? largest_in_four(magnitudes[0])
                       : largest_of_four(SW_FOUR_OF(magnitudes, 4 * i, N));
    is_usual &= (most[i] > 0x04000000) & (most[i] < 0x7f800000);
    scales[i] = (F4)most[i] / 127.0f;
    inverses[i] = 127.0f / (F4)most[i];
  }
  if (a.f32 || _mm_movemask_ps((__m128)is_usual) != 15) {
    F copy[N * VECTORS];
#pragma GCC unroll 32
    for (int i = 0; i < N * VECTORS; ++i) copy[i] = x[i];
    for (int n = 0; n < N; ++n) store_block(a, token + n, block, copy + n * VECTORS);
    return;
  }
  const int tile = token / TILE, m = token - tile * TILE, tokens = tile_tokens(a, tile);
  uint8_t* out = tile_q8(a, tile) + (size_t)block * tokens * ACTIVATION_BYTES;
  // Numbers are rounded by adding 1.5 * 2^23, whose bits are 0x4b400000, and stay biased by it.
  I sums[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    I q[VECTORS];
    U biased = {};
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      q[v] = (I)(rest[n * VECTORS + v] * inverses[n / 4][n % 4] + 12582912.0f);
      biased += (U)q[v];
    }
    store_low_bytes(out + (m + n) * BLOCK, q);
    sums[n] = once((I)(biased - VECTORS * 0x4b400000u));
  }
  uint8_t* tail = out + tokens * BLOCK + 4 * m;
#pragma GCC unroll 2
  for (int i = 0; i < FOURS; ++i) {
    const I4 sum = N == 1 ? sum_in_four(sums[0]) : sums_of_four(SW_FOUR_OF(sums, 4 * i, N));
    constexpr int LAST = N - (FOURS - 1) * 4;
    if (i + 1 < FOURS)
      store_tails<4>(tail + 16 * i, tokens, scales[i], sum);
    else
      store_tails<LAST>(tail + 16 * i, tokens, scales[i], sum);
  }
  uint8_t* marks = marks_of(a, tile, m, block);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    memcpy(tail + 12 * tokens + 4 * n, &outliers[n].value, 4);
    marks[n] = outliers[n].mark;
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls take(token, Count<N>) for tokens [begin, end), N of a tile at a time, that share their
// marks.
template <class Take>
SW_INLINE void each_some(int begin, int end, const Take& take) {
  constexpr int MOST = TILE < MARKS ? TILE : MARKS;
  while (begin < end) {
    const int part_end = begin - begin % MOST + MOST;
    const int rest = (end < part_end ? end : part_end) - begin;
    if (rest == MOST) {
      take(begin, Count<MOST>());
      begin += MOST;
    } else if (MOST > 4 && rest >= 4) {
      take(begin, Count<4>());
      begin += 4;
    } else {
      take(begin++, Count<1>());
    }
  }
}

void norm_rows(const NormArgs& args, int begin, int end) {
  const int cols = args.out.cols;
  each_some(begin, end, [&](int token, auto count) {
    constexpr int N = decltype(count)::value;
    const float* x[N];
    float inverse[N];
    for (int n = 0; n < N; ++n) {
      x[n] = args.x + (size_t)(args.x_rows ? args.x_rows[token + n] : token + n) * args.x_stride;
      inverse[n] = 1.0f;
    }
    if (args.weight) {
      F squares[N] = {};
      for (int i = 0; i < cols; i += LANES)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const F v = load<F>(x[n] + i);
          squares[n] = fma(v, v, squares[n]);
        }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        inverse[n] = 1.0f / __builtin_sqrtf(sum(squares[n]) / (float)cols + args.eps);
    }
    for (int b = 0; b < cols / BLOCK; ++b) {
      F y[N * VECTORS];
#pragma GCC unroll 32
      for (int i = 0; i < N * VECTORS; ++i) {
        const int n = i / VECTORS, at = b * BLOCK + i % VECTORS * LANES;
        y[i] = load<F>(x[n] + at);
        if (args.weight) y[i] = y[i] * inverse[n] * load<F>(args.weight + at);
      }
      store_blocks<N>(args.out, token, b, y);
    }
  });
}

}  // namespace
