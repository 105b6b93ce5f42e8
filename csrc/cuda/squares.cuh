// Where the sums of squares of step_ops.h lie, for kernels.
#pragma once
#include "../common/device.cuh"
#include "../common/step_ops.h"

namespace servewright::cuda {

// Of a token's row of `cols` columns: the sum of columns 16 i .. 16 i + 15.
SW_DEVICE size_t squares_at(int token, int i, int cols) {
  const int stride =
      (cols + 4 * SQUARES_COLUMNS - 1) / (4 * SQUARES_COLUMNS) * 4;  // squares_stride
  return static_cast<size_t>(token) * stride + i;
}

}  // namespace servewright::cuda
