#include "config.h"

#include <cmath>

#include "../common/kernels.h"

namespace servewright {

std::string unfit(const Config& c) {
  const auto in_range = [](int x, int low, int high) { return x >= low && x <= high; };
  const auto must = [](const char* name, const std::string& wanted, long long got) {
    return "fused kernels want " + std::string(name) + " " + wanted + ", got " +
           std::to_string(got);
  };
  constexpr int LIMIT = 1 << 24;  // keeps every product of two sizes within 48 bits
  if (!in_range(c.vocab_size, 1, LIMIT)) return must("vocab_size", "in 1..2^24", c.vocab_size);
  if (!in_range(c.layers, 1, 1 << 16)) return must("layers", "in 1..65536", c.layers);
  if (!in_range(c.kv_heads, 1, 1 << 16)) return must("kv_heads", "in 1..65536", c.kv_heads);
  if (!in_range(c.heads, 1, 1 << 16) || c.heads % c.kv_heads)
    return must("heads", "a multiple of kv_heads (" + std::to_string(c.kv_heads) + ")", c.heads);
  if (!in_range(c.head_dim, 16, MAX_HEAD_DIM) || c.head_dim % KV_POSITIONS)
    return must("head_dim", "a multiple of 16 up to 256", c.head_dim);
  if (!in_range(c.hidden_size, BLOCK, LIMIT) || c.hidden_size % BLOCK)
    return must("hidden_size", "a multiple of 32", c.hidden_size);
  if (!in_range(c.ffn_size, BLOCK, LIMIT) || c.ffn_size % BLOCK)
    return must("ffn_size", "a multiple of 32", c.ffn_size);
  if (c.q_size() % BLOCK) return must("heads * head_dim", "a multiple of 32", c.q_size());
  if (!in_range(c.rope_dims, 0, c.head_dim) || c.rope_dims % 2)
    return must("rope_dims", "even and at most head_dim", c.rope_dims);
  if (!c.rope_factors.empty() && int(c.rope_factors.size()) != c.rope_dims / 2)
    return must("rope_factors", "one for each of " + std::to_string(c.rope_dims / 2) + " pairs",
                static_cast<long long>(c.rope_factors.size()));
  for (float factor : c.rope_factors)
    if (!(std::isfinite(factor) && factor != 0.0f))
      return "fused kernels want rope_factors finite and not 0";
  if (!(c.rope_base > 0 && std::isfinite(c.rope_base)))
    return "fused kernels want rope_base above 0 and finite";
  if (!std::isfinite(c.rope_scale)) return "fused kernels want a finite rope_scale";
  if (!(c.norm_eps >= 0 && std::isfinite(c.norm_eps)))
    return "fused kernels want norm_eps of at least 0 and finite";
  if (c.context_length < 1) return must("context_length", "of at least 1", c.context_length);
  return "";
}

}  // namespace servewright
