// A loaded model with its KV cache: step() runs a mixed batch through all layers and draws tokens.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../common/kernels.h"
#include "activations.h"
#include "arena.h"
#include "config.h"
#include "pool.h"
#include "sampling.h"
#include "step.h"
#include "weights.h"

namespace servewright {

class Runner {
 public:
  // Throws std::invalid_argument where the kernels do not fit.
  Runner(const Config& config, int num_blocks, int threads, const Kernels& kernels);

  void load(const std::string& name, const std::string& type, long long first_row,
            const uint8_t* data, long long rows, long long row_bytes);
  void seal();
  // Checks everything before anything is written. Safe from any thread, one step at a time.
  void step(const StepInput& in, StepOutput* out);
  // Commits 2 MiB of the KV cache that coming steps will write first. Whether more is to be done.
  bool commit_ahead();
  // Frees weights and cache; waits for a running step.
  void close();

  const Config& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  int num_blocks() const { return num_blocks_; }
  size_t weights_bytes() const { return weights_bytes_; }

 private:
  struct Wants {  // formats of a kind of activations, over all their consumers
    bool q8 = false, f32 = false;
    void add(const Matrix& w);
  };
  struct Plan;  // of a step
  Activations activations(ActivationBuffer& buffer, const Wants& wants, int tokens, int cols);
  void plan(const StepInput& in, Plan* plan);
  void plan_attention(const StepInput& in, Plan* plan);
  void run(const StepInput& in, const Plan& plan, int thread, StepOutput* out);
  void embed(const StepInput& in, int begin, int end);
  void sample(const StepInput& in, int row, Sampler* sampler, StepOutput* out);
  size_t kv_layer_elements() const;

  const Config config_;
  const Kernels& kernels_;
  const int num_blocks_;
  const int threads_;
  std::mutex mutex_;
  std::unique_ptr<Weights> weights_;
  size_t weights_bytes_ = 0;
  Reservation kv_;
  int32_t kv_blocks_reached_ = 0;  // one more than the highest block that a step has written
  Team team_;
  std::vector<double> rope_frequencies_;  // [rope_dims / 2], radians a position
  Wants hidden_wants_, attention_wants_, ffn_wants_, head_wants_;

  // Workspace of a step.
  Buffer<float> x_, sampled_x_, q_, attended_, cosines_, sines_, logits_, partials_;
  Buffer<int32_t> positions_, kv_blocks_, kv_slots_, partial_slots_, partial_splits_;
  std::vector<AttentionItem> items_, sampled_items_;
  std::vector<uint8_t> is_sampled_;  // [tokens]
  // [threads]: where tokens are few, each thread makes its own copy instead of waiting for one.
  std::vector<ActivationBuffer> hidden_in_, attention_in_, head_in_;
  std::vector<Buffer<float>> rows_;
  ActivationBuffer ffn_in_;
  std::vector<std::unique_ptr<Sampler>> samplers_;
  std::vector<uint8_t> finite_;  // [samples]
};

}  // namespace servewright
