// RoPE of q and k, and k and v into their pages, for callers that have q, k and v already:
//
//   y = x cosine + x' sine', x' the pair's other number, sine' negative at its first
//
// a product and a fused multiply-add, as the qkv projection's epilogue has them: the same bits for
// the same x and angles. Bytes: qkv once, q and 4 head_dim a KV head written once.
#pragma once
#include "projections.h"

namespace {

using servewright::MAX_HEAD_DIM;
using servewright::RopeArgs;

// A head's angles, a number a dimension.
struct HeadAngles {
  alignas(64) float cosines[MAX_HEAD_DIM];
  alignas(64) float sines[MAX_HEAD_DIM];
  alignas(64) float others[MAX_HEAD_DIM];
  int pairs, first_step, other;  // pair i is (i first_step, i first_step + other)

  inline HeadAngles(const RopeArgs& args, int position)
      : pairs(args.kv.head_dim / 2),
        first_step(args.interleaved ? 2 : 1),
        other(args.interleaved ? 1 : pairs) {
    const size_t row = (size_t)position * pairs;
    for (int i = 0; i < pairs; ++i) {
      const int first = i * first_step;
      cosines[first] = cosines[first + other] = args.cosines[row + i];
      sines[first + other] = args.sines[row + i];
      sines[first] = -args.sines[row + i];
    }
  }

  inline void take(const float* x) {
    for (int i = 0; i < pairs; ++i) {
      const int first = i * first_step;
      others[first] = x[first + other];
      others[first + other] = x[first];
    }
  }

  // LANES dimensions of the head taken last.
  inline F turned(const float* x, int d) const {
    return fma(load<F>(others + d), load<F>(sines + d), load<F>(x + d) * load<F>(cosines + d));
  }
};

void rope_append(const RopeArgs& args, int begin, int end) {
  const int dim = args.kv.head_dim, kv_heads = args.kv.kv_heads;
  for (int t = begin; t < end; ++t) {
    const int position = args.positions[t], slot = position % KV_POSITIONS;
    if (position < 0) continue;
    HeadAngles angles(args, position);
    const float* x = args.qkv + (size_t)t * (args.heads + 2 * kv_heads) * dim;
    float* q = args.q_out + (size_t)t * args.heads * dim;
    for (int head = 0; head < args.heads; ++head, x += dim, q += dim) {
      angles.take(x);
      for (int d = 0; d < dim; d += LANES) store(q + d, angles.turned(x, d) * args.q_scale);
    }
    for (int head = 0; head < kv_heads; ++head, x += dim) {
      angles.take(x);
      uint16_t* const k = kv_block(args.kv, args.kv_blocks[t], head) + slot;
      for (int d = 0; d < dim; d += LANES) {
        uint16_t half[LANES];
        store(half, to_half(angles.turned(x, d)));
        for (int i = 0; i < LANES; ++i) k[(d + i) * KV_POSITIONS] = half[i];
      }
    }
    for (int head = 0; head < kv_heads; ++head, x += dim) {
      uint16_t* const v =
          kv_block(args.kv, args.kv_blocks[t], head) + KV_POSITIONS * dim + slot * dim;
      for (int d = 0; d < dim; d += LANES) store(v + d, to_half(load<F>(x + d)));
    }
  }
}

}  // namespace
