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
  I sums = {};
  for (int v = 0; v < VECTORS; ++v) {
    // Below 2^-126 * 127 the inverse scale is infinite; the clamp keeps q in int8 all the same.
    const I q = minimum(maximum(round_int(x[v]), all(-127)), all(127));
    sums += q;
    x[v] -= __builtin_convertvector(q, F);
    typedef int8_t Narrow __attribute__((vector_size(LANES)));
    store(part + m * BLOCK + v * LANES, __builtin_convertvector(q, Narrow));
  }
  const I4 total = sum_in_four(sums);
  const int32_t minus_8 = (total * -8)[0];
  const float scaled = scale * __builtin_convertvector(total, F4)[0];
  uint8_t* tail = part + tokens * BLOCK;
  memcpy(tail + 4 * m, &scale, 4);
  memcpy(tail + 4 * (tokens + m), &minus_8, 4);
  memcpy(tail + 4 * (2 * tokens + m), &scaled, 4);
}

// Block `block` of `token`: x[0..31] in VECTORS vectors.
SW_INLINE void store_activation_block(const Activations& a, int token, int block, const F* x) {
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

void norm_rows(const NormArgs& args, int begin, int end) {
  const int cols = args.out.cols;
  for (int t = begin; t < end; ++t) {
    const float* x = args.x + (size_t)(args.x_rows ? args.x_rows[t] : t) * args.x_stride;
    float inverse = 1.0f;
    if (args.weight) {
      F squares = {};
      for (int i = 0; i < cols; i += LANES) {
        const F v = load<F>(x + i);
        squares = fma(v, v, squares);
      }
      inverse = 1.0f / __builtin_sqrtf(sum(squares) / (float)cols + args.eps);
    }
    for (int b = 0; b < cols / BLOCK; ++b) {
      F y[VECTORS];
      for (int v = 0; v < VECTORS; ++v) {
        const int i = b * BLOCK + v * LANES;
        y[v] = load<F>(x + i);
        if (args.weight) y[v] = y[v] * inverse * load<F>(args.weight + i);
      }
      store_activation_block(args.out, t, b, y);
    }
  }
}

}  // namespace
