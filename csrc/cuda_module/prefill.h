// The ops of prefill over tensors: checked, then one launch.
#pragma once
#include "ops.h"

namespace servewright::cuda_module {

void dequantise(const Matrix& matrix, const Object& out, uintptr_t stream);
void rope_append(const Object& qkv, const Object& cosines, const Object& sines, const Object& pool,
                 const Object& pages, int first_position, const Object& q_rotated, bool interleaved,
                 uintptr_t stream);
void prefill_attention(const Object& q_rotated, const Object& pool, const Object& pages,
                       int first_position, const Object& out, uintptr_t stream);
void residual_norm(const Object& x, const Object& delta, const Object& weight, float eps,
                   const Object& out, uintptr_t stream);
void silu_mul(const Object& inp, const Object& out, uintptr_t stream);

}  // namespace servewright::cuda_module
