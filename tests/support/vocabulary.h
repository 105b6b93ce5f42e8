// Launchers of vocabulary.cu, included by both halves.
#pragma once
#include "../../csrc/common/bfloat16.h"

namespace servewright::vocabulary {

int block_sums(const float* x, float* sums, int blocks, int threads);
int mma_tile(const bfloat16* a, const bfloat16* b, float* d);

}  // namespace servewright::vocabulary
