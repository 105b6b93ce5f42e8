// Drawing tokens from logits: SamplingParams of engine/requests.py, exact as
// models/sampling_reference.py defines it: weights in double, their sums in integers
// (common/draws.h), so that CPU and GPU draw the same tokens in whatever order they add.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "../common/kernels.h"
#include "step.h"

namespace servewright {

// One row of a SamplingBatch.
struct SamplingRow {
  float temperature, top_p, min_p, presence, frequency, repetition;
  int top_k;
  uint64_t seed, draw;
  const int32_t* history;
  int history_length, prompt_length;
  const int32_t* bias_ids;
  const float* bias_values;
  int biases;
  bool wants_logprob;
  int top_logprobs;
};

SamplingRow sampling_row(const StepInput& in, int row);

// A number in [0, 1), a multiple of 2^-53. Philox4x32-10 of Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3" (SC11); key = seed, counter = (draw, 0), low words first.
double uniform(uint64_t seed, uint64_t draw);

// Draws with the scratch of one thread, all of it allocated in the constructor.
class Sampler {
 public:
  Sampler(const Kernels& kernels, int vocab);
  // The token drawn from `logits` [vocab], whose scan is given.
  int32_t draw(const float* logits, const ScanResult& scan, const SamplingRow& row);
  // log softmax of the raw logits: of `token`, and of the `row.top_logprobs` best.
  void logprobs(const float* logits, const ScanResult& scan, const SamplingRow& row, int32_t token,
                float* logprob, int32_t* top_ids, float* top_logprobs);

 private:
  struct Kept {  // weights above `weight`, and those equal to it up to `id`
    double weight;
    int32_t id;
  };
  void adjust(const SamplingRow& row);
  Kept filter(const SamplingRow& row);
  int32_t invert(const Kept& kept, uint64_t random53);

  const Kernels& kernels_;
  int vocab_;
  std::vector<double> weights_;  // [vocab], the adjusted logits before
  std::vector<int32_t> counts_;  // [vocab], zero between calls
  std::vector<int32_t> ids_;     // [vocab]
  std::vector<uint64_t> sums_;
  std::vector<std::pair<double, int32_t>> bucket_;
};

}  // namespace servewright
