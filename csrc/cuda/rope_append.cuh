// RoPE of a chunk's q and k, and its k and v into the sequence's pages, in one launch.
//
//   queries = bf16(RoPE(q) * log2(e) / sqrt(head_dim));   pool[position] = bf16(RoPE(k)), bf16(v)
//
// Shapes   qkv [tokens, (heads + 2 kv_heads) head_dim] float32 or bf16, unrotated; queries [tokens,
//          heads, head_dim] bf16; the pool and its pages as for decode (attention.cuh).
// Work     a block a token. A thread has 4 dimensions and the 4 that lie head_dim / 2 behind, of
//          every 8th (d 128) or 16th (d 64) head: its angles are loaded once.
// Numbers  a product, a fused multiply-add and a rounding to bf16, as decode's attention does it:
//          the same bits for the same qkv. |error| of a query <= 2^-8 |query| + 2^-22 max |q|.
// Bytes    qkv once, queries, k and v written once, a row of cosines and of sines a token (from L1
//          once a thread's heads).
#pragma once
#include "../common/device.cuh"
#include "../common/prefill_ops.h"

namespace servewright::cuda {

namespace prefill {

using namespace servewright::device;

constexpr int ROPE_THREADS = 128;

using Four = float[4];
using Halves = Vector<uint32_t, 2>;  // 4 bf16

SW_DEVICE void load_4(const float* from, Four& to) {
  const auto words = load_16(from);
  SW_UNROLL
  for (int i = 0; i < 4; ++i) to[i] = bit_cast<float>(words[i]);
}
SW_DEVICE void load_4(const bfloat16* from, Four& to) {
  const auto words = load_vector<Halves>(from);
  SW_UNROLL
  for (int i = 0; i < 4; ++i)
    to[i] = bit_cast<float>(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}

SW_DEVICE void store_4(bfloat16* to, const Four& x) {
  store_vector(to, Halves{{pack_bfloat16(x[0], x[1]), pack_bfloat16(x[2], x[3])}});
}

SW_DEVICE void rotate(float& x, float& y, float cosine, float sine) {
  const float first = fma(x, cosine, -(y * sine));
  y = fma(y, cosine, x * sine);
  x = first;
}

// Of one position: the angles of this thread's four pairs.
template <int D>
struct Angles {
  Four cosines, sines;
  bool interleaved;  // pairs (0, 1), (2, 3) of `near`, then of `far`; else (i, i) of both

  SW_DEVICE Angles(const PrefillArgs& args, int position, int chunk)
      : interleaved(args.interleaved_rope) {
    const size_t row = static_cast<size_t>(position) * (D / 2);
    if (interleaved) {
      SW_UNROLL
      for (int half = 0; half < 2; ++half) {
        const size_t at = row + 2 * chunk + half * (D / 4);
        const auto c = load_vector<Vector<float, 2>>(args.cosines + at);
        const auto s = load_vector<Vector<float, 2>>(args.sines + at);
        SW_UNROLL
        for (int i = 0; i < 2; ++i) {
          cosines[2 * half + i] = c[i];
          sines[2 * half + i] = s[i];
        }
      }
    } else {
      load_4(args.cosines + row + 4 * chunk, cosines);
      load_4(args.sines + row + 4 * chunk, sines);
    }
  }

  SW_DEVICE void turn(Four& near, Four& far) const {
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (!interleaved)
        rotate(near[i], far[i], cosines[i], sines[i]);
      else if (i < 2)
        rotate(near[2 * i], near[2 * i + 1], cosines[i], sines[i]);
      else
        rotate(far[2 * i - 4], far[2 * i - 3], cosines[i], sines[i]);
    }
  }
};

template <int D, class T>
SW_KERNEL(ROPE_THREADS, 8)
void rotate_and_append(PrefillArgs args) {
  constexpr int CHUNKS = D / 8, HEADS = ROPE_THREADS / CHUNKS;  // of the block at a time
  constexpr float SCALE = 1.4426950408889634f * (D == 128 ? 0.08838834764831845f : 0.125f);
  const int chunk = static_cast<int>(thread_index() % CHUNKS);
  const size_t token = block_index().x;
  const int position = args.first_position + static_cast<int>(token);
  const int k_heads_end = args.heads + args.kv_heads, all_heads = k_heads_end + args.kv_heads;
  const T* const row = static_cast<const T*>(args.qkv) + token * all_heads * D + 4 * chunk;
  const size_t page = static_cast<size_t>(args.pages[position / PAGE_POSITIONS]);
  const Angles<D> angles(args, position, chunk);
  for (int head = static_cast<int>(thread_index() / CHUNKS); head < all_heads; head += HEADS) {
    Four near, far;
    load_4(row + head * D, near);
    load_4(row + head * D + D / 2, far);
    if (head < k_heads_end) angles.turn(near, far);
    bfloat16* to;
    if (head < args.heads) {
      SW_UNROLL
      for (int i = 0; i < 4; ++i) {
        near[i] *= SCALE;
        far[i] *= SCALE;
      }
      to = args.queries + (token * args.heads + head) * D;
    } else {
      // [page][K, V][kv_heads]: K's heads, then V's, one behind the other.
      to = args.pool + ((page * 2 * args.kv_heads + head - args.heads) * PAGE_POSITIONS +
                        position % PAGE_POSITIONS) *
                           D;
    }
    store_4(to + 4 * chunk, near);
    store_4(to + 4 * chunk + D / 2, far);
  }
}

}  // namespace prefill

}  // namespace servewright::cuda
