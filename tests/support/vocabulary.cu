// One small kernel for each promise of device.cuh; the emulator runs them, nvcc compiles them.
#include "../../csrc/common/device.cuh"
#include "vocabulary.h"

namespace servewright::vocabulary {
using namespace device;

SW_KERNEL(1024, 1) void sum_block(const float* x, float* sums) {
  SW_SHARED(float, warps, 32);
  float sum = x[block_index().x * block_size() + thread_index()];
  for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % 32 == 0) warps[thread_index() / 32] = sum;
  barrier();
  if (thread_index() == 0) {
    float total = 0;
    for (unsigned i = 0; i < block_size() / 32; ++i) total += warps[i];
    sums[block_index().x] = total;
  }
}

SW_KERNEL(32, 1) void multiply_tile(const bfloat16* a, const bfloat16* b, float* d) {
  SW_DYNAMIC_SHARED(bfloat16, tile);
  copy_async_16(tile + thread_index() * 8, a + thread_index() * 8);
  if (thread_index() < 16) copy_async_16(tile + 256 + thread_index() * 8, b + thread_index() * 8);
  commit_copies();
  wait_copies<0>();
  barrier();
  const unsigned g = thread_index() / 4, t = thread_index() % 4;
  const auto pair = [&](unsigned at) { return *reinterpret_cast<const uint32_t*>(tile + at); };
  const uint32_t rows[4] = {pair(g * 16 + 2 * t), pair((g + 8) * 16 + 2 * t),
                            pair(g * 16 + 2 * t + 8), pair((g + 8) * 16 + 2 * t + 8)};
  const uint32_t columns[2] = {pair(256 + g * 16 + 2 * t), pair(256 + g * 16 + 2 * t + 8)};
  float sums[4] = {};
  mma_bf16_16x8x16(sums, rows, columns);
  SW_UNROLL
  for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

int block_sums(const float* x, float* sums, int blocks, int threads) {
  return SW_LAUNCH(sum_block, blocks, threads, 0, nullptr, x, sums);
}
int mma_tile(const bfloat16* a, const bfloat16* b, float* d) {
  return SW_LAUNCH(multiply_tile, 1, 32, (16 + 8) * 16 * sizeof(bfloat16), nullptr, a, b, d);
}

}  // namespace servewright::vocabulary
