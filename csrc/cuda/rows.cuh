// What a prefill does to whole rows between two matrix products.
//
//   residual_norm   x += delta;  out = bf16(x / sqrt(mean(x^2) + eps) * weight)
//   silu_mul        out = bf16(silu(gate) * up)
//
// Shapes   x [tokens, hidden] float32, delta [tokens, hidden] float32 or bf16; gate and up [tokens,
//          2 ffn] of either, gate first; out bf16. hidden and ffn are multiples of 8.
// Work     norm: a block a token; x stays in shared memory between its sum and its scaling. silu:
//          a thread 16 bytes of gate and of up.
// Order    of the squares: a thread's every 1024th four, lanes by halves, warps ascending: hidden
//          alone decides it.
// Numbers  norm: |error| <= 2^-8 |out| (it is bf16) + (hidden / 1024 + 24) 2^-24 |out|, of the x
// that
//          is left in memory. silu: (2^-8 + 2^-20) |out|, and 2^-126 where exp2 flushes.
// Bytes    norm, a token: 4 hidden of x, hidden * delta's size, 2 hidden out, 4 hidden written
// where
//          there is a delta; the weight's 4 hidden from L2. silu: 2 ffn * size in, 2 ffn out.
#pragma once
#include "../common/device.cuh"
#include "../common/prefill_ops.h"

namespace servewright::cuda {

namespace rows {

using namespace servewright::device;

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
using Floats = Vector<float, 4>;
using Halves = Vector<uint32_t, 2>;  // 4 bf16

// Four numbers of what another launch left.
SW_DEVICE Floats load_4(const float* from) { return bit_cast<Floats>(load_16(from)); }
SW_DEVICE Floats widened(uint32_t first, uint32_t second) {
  return {{bit_cast<float>(first << 16), bit_cast<float>(first & 0xffff0000u),
           bit_cast<float>(second << 16), bit_cast<float>(second & 0xffff0000u)}};
}
SW_DEVICE Floats load_4(const bfloat16* from) {
  const auto words = load_vector<Halves>(from);
  return widened(words[0], words[1]);
}

SW_DEVICE Halves packed(const Floats& x) {
  return {{pack_bfloat16(x[0], x[1]), pack_bfloat16(x[2], x[3])}};
}

// The same sum in every thread.
SW_DEVICE float block_sum(float sum, float (&of_warps)[WARPS]) {
  SW_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % 32 == 0) of_warps[thread_index() / 32] = sum;
  barrier();
  float total = of_warps[0];
  SW_UNROLL
  for (int i = 1; i < WARPS; ++i) total += of_warps[i];
  return total;
}

template <class Delta>
SW_KERNEL(THREADS, 8)
void add_and_norm(ResidualNormArgs args) {
  SW_DYNAMIC_SHARED(Floats, kept);
  SW_SHARED(float, of_warps, WARPS);
  const size_t row = static_cast<size_t>(block_index().x) * args.hidden;
  const auto* const delta = static_cast<const Delta*>(args.delta);
  const int fours = args.hidden / 4;
  float squares = 0;
  for (int at = static_cast<int>(thread_index()); at < fours; at += THREADS) {
    auto x = load_vector<Floats>(args.x + row + 4 * at);
    if (delta) {
      const Floats more = load_4(delta + row + 4 * at);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) x[i] += more[i];
      store_vector(args.x + row + 4 * at, x);
    }
    SW_UNROLL
    for (int i = 0; i < 4; ++i) squares = fma(x[i], x[i], squares);
    store_vector(kept + at, x);
  }
  if (!args.out) return;
  const float mean = block_sum(squares, of_warps) / static_cast<float>(args.hidden);
  const float scale = rsqrt(mean + args.eps);
  for (int at = static_cast<int>(thread_index()); at < fours; at += THREADS) {
    auto x = load_vector<Floats>(kept + at);
    const Floats weight = load_4(args.weight + 4 * at);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = x[i] * scale * weight[i];
    store_vector(args.out + row + 4 * at, packed(x));
  }
}

SW_DEVICE Floats silu_times(const Floats& gate, const Floats& up) {
  constexpr float LOG2_E = 1.4426950408889634f;
  Floats out;
  SW_UNROLL
  for (int i = 0; i < 4; ++i) out[i] = gate[i] / (1.0f + exp2(-LOG2_E * gate[i])) * up[i];
  return out;
}

// Grid: tokens, then the blocks of a row.
template <class In>
SW_KERNEL(THREADS, 8)
void silu_rows(const In* in, bfloat16* out, int ffn) {
  constexpr int WIDTH = 16 / static_cast<int>(sizeof(In));
  const size_t token = block_index().x;
  const int column = static_cast<int>(block_index().y * THREADS + thread_index()) * WIDTH;
  if (column >= ffn) return;
  const In* const gate = in + token * 2 * ffn + column;
  bfloat16* const to = out + token * ffn + column;
  const auto gates = load_16(gate), ups = load_16(gate + ffn);
  if constexpr (WIDTH == 4) {
    store_vector(to, packed(silu_times(bit_cast<Floats>(gates), bit_cast<Floats>(ups))));
  } else {
    const Halves first = packed(silu_times(widened(gates[0], gates[1]), widened(ups[0], ups[1])));
    const Halves second = packed(silu_times(widened(gates[2], gates[3]), widened(ups[2], ups[3])));
    store_vector(to, Vector<uint32_t, 4>{{first[0], first[1], second[0], second[1]}});
  }
}

}  // namespace rows

}  // namespace servewright::cuda
