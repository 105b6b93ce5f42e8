// The model a runner is made for: LlamaConfig of models/runner.py.
#pragma once
#include <string>
#include <vector>

namespace servewright {

struct Config {
  int vocab_size = 0;
  int hidden_size = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn_size = 0;
  float norm_eps = 0;
  double rope_base = 0;
  int rope_dims = 0;
  double rope_scale = 1;
  std::vector<float> rope_factors;  // empty: none
  int context_length = 0;
  bool tied_head = false;

  int q_size() const { return heads * head_dim; }
  int kv_size() const { return kv_heads * head_dim; }
};

// Why the kernels cannot run this model, one sentence; empty if they can.
std::string unfit(const Config& config);

}  // namespace servewright
