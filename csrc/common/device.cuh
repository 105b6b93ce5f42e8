// The device vocabulary: the only words kernels of csrc/cuda may use.
//
// Two back ends give the words their meaning. device_cuda.cuh: nvcc, for sm_80 and later.
// device_fibers.h: every CUDA thread a fiber on the CPU (csrc/emulator), chosen by -DSW_FIBERS.
// The same .cu file compiles as both. What a word promises is written here, once.
//
// Launching
//   SW_KERNEL(threads, blocks_per_sm) void name(Args args)      a kernel and its launch bounds
//   SW_DEVICE                     an inline function of the device
//   SW_LAUNCH(kernel, grid, block, shared_bytes, stream, args...) -> int, 0 or the CUDA error
//   SW_LAUNCH_RESIDENT(...)       the same, and all blocks of the grid run at once (a kernel whose
//                                 blocks wait for each other; refused when they do not fit)
//   SW_LAUNCH_AT(start, ...)      the same as SW_LAUNCH, or, at Start::BESIDE, already while the
//                                 launch before it in the stream ends (programmatic dependent
//                                 launch). See "Launches side by side". Where device or code is
//                                 below sm_90, as SW_LAUNCH
//                                 A kernel with commas goes in brackets: SW_LAUNCH((f<1, 2>), ...).
//                                 block is a multiple of 32; grid an Index3 or a number.
//   SW_SHARED(T, name, n)         n elements of shared memory, aligned to 16 bytes, uninitialised;
//                                 lambdas capture it by reference
//   SW_DYNAMIC_SHARED(T, name)    the launch's shared_bytes, aligned to 16 bytes
//   SW_UNROLL                     before a loop
//
// Where am I
//   thread_index(), block_size()  unsigned;   block_index(), grid_size()  Index3 {x, y, z}
//
// Meeting. All threads of the block, or all 32 lanes of the warp, take part, at the same word:
//   barrier()                     block; orders memory between its threads
//   warp_barrier()                warp; orders memory between its lanes
//   shuffle(v, lane), shuffle_xor(v, mask)       v of another lane. Orders no memory.
//   vote_any(bool), vote_ballot(bool)            Order no memory.
//   mma_bf16_16x8x16(d, a, b)     D[16x8] += A[16x16] B[16x8], fragments of PTX mma.m16n8k16:
//     g = lane / 4, t = lane % 4, two bf16 a register, the lower half first;
//     a: (row g, k 2t), (row g+8, k 2t), (row g, k 2t+8), (row g+8, k 2t+8)
//     b: (k 2t, column g), (k 2t+8, column g)
//     d: (row g, column 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//     Products are exact; the order and rounding of the sums is the hardware's own.
//
// Memory
//   load_16(p)                    16 bytes of global memory as Vector<uint32_t, 4>, through the
//                                 read-only path: never of bytes that this launch writes
//   load_vector<V>(p), store_vector(p, v)        any Vector, any memory, aligned
//   copy_async_16(shared, global[, valid])       16 bytes; zeros, and no read, when not valid
//   commit_copies()               this thread's open copies become a group
//   wait_copies<N>()              all but this thread's newest N groups have landed, and this
//                                 thread sees them; other threads see them behind a barrier.
//                                 Nothing may be left in flight when a thread ends.
//
// Atomics, on global or shared memory
//   atomic_add_relaxed(p, v)      -> old value; unsigned, int, uint64_t, float
//   atomic_max_relaxed(p, v)      -> old value; unsigned, uint64_t
//   atomic_add_acq_rel(p, v)      -> old value; unsigned. Behind a barrier() it publishes what the
//                                 whole block wrote; in front of one it fetches for the block
//   load_acquire(p), store_release(p, v)         unsigned, of global memory
//   spin_pause()                  in every loop that waits for another thread
//
// Launches side by side. A kernel that is ever launched at Start::BESIDE
//   - reads nothing that the launch before it writes, and writes no global memory, before
//     wait_previous_launch(), at which all its threads arrive before they end. What earlier
//     launches wrote it may read before;
//   - never reads through load_16 what the launch before it writes: not behind the wait either.
//   wait_previous_launch()        until the launch before has ended and all it wrote is seen here;
//                                 at once where nothing runs. Any number of times
//   let_next_launch()             behind the wait: the next launch may start, beside this one, once
//                                 all blocks have said so or ended. Orders no memory. So no more
//                                 than two launches of a stream are under way
//
// Numbers
//   bfloat16, to_float, to_bfloat16 (nearest even), pack_bfloat16(lo, hi), half_to_float
//   mask_or(w, mask, bits)        w & mask | bits, one instruction
//   lower_halves(a, b), upper_halves(a, b)       16 bits of each, a's below b's, one instruction
//   nibbles_to_bfloat16(w, shift) bits 0-3 and 16-19 of w >> shift as two bf16: 128 + q, exact
//   sub_bfloat16x2(a, b)          two bf16 at once, each result rounded once
//   exp2, log2, exp, log, rsqrt, fma, sqrt, minimum, maximum, absolute, floor, bit_cast,
//   popcount, leading_zeros, multiply_high
//     exp2 and rsqrt of float have a relative error of at most 2^-21 on either back end, not the
//     same bits; on the device what is below 2^-126 may become 0. exp, exp2, log and log2 of double
//     are within 2 ulp. fma, sqrt and the operators are correctly rounded on both; no expression is
//     contracted by itself (-ffp-contract=off, -fmad=false).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "bfloat16.h"
#include "start.h"

#if defined(__CUDACC__)
#define SW_ANY __host__ __device__ inline
#define SW_UNROLL _Pragma("unroll")
#elif defined(SW_FIBERS)
#define SW_ANY inline
#define SW_UNROLL
#else
#error "kernels compile with nvcc, or with -DSW_FIBERS for the emulator"
#endif

namespace servewright::device {

using servewright::bfloat16;
using servewright::Start;

struct Index3 {
  unsigned x, y, z;
  SW_ANY constexpr Index3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
      : x(x), y(y), z(z) {}
};

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
  SW_ANY T& operator[](int i) { return v[i]; }
  SW_ANY const T& operator[](int i) const { return v[i]; }
};

}  // namespace servewright::device

#if defined(__CUDACC__)
#include "device_cuda.cuh"
#else
#include "device_fibers.h"
#endif
