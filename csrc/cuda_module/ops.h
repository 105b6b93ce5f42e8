// Single ops over tensors: checked, then one launch.
#pragma once
#include <vector>

#include "model.h"

namespace servewright::cuda_module {

using Object = py::object;

void embed(const Matrix& matrix, const Object& token_ids, const Object& out, uintptr_t stream);
void project_normed(const Matrix& matrix, const Object& x, const Object& norm, float eps,
                    const Object& out, uintptr_t stream);
void project_residual(const Matrix& matrix, const Object& inp, const Object& x, uintptr_t stream);
void gate_up(const Matrix& gate, const Matrix& up, const Object& x, const Object& norm, float eps,
             const Object& out, uintptr_t stream);
int64_t attention_workspace(int heads, int kv_heads, int head_dim, int max_length, int tokens);
// A new token of each sequence: RoPE, append to the pool, attention.
void attention(const Object& qkv, const Object& cosines, const Object& sines, const Object& pool,
               const Object& page_table, const Object& lengths, const Object& tickets,
               const Object& partials, const Object& out, int max_length, bool interleaved,
               uintptr_t stream);
int64_t sampling_workspace(int vocab, int rows);
void sample(const Object& logits, int vocab, const Sampling& sampling, const Object& workspace,
            uintptr_t stream);
int64_t mlp_workspace(const std::vector<int>& widths, int tokens);
void mlp(const Object& x, const py::sequence& weights, const py::sequence& biases,
         const py::sequence& activations, const Object& out, const Object& workspace,
         uintptr_t stream);

}  // namespace servewright::cuda_module
