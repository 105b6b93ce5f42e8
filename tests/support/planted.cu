// Small kernels that hold, on demand, one bug each: the test of the emulator's tests.
#include "planted.h"

#include "../../csrc/common/device.cuh"

namespace servewright::planted {
using namespace device;

constexpr unsigned LANES = 32;
constexpr unsigned THREADS = 64;
constexpr unsigned ROW = 4 * THREADS;

SW_KERNEL(THREADS, 1)
void sum_rows_kernel(const float* x, float* sums, unsigned* count, Bug bug) {
  SW_SHARED(float, warps, THREADS / LANES);
  const unsigned row = block_index().x, t = thread_index();
  float sum = 0;
  for (unsigned i = t; i < ROW; i += THREADS) sum += x[row * ROW + i];
  // One row more than there is.
  if (bug == Bug::GLOBAL_READ_PAST_END && row + 1 == grid_size().x)
    sum += 0 * x[(row + 1) * ROW + t];
  if (bug == Bug::DIVERGENT_SHUFFLE) {
    if (t % LANES < 16) sum += shuffle_xor(sum, 16);
  } else {
    sum += shuffle_xor(sum, 16);
  }
  for (int mask = 8; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (t % LANES == 0) warps[t / LANES] = sum;
  if (bug == Bug::SHARED_WRITE_PAST_END && t % LANES == 1) warps[t / LANES + 1] = sum;
  if (bug == Bug::DIVERGENT_BARRIER) {
    if (t < LANES) barrier();
  } else if (bug == Bug::BARRIERS_APART) {
    if (t < LANES)
      barrier();
    else
      barrier();
  } else if (bug != Bug::MISSING_BARRIER) {
    barrier();
  }
  if (t == 0) {
    float total = warps[0] + warps[1];
    if (bug == Bug::SHARED_READ_PAST_END) total += 0 * warps[block_size() / LANES];
    sums[row] = total;
  }
  if (bug == Bug::GLOBAL_WRITE_PAST_END && t == 1) sums[row + 1] = 0;
  if (bug == Bug::WRITE_TO_INPUT && t == 1) const_cast<float*>(x)[row * ROW] = 0;
  if (t == 0) {
    if (bug == Bug::LOST_UPDATE)
      *count += 1;
    else
      atomic_add_relaxed(count, 1u);
  }
}

SW_KERNEL(THREADS, 1)
void sum_columns_kernel(const float* x, float* partials, unsigned* ticket, float* out, Bug bug) {
  SW_SHARED(unsigned, is_last, 1);
  const unsigned row = block_index().x, rows = grid_size().x, t = thread_index();
  // Read ahead of its time: the other rows are not there yet.
  float early = 0;
  if (bug == Bug::READ_ONLY_PATH_TOO_EARLY)
    early = load_16(partials + t / 4 * 4)[0] == 0 ? 1e-9f : 0.f;
  partials[row * THREADS + t] = x[row * THREADS + t] + early;
  if (bug != Bug::MISSING_BARRIER_BEFORE_TICKET) barrier();
  if (t == 0) {
    const unsigned before = bug == Bug::RELAXED_TICKET ? atomic_add_relaxed(ticket, 1u)
                                                       : atomic_add_acq_rel(ticket, 1u);
    is_last[0] = before + 1 == rows;
  }
  barrier();
  if (!is_last[0]) return;
  float sum = 0;
  for (unsigned i = 0; i < rows; ++i) {
    const float* p = partials + i * THREADS + t;
    if (bug == Bug::STALE_READ_ONLY_PATH)
      sum += bit_cast<float>(load_16(partials + i * THREADS + t / 4 * 4)[t % 4]);
    else
      sum += *p;
  }
  out[t] = sum;
}

SW_KERNEL(THREADS, 1) void stream_rows_kernel(const float* x, float* out, int stages, Bug bug) {
  SW_SHARED(float, buffer, 2 * ROW);
  const unsigned t = thread_index();
  const auto fetch = [&](int stage) {
    const float* from = x + stage * ROW + 4 * t + (bug == Bug::MISALIGNED_COPY ? 1 : 0);
    const bool valid = stage < stages;
    if (bug == Bug::COPY_PAST_END)
      copy_async_16(buffer + stage % 2 * ROW + 4 * t, from);
    else
      copy_async_16(buffer + stage % 2 * ROW + 4 * t, valid ? from : x, valid);
    commit_copies();
  };
  fetch(0);
  fetch(1);
  Vector<float, 4> sum = {};
  for (int stage = 0; stage < stages; ++stage) {
    if (bug == Bug::WEAK_WAIT)
      wait_copies<2>();
    else if (bug != Bug::MISSING_WAIT)
      wait_copies<1>();
    if (bug != Bug::MISSING_BARRIER_AFTER_WAIT) barrier();
    // What another thread has copied.
    const auto piece =
        load_vector<Vector<float, 4>>(buffer + stage % 2 * ROW + 4 * (THREADS - 1 - t));
    for (int i = 0; i < 4; ++i) sum[i] += piece[3 - i];
    if (bug != Bug::BUFFER_REUSED_TOO_EARLY) barrier();
    fetch(stage + 2);
  }
  if (bug != Bug::MISSING_WAIT) wait_copies<0>();
  store_vector(out + 4 * t, sum);
}

SW_KERNEL(LANES, 1)
void two_phases_kernel(const float* x, float* between, unsigned* counter, float* out, Bug bug) {
  const unsigned blocks = grid_size().x, count = blocks * LANES;
  const unsigned i = block_index().x * LANES + thread_index();
  between[i] = x[i] * x[i];
  if (bug != Bug::MISSING_GRID_BARRIER) {
    barrier();
    if (thread_index() == 0) {
      const unsigned wanted = bug == Bug::GRID_BARRIER_FOR_TOO_MANY ? blocks + 1 : blocks;
      if (bug == Bug::GRID_BARRIER_WITHOUT_RELEASE)
        atomic_add_relaxed(counter, 1u);
      else
        atomic_add_acq_rel(counter, 1u);
      while (load_acquire(counter) < wanted) spin_pause();
    }
    barrier();
  }
  out[i] = between[count - 1 - i];
}

SW_KERNEL(THREADS, 1) void square_kernel(const float* x, float* between, Bug bug) {
  if (bug == Bug::NEXT_LAUNCH_TOO_EARLY) let_next_launch();
  wait_previous_launch();
  let_next_launch();
  const unsigned i = block_index().x * THREADS + thread_index();
  between[i] = x[i] * x[i];
}

SW_KERNEL(THREADS, 1)
void square_beside_kernel(const float* w, const float* between, float* out, Bug bug) {
  SW_SHARED(float, tile, 2 * THREADS);
  const unsigned t = thread_index(), first = block_index().x * THREADS;
  const unsigned other = grid_size().x * THREADS - 1 - first - t;  // another block's, and back
  const unsigned piece = t % 16 * 4;
  const bool fetches = t < 16, fetches_early = bug == Bug::COPY_BEFORE_WAIT_FOR_LAUNCH;
  if (fetches) copy_async_16(tile + piece, w + first + piece);
  if (fetches && fetches_early) copy_async_16(tile + THREADS + piece, between + first + piece);
  commit_copies();
  float early = 0;
  if (bug == Bug::WAIT_FOR_LAUNCH_TOO_LATE) early = between[other];
  if (bug == Bug::WRITE_BEFORE_WAIT_FOR_LAUNCH) out[first + t] = 0;
  if (bug != Bug::MISSING_WAIT_FOR_LAUNCH) wait_previous_launch();
  if (fetches && !fetches_early) copy_async_16(tile + THREADS + piece, between + first + piece);
  commit_copies();
  float late = 0;
  if (bug == Bug::READ_ONLY_PATH_ON_PREVIOUS_LAUNCH)
    late = bit_cast<float>(load_16(between + first + t / 4 * 4)[t % 4]);
  else if (bug == Bug::WAIT_FOR_LAUNCH_TOO_LATE)
    late = early;
  else
    late = between[other];
  wait_copies<0>();
  barrier();
  out[first + t] = tile[t] * tile[THREADS + t] + 0 * late;
}

SW_KERNEL(THREADS, 1) void rotate_warp_kernel(const float* x, float* out, Bug bug) {
  SW_SHARED(float, values, THREADS);
  const unsigned t = thread_index(), at = block_index().x * THREADS + t;
  values[t] = x[at];
  if (bug == Bug::SHUFFLE_AS_BARRIER)
    shuffle_xor(0, 1);
  else if (bug != Bug::MISSING_WARP_BARRIER)
    warp_barrier();
  out[at] = values[t / LANES * LANES + (t + 1) % LANES];
}

SW_KERNEL(LANES, 1)
void multiply_kernel(const bfloat16* a, const bfloat16* b, float* d, Bug bug) {
  SW_DYNAMIC_SHARED(bfloat16, tile);
  const unsigned t = thread_index(), g = t / 4, q = t % 4;
  const bfloat16* from = bug == Bug::MISALIGNED_VECTOR ? a + 4 : a;
  store_vector(tile + 8 * t, load_16(from + 8 * t));
  if (t < 16) store_vector(tile + 256 + 8 * t, load_16(b + 8 * t));
  warp_barrier();
  const auto pair = [&](unsigned at) { return load_vector<Vector<uint32_t, 1>>(tile + at)[0]; };
  uint32_t rows[4] = {pair(g * 16 + 2 * q), pair((g + 8) * 16 + 2 * q), pair(g * 16 + 2 * q + 8),
                      pair((g + 8) * 16 + 2 * q + 8)};
  if (bug == Bug::WRONG_FRAGMENT) {
    const uint32_t other = rows[1];
    rows[1] = rows[2];
    rows[2] = other;
  }
  const uint32_t columns[2] = {pair(256 + g * 16 + 2 * q), pair(256 + g * 16 + 2 * q + 8)};
  float sums[4] = {};
  mma_bf16_16x8x16(sums, rows, columns);
  SW_UNROLL
  for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sums[i];
}

int sum_rows(const float* x, float* sums, unsigned* count, int rows, Bug bug) {
  return SW_LAUNCH(sum_rows_kernel, rows, THREADS, 0, nullptr, x, sums, count, bug);
}
int sum_columns(const float* x, float* partials, unsigned* ticket, float* out, int rows, Bug bug) {
  return SW_LAUNCH(sum_columns_kernel, rows, THREADS, 0, nullptr, x, partials, ticket, out, bug);
}
int stream_rows(const float* x, float* out, int stages, Bug bug) {
  return SW_LAUNCH(stream_rows_kernel, 1, THREADS, 0, nullptr, x, out, stages, bug);
}
int two_phases(const float* x, float* between, unsigned* counter, float* out, int blocks, Bug bug) {
  if (bug == Bug::NOT_RESIDENT)
    return SW_LAUNCH(two_phases_kernel, blocks, LANES, 0, nullptr, x, between, counter, out, bug);
  return SW_LAUNCH_RESIDENT(two_phases_kernel, blocks, LANES, 0, nullptr, x, between, counter, out,
                            bug);
}
int square_beside(const float* x, const float* w, float* between, float* out, int count, Bug bug) {
  const int status =
      SW_LAUNCH(square_kernel, count / THREADS, THREADS, 0, nullptr, x, between, bug);
  if (status) return status;
  return SW_LAUNCH_AT(Start::BESIDE, square_beside_kernel, count / THREADS, THREADS, 0, nullptr, w,
                      between, out, bug);
}
int rotate_warp(const float* x, float* out, int count, Bug bug) {
  return SW_LAUNCH(rotate_warp_kernel, count / THREADS, THREADS, 0, nullptr, x, out, bug);
}
int multiply(const bfloat16* a, const bfloat16* b, float* d, Bug bug) {
  return SW_LAUNCH(multiply_kernel, 1, LANES, (16 + 8) * 16 * sizeof(bfloat16), nullptr, a, b, d,
                   bug);
}

}  // namespace servewright::planted
