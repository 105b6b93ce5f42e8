// One small kernel for each promise of device.cuh: the emulator runs them, nvcc compiles them.
#include "vocabulary.h"

#include "../../csrc/common/device.cuh"

namespace servewright::vocabulary {
using namespace device;

constexpr unsigned LANES = 32;

SW_DEVICE unsigned global_index() { return block_index().x * block_size() + thread_index(); }

SW_KERNEL(1024, 1) void places_kernel(uint32_t* out) {
  const Index3 block = block_index(), grid = grid_size();
  const unsigned at = ((block.z * grid.y + block.y) * grid.x + block.x) * block_size();
  const uint32_t place[8] = {block.x, block.y, block.z, thread_index(),
                             grid.x,  grid.y,  grid.z,  block_size()};
  for (unsigned i = 0; i < 8; ++i) out[(at + thread_index()) * 8 + i] = place[i];
}

SW_KERNEL(1024, 1) void running_order_kernel(uint32_t* counter, uint32_t* order) {
  order[atomic_add_relaxed(counter, 1u)] = global_index();
}

SW_KERNEL(1024, 1) void block_sums_kernel(const float* x, float* sums) {
  SW_SHARED(float, warps, LANES);
  float sum = x[global_index()];
  for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % LANES == 0) warps[thread_index() / LANES] = sum;
  barrier();
  if (thread_index() != 0) return;
  float total = 0;
  for (unsigned i = 0; i < block_size() / LANES; ++i) total += warps[i];
  sums[block_index().x] = total;
}

SW_KERNEL(LANES, 1) void warp_words_kernel(const double* x, WarpWords out) {
  const unsigned t = thread_index();
  out.pairs[t] = x[t] + shuffle_xor(x[t], 1);
  out.rotated[t] = shuffle(bit_cast<uint64_t>(x[t]), static_cast<int>((t + 5) % LANES));
  out.ballot[t] = vote_ballot(x[t] > 0);
  out.any[t] = vote_any(x[t] > 0);
}

SW_KERNEL(64, 1) void copies_kernel(const uint32_t* x, uint32_t* out, int count) {
  SW_SHARED(uint32_t, tile, 4 * 64);
  const unsigned at = 4 * thread_index();
  copy_async_16(tile + at, x + at, static_cast<int>(at) < count);
  commit_copies();
  wait_copies<0>();
  barrier();
  const unsigned other = 4 * (block_size() - 1 - thread_index());
  store_vector(out + other, load_vector<Vector<uint32_t, 4>>(tile + other));
}

SW_KERNEL(LANES, 1) void fresh_shared_kernel(float* fixed, float* dynamic) {
  SW_SHARED(float, values, LANES);
  SW_DYNAMIC_SHARED(float, others);
  fixed[global_index()] = values[thread_index()];
  dynamic[global_index()] = others[thread_index()];
  values[thread_index()] = others[thread_index()] = 1;  // not for the next block to see
}

SW_KERNEL(64, 1) void totals_kernel(const uint32_t* x, Totals out) {
  SW_SHARED(float, sum, 1);
  if (thread_index() == 0) sum[0] = 0;
  barrier();
  const uint32_t value = x[global_index()];
  atomic_add_relaxed(out.integer, -static_cast<int>(value));
  atomic_add_relaxed(out.wide, uint64_t{value} << 20);
  atomic_add_relaxed(out.real, static_cast<float>(value));
  atomic_max_relaxed(out.largest, value);
  atomic_max_relaxed(out.largest_wide, uint64_t{value} << 20);
  atomic_add_relaxed(sum, static_cast<float>(value));
  barrier();
  if (thread_index() == 0) out.shared[block_index().x] = sum[0];
}

SW_KERNEL(LANES, 1)
void mma_tile_kernel(const bfloat16* a, const bfloat16* b, const float* c, float* d) {
  const unsigned g = thread_index() / 4, t = thread_index() % 4;
  const auto pair = [&](const bfloat16* from, unsigned row, unsigned k) {
    return load_vector<Vector<uint32_t, 1>>(from + row * 16 + k)[0];
  };
  const uint32_t rows[4] = {pair(a, g, 2 * t), pair(a, g + 8, 2 * t), pair(a, g, 2 * t + 8),
                            pair(a, g + 8, 2 * t + 8)};
  const uint32_t columns[2] = {pair(b, g, 2 * t), pair(b, g, 2 * t + 8)};
  const auto place = [&](unsigned i) { return (g + i / 2 * 8) * 8 + 2 * t + i % 2; };
  float sums[4];
  SW_UNROLL
  for (unsigned i = 0; i < 4; ++i) sums[i] = c[place(i)];
  mma_bf16_16x8x16(sums, rows, columns);
  SW_UNROLL
  for (unsigned i = 0; i < 4; ++i) d[place(i)] = sums[i];
}

SW_KERNEL(LANES, 1) void numbers_kernel(const float* x, Numbers out) {
  const unsigned i = global_index();
  out.narrow[i] = to_bfloat16(x[i]);
  out.packed[i] = pack_bfloat16(x[i], -x[i]);
  out.exp2[i] = exp2(x[i]);
  out.rsqrt[i] = rsqrt(absolute(x[i]));
  out.fused[i] = fma(x[i], x[i], 1.0f);
  out.difference[i] = sub_bfloat16x2(out.packed[i], pack_bfloat16(1.0f, 1.0f));
}

SW_KERNEL(LANES, 1) void words_kernel(const uint32_t* x, Words out) {
  const unsigned i = global_index();
  out.nibbles[i] = nibbles_to_bfloat16(x[i], 4);
  out.masked[i] = mask_or(x[i], 0x00ff00ffu, 0x40004000u);
  out.lower[i] = lower_halves(x[i], ~x[i]);
  out.upper[i] = upper_halves(x[i], ~x[i]);
  out.ones[i] = static_cast<uint32_t>(popcount(x[i]));
  out.zeros[i] = static_cast<uint32_t>(leading_zeros(x[i]));
  out.high[i] = multiply_high(x[i], 0x9e3779b9u);
}

SW_KERNEL(LANES, 1) void halves_kernel(const uint16_t* x, float* out) {
  out[global_index()] = half_to_float(x[global_index()]);
}

SW_KERNEL(LANES, 1) void read_at_kernel(const float* x, float* out, int index) {
  if (thread_index() == 7) out[0] = x[index];
}

SW_KERNEL(LANES, 1) void count_up_kernel(uint32_t* x) {
  wait_previous_launch();
  let_next_launch();
  x[global_index()] += 1;
}

SW_KERNEL(LANES, 1) void look_twice_kernel(const uint32_t* x, uint32_t* early, uint32_t* late) {
  const unsigned i = global_index();
  const uint32_t seen = x[i];
  wait_previous_launch();
  early[i] = seen;
  late[i] = x[i];
}

SW_KERNEL(LANES, 1) void spin_for_ever_kernel(uint32_t* out) {
  volatile uint32_t* seen = out;
  while (*seen != 0) {
  }
}

SW_KERNEL(LANES, 1) void overflow_stack_kernel(uint32_t* out) {
  volatile uint32_t large[1 << 20];  // 4 MiB of local memory
  large[thread_index()] = thread_index();
  out[thread_index()] = large[thread_index()];
}

SW_KERNEL(1024, 1) void with_shape_kernel(uint32_t* out) { out[0] = 1; }

int places(uint32_t* out, Grid grid, unsigned threads) {
  return SW_LAUNCH(places_kernel, Index3(grid.x, grid.y, grid.z), threads, 0, nullptr, out);
}
int running_order(uint32_t* counter, uint32_t* order, int blocks, int threads) {
  return SW_LAUNCH(running_order_kernel, blocks, threads, 0, nullptr, counter, order);
}
int block_sums(const float* x, float* sums, int blocks, int threads) {
  return SW_LAUNCH(block_sums_kernel, blocks, threads, 0, nullptr, x, sums);
}
int warp_words(const double* x, const WarpWords& out) {
  return SW_LAUNCH(warp_words_kernel, 1, LANES, 0, nullptr, x, out);
}
int copies(const uint32_t* x, uint32_t* out, int count) {
  return SW_LAUNCH(copies_kernel, 1, 64, 0, nullptr, x, out, count);
}
int fresh_shared(float* fixed, float* dynamic) {
  return SW_LAUNCH(fresh_shared_kernel, 2, LANES, LANES * sizeof(float), nullptr, fixed, dynamic);
}
int totals(const uint32_t* x, const Totals& out, int blocks) {
  return SW_LAUNCH(totals_kernel, blocks, 64, 0, nullptr, x, out);
}
int mma_tile(const bfloat16* a, const bfloat16* b, const float* c, float* d) {
  return SW_LAUNCH(mma_tile_kernel, 1, LANES, 0, nullptr, a, b, c, d);
}
int numbers(const float* x, const Numbers& out, int count) {
  return SW_LAUNCH(numbers_kernel, count / LANES, LANES, 0, nullptr, x, out);
}
int words(const uint32_t* x, const Words& out, int count) {
  return SW_LAUNCH(words_kernel, count / LANES, LANES, 0, nullptr, x, out);
}
int halves(const uint16_t* x, float* out, int count) {
  return SW_LAUNCH(halves_kernel, count / LANES, LANES, 0, nullptr, x, out);
}
int read_at(const float* x, float* out, int index) {
  return SW_LAUNCH(read_at_kernel, 1, LANES, 0, nullptr, x, out, index);
}
int look_beside(uint32_t* x, uint32_t* early, uint32_t* late, int count, Start start) {
  for (int i = 0; i < 2; ++i)
    if (const int status = SW_LAUNCH(count_up_kernel, count / LANES, LANES, 0, nullptr, x))
      return status;
  return SW_LAUNCH_AT(start, look_twice_kernel, count / LANES, LANES, 0, nullptr, x, early, late);
}
int spin_for_ever(uint32_t* out) {
  return SW_LAUNCH(spin_for_ever_kernel, 1, LANES, 0, nullptr, out);
}
int overflow_stack(uint32_t* out) {
  return SW_LAUNCH(overflow_stack_kernel, 1, LANES, 0, nullptr, out);
}
int with_shape(uint32_t* out, Grid grid, unsigned threads, int64_t shared_bytes) {
  return SW_LAUNCH(with_shape_kernel, Index3(grid.x, grid.y, grid.z), threads,
                   static_cast<size_t>(shared_bytes), nullptr, out);
}

}  // namespace servewright::vocabulary
