// Attention over a paged pool of the caller's, as one call: for torch. The step never comes here.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace servewright {

// RoPE of q and k, k and v into the pool, causal attention: [tokens, heads * head_dim] float32.
//   qkv         [tokens, (heads + 2 kv_heads) * head_dim] float32, sequence after sequence, of
//               equally many tokens each
//   pool        float16 [pages, kv_heads, 2, 16 * head_dim], K [head_dim][16], V [16][head_dim]
//   page_table  [sequences, width] int32
//   lengths     [sequences] int32, the new tokens counted; 0: an empty slot, its rows are 0
//   cosines     [positions, head_dim / 2] float32, as sines
// Throws std::invalid_argument before any write. The caller's threads share no page.
pybind11::array_t<float> attend(const std::string& variant, const pybind11::object& qkv,
                                const pybind11::array& pool, const pybind11::object& page_table,
                                const pybind11::object& lengths, const pybind11::object& cosines,
                                const pybind11::object& sines, int heads, bool interleaved,
                                int threads);

}  // namespace servewright
