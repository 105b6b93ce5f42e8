// Launchers of vocabulary.cu, included by both halves.
#pragma once
#include <stdint.h>

#include "../../csrc/common/bfloat16.h"
#include "../../csrc/common/start.h"

namespace servewright::vocabulary {

struct Grid {
  unsigned x, y, z;
};
// One row of 8 numbers a thread: block x, y, z, thread, then the sizes of grid and block.
int places(uint32_t* out, Grid grid, unsigned threads);
// order[i] = the i-th thread to run, over all blocks.
int running_order(uint32_t* counter, uint32_t* order, int blocks, int threads);
// sums[block] = sum of x[block].
int block_sums(const float* x, float* sums, int blocks, int threads);
// Of one warp: sums of pairs by shuffle_xor, a rotation by shuffle, the ballot and any of x > 0.
struct WarpWords {
  double* pairs;
  uint64_t* rotated;
  uint32_t* ballot;
  uint32_t* any;
};
int warp_words(const double* x, const WarpWords& out);
// 16 bytes a thread through shared memory; zeros from `count` on.
int copies(const uint32_t* x, uint32_t* out, int count);
// What fresh shared memory holds, of two blocks.
int fresh_shared(float* fixed, float* dynamic);
// sums and maxima of x over many threads, by atomics.
struct Totals {
  int32_t* integer;
  uint64_t* wide;
  float* real;
  uint32_t* largest;
  uint64_t* largest_wide;
  float* shared;
};
int totals(const uint32_t* x, const Totals& out, int blocks);
// d[16, 8] = a[16, 16] b[8, 16]^T + c.
int mma_tile(const bfloat16* a, const bfloat16* b, const float* c, float* d);

// Elementwise, one thread an element; counts are multiples of 32.
struct Numbers {
  bfloat16* narrow;  // to_bfloat16(x)
  uint32_t* packed;  // pack_bfloat16(x, -x)
  float* exp2;
  float* rsqrt;          // of |x|
  float* fused;          // x * x + 1
  uint32_t* difference;  // sub_bfloat16x2((x, -x), (1, 1))
};
int numbers(const float* x, const Numbers& out, int count);
struct Words {
  uint32_t* nibbles;  // nibbles_to_bfloat16(x, 4)
  uint32_t* masked;   // mask_or(x, 0x00ff00ff, 0x40004000)
  uint32_t* lower;    // lower_halves(x, ~x)
  uint32_t* upper;    // upper_halves(x, ~x)
  uint32_t* ones;
  uint32_t* zeros;
  uint32_t* high;  // of x * 0x9e3779b9
};
int words(const uint32_t* x, const Words& out, int count);
int halves(const uint16_t* x, float* out, int count);

// Two launches count x up, the third looks at it before it waits for the second, and behind.
int look_beside(uint32_t* x, uint32_t* early, uint32_t* late, int count, Start start);

// What no kernel should do.
int read_at(const float* x, float* out, int index);
int spin_for_ever(uint32_t* out);
int overflow_stack(uint32_t* out);
int with_shape(uint32_t* out, Grid grid, unsigned threads, int64_t shared_bytes);

}  // namespace servewright::vocabulary
