// Rows of floats to activations (layout: Activations in common/kernels.h), with or without RMSNorm.
//
//   q[i] = round(x[i] * 127 / max|x|),  scale = max|x| / 127,  a block of 32 at a time
//   fine:  p[i] = round((x[i] / scale - q[i]) * 254),  fine_scale = scale / 254
//   |x[i] - scale q[i]| <= scale / 2 (1 + 2^-20),  with fine_scale p[i] <= scale / 500
//
// A block that holds NaN or infinity gets such a scale, so that the logits of its token say so.
// Norm sums in float over LANES partial sums and then by halves: relative error of the mean square
// below cols / LANES * 2^-24. Bytes: reads 4 cols (and the weight), writes 2.8 cols a token.
#pragma once
#include "simd.h"

namespace {

using servewright::ACTIVATION_BYTES;
using servewright::Activations;
using servewright::BLOCK;
using servewright::FINE_ABOVE;
using servewright::NormArgs;
using servewright::PART_BYTES;

constexpr int VECTORS = BLOCK / LANES;  // of a block

// Tokens of an activation tile: the accumulators that fit the registers beside the weights.
#if defined(SW_AVX512) || defined(SW_AVX2X16)
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
// limits[m] = factor * sum of token m's scales, in block order: the same bits in any tile.
SW_INLINE void sum_scales(const uint8_t* scales, int blocks, int tokens, float factor,
                          float* limits) {
  for (int m = 0; m < tokens; ++m) limits[m] = 0.0f;
  for (int b = 0; b < blocks; ++b, scales += tokens * ACTIVATION_BYTES)
    for (int m = 0; m < tokens; ++m) limits[m] += load_float(scales + 4 * m);
  for (int m = 0; m < tokens; ++m) limits[m] *= factor;
}
// Scale above which a block's fine part counts, for each of a tile's tokens.
SW_INLINE void tile_limits(const Activations& a, int tile, float* limits) {
  const int tokens = tile_tokens(a, tile), blocks = a.cols / BLOCK;
  const uint8_t* scales = tile_q8(a, tile) + tokens * BLOCK;
  const float factor = FINE_ABOVE / (float)blocks;
  if (tokens == TILE)  // a constant: its loops become vectors
    sum_scales(scales, blocks, TILE, factor, limits);
  else
    sum_scales(scales, blocks, tokens, factor, limits);
}
SW_INLINE float* tile_f32(const Activations& a, int tile) {
  return a.f32 + (size_t)tile * TILE * a.cols;
}

// x in units of `scale` as int8, stored as a part of token m; leaves in x what the rounding took.
SW_INLINE void store_part(uint8_t* part, int m, int tokens, float scale, F* x) {
  I sums = {}, q[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    // Below 2^-126 * 127 the inverse scale is infinite; the clamp keeps q in int8 all the same.
    q[v] = minimum(maximum(round_int(x[v]), all(-127)), all(127));
    sums += q[v];
    x[v] -= __builtin_convertvector(q[v], F);
  }
  store_low_bytes(part + m * BLOCK, q);
  const I4 total = sum_in_four(sums);
  const int32_t minus_8 = (total * -8)[0];
  const float scaled = scale * __builtin_convertvector(total, F4)[0];
  uint8_t* tail = part + tokens * BLOCK;
  memcpy(tail + 4 * m, &scale, 4);
  memcpy(tail + 4 * (tokens + m), &minus_8, 4);
  memcpy(tail + 4 * (2 * tokens + m), &scaled, 4);
}

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
    // As integers, magnitudes order like the floats, and NaN is above infinity: it survives.
    I magnitude = (I)x[0] & 0x7fffffff;
    for (int v = 1; v < VECTORS; ++v) magnitude = maximum(magnitude, (I)x[v] & 0x7fffffff);
    const float most = ((F4)largest_in_four(magnitude))[0];
    const float scale = most / 127.0f;
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    F rest[VECTORS];
    for (int v = 0; v < VECTORS; ++v) rest[v] = x[v] * inverse;
    store_part(out, m, tokens, scale, rest);
    for (int v = 0; v < VECTORS; ++v) rest[v] *= 254.0f;  // half a step is 127 fine ones
    store_part(out + tokens * PART_BYTES, m, tokens, scale * (1.0f / 254.0f), rest);
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
  I magnitudes[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    magnitudes[n] = (I)x[n * VECTORS] & 0x7fffffff;
#pragma GCC unroll 4
    for (int v = 1; v < VECTORS; ++v)
      magnitudes[n] = maximum(magnitudes[n], (I)x[n * VECTORS + v] & 0x7fffffff);
  }
  F4 scales[FOURS], inverses[FOURS];
  I4 is_usual = ~I4{};
#pragma GCC unroll 2
  for (int i = 0; i < FOURS; ++i) {
    const I4 most =
        N == 1 ? largest_in_four(magnitudes[0]) : largest_of_four(SW_FOUR_OF(magnitudes, 4 * i, N));
    is_usual &= (most > 0x04000000) & (most < 0x7f800000);
    scales[i] = (F4)most / 127.0f;
    inverses[i] = 127.0f / (F4)most;
  }
  if (a.f32 || _mm_movemask_ps((__m128)is_usual) != 15) {
    F copy[N * VECTORS];
#pragma GCC unroll 32
    for (int i = 0; i < N * VECTORS; ++i) copy[i] = x[i];
    for (int n = 0; n < N; ++n) store_block(a, token + n, block, copy + n * VECTORS);
    return;
  }
  const int tile = token / TILE, m = token - tile * TILE, tokens = tile_tokens(a, tile);
  uint8_t* coarse = tile_q8(a, tile) + (size_t)block * tokens * ACTIVATION_BYTES;
  uint8_t* fine = coarse + tokens * PART_BYTES;
  // Numbers are rounded by adding 1.5 * 2^23, and stay biased by it: 2^16 of their sum is the fine
  // parts', for its bias is 0 there.
  I sums[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    I q[VECTORS], p[VECTORS], fine_sum = {};
    sums[n] = I{};
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const F scaled = x[n * VECTORS + v] * inverses[n / 4][n % 4];
      const F rounded = scaled + 12582912.0f;
      const F rest = (scaled - (rounded - 12582912.0f)) * 254.0f;  // half a step is 127 fine ones
      q[v] = (I)rounded;
      p[v] = (I)(rest + 12582912.0f);
      sums[n] += q[v];
      fine_sum += p[v];
    }
    store_low_bytes(coarse + (m + n) * BLOCK, q);
    store_low_bytes(fine + (m + n) * BLOCK, p);
    sums[n] = once(sums[n] + (fine_sum << 16));
  }
#pragma GCC unroll 2
  for (int i = 0; i < FOURS; ++i) {
    const I4 both =
        (N == 1 ? sum_in_four(sums[0]) : sums_of_four(SW_FOUR_OF(sums, 4 * i, N))) - 0x68000000;
    const I4 sum = both << 16 >> 16;
    constexpr int LAST = N - (FOURS - 1) * 4;
    uint8_t *tail = coarse + tokens * BLOCK + 4 * (m + 4 * i),
            *fine_tail = tail + tokens * PART_BYTES;
    if (i + 1 < FOURS) {
      store_tails<4>(tail, tokens, scales[i], sum);
      store_tails<4>(fine_tail, tokens, scales[i] * (1.0f / 254.0f), (both - sum) >> 16);
    } else {
      store_tails<LAST>(tail, tokens, scales[i], sum);
      store_tails<LAST>(fine_tail, tokens, scales[i] * (1.0f / 254.0f), (both - sum) >> 16);
    }
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls take(token, Count<N>) for tokens [begin, end), N of a tile at a time.
template <class Take>
SW_INLINE void each_some(int begin, int end, const Take& take) {
  while (begin < end) {
    const int tile_end = begin - begin % TILE + TILE;
    const int rest = (end < tile_end ? end : tile_end) - begin;
    if (rest == TILE) {
      take(begin, Count<TILE>());
      begin += TILE;
    } else if (TILE > 4 && rest >= 4) {
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
