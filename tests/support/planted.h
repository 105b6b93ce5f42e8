// Launchers of planted.cu, included by both halves.
#pragma once
#include <stdint.h>

#include "../../csrc/common/bfloat16.h"

namespace servewright::planted {

// Each is one fault of one kernel; NONE is the kernel as it should be. test_planted_bugs.py has the
// same names and says by which means each is found.
enum class Bug : int64_t {
  NONE,
  // sum_rows
  MISSING_BARRIER,
  DIVERGENT_BARRIER,
  BARRIERS_APART,
  DIVERGENT_SHUFFLE,
  GLOBAL_READ_PAST_END,
  GLOBAL_WRITE_PAST_END,
  SHARED_WRITE_PAST_END,
  SHARED_READ_PAST_END,
  WRITE_TO_INPUT,
  LOST_UPDATE,
  // sum_columns
  MISSING_BARRIER_BEFORE_TICKET,
  RELAXED_TICKET,
  STALE_READ_ONLY_PATH,
  READ_ONLY_PATH_TOO_EARLY,
  // stream_rows
  MISSING_WAIT,
  WEAK_WAIT,
  MISSING_BARRIER_AFTER_WAIT,
  BUFFER_REUSED_TOO_EARLY,
  COPY_PAST_END,
  MISALIGNED_COPY,
  // two_phases
  MISSING_GRID_BARRIER,
  GRID_BARRIER_WITHOUT_RELEASE,
  GRID_BARRIER_FOR_TOO_MANY,
  NOT_RESIDENT,
  // square_beside
  MISSING_WAIT_FOR_LAUNCH,
  WAIT_FOR_LAUNCH_TOO_LATE,
  COPY_BEFORE_WAIT_FOR_LAUNCH,
  WRITE_BEFORE_WAIT_FOR_LAUNCH,
  READ_ONLY_PATH_ON_PREVIOUS_LAUNCH,
  NEXT_LAUNCH_TOO_EARLY,
  // rotate_warp
  MISSING_WARP_BARRIER,
  SHUFFLE_AS_BARRIER,
  // multiply
  WRONG_FRAGMENT,
  MISALIGNED_VECTOR,
};

// sums[row] = sum of x[row], count = number of rows.  x: [rows, 256].
int sum_rows(const float* x, float* sums, unsigned* count, int rows, Bug bug);
// out[column] = sum of x[:, column], in one launch: the last block adds up.  x: [rows, 64].
int sum_columns(const float* x, float* partials, unsigned* ticket, float* out, int rows, Bug bug);
// out[i] = sum over stages of x[stage, 255 - i], through double-buffered async copies.
int stream_rows(const float* x, float* out, int stages, Bug bug);
// out[i] = x[i]^2 of the element opposite, blocks of 32: a persistent kernel of two phases.
int two_phases(const float* x, float* between, unsigned* counter, float* out, int blocks, Bug bug);
// out[i] = w[i] x[i]^2 in two launches side by side, of blocks of 64; the first leaves the squares.
int square_beside(const float* x, const float* w, float* between, float* out, int count, Bug bug);
// out[i] = x[i + 1 within its 32].
int rotate_warp(const float* x, float* out, int count, Bug bug);
// d[16, 8] = a[16, 16] b[8, 16]^T.
int multiply(const bfloat16* a, const bfloat16* b, float* d, Bug bug);

}  // namespace servewright::planted
