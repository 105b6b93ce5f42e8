// A step's inputs and results as plain pointers, and the check that makes them safe to run.
#pragma once
#include <cstdint>
#include <vector>

#include "config.h"

namespace servewright {

// StepBatch and SamplingBatch of models/runner.py; arrays have the lengths written beside them.
struct StepInput {
  int tokens = 0, sequences = 0, samples = 0, table_width = 0;
  const int32_t* token_ids = nullptr;       // [tokens]
  const int32_t* seq_starts = nullptr;      // [sequences + 1]
  const int32_t* context_starts = nullptr;  // [sequences]
  const int32_t* block_tables = nullptr;    // [sequences, table_width]
  const int32_t* sample_tokens = nullptr;   // [samples]
  const float* temperature = nullptr;       // [samples], as all below unless said
  const int32_t* top_k = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const uint64_t* seed = nullptr;
  const uint64_t* draw = nullptr;
  const float* presence = nullptr;
  const float* frequency = nullptr;
  const float* repetition = nullptr;
  int history_count = 0, bias_count = 0;
  const int32_t* history_ids = nullptr;     // [history_count]
  const int32_t* history_starts = nullptr;  // [samples + 1]
  const int32_t* history_prompts = nullptr;
  const int32_t* bias_ids = nullptr;     // [bias_count]
  const float* bias_values = nullptr;    // [bias_count]
  const int32_t* bias_starts = nullptr;  // [samples + 1]
  const uint8_t* logprobs = nullptr;
  const int32_t* top_logprobs = nullptr;
  bool return_logits = false;
};

struct StepOutput {
  int top_width = 0;
  std::vector<int32_t> token_ids;   // [samples]
  std::vector<float> logprobs;      // [samples]
  std::vector<int32_t> top_ids;     // [samples, top_width]
  std::vector<float> top_logprobs;  // [samples, top_width]
  std::vector<float> logits;        // [samples, vocab] if wanted
  bool finite = true;
};

// All checks throw std::invalid_argument that names caller and argument, what was wanted and what
// came.

// After it, every index of the step lies within its array and no KV slot is written twice or by one
// sequence and read by another.
void check_step(const StepInput& in, const Config& config, int num_blocks);

// Its part about the samples, of which `in` must tell only what concerns them.
void check_sampling(const char* caller, const StepInput& in, int vocab);

// What a step brings to a sequence: positions [begin, end); those before `begin` it has.
struct Brought {
  long long begin, end;
};

// Its part about pages: tables [parts, width], called `name`, of pages [0, pages). The caller knows
// that `width` has room for every part. A sequence without positions touches no page.
void check_pages(const char* caller, const char* name, const int32_t* tables, int width,
                 const std::vector<Brought>& parts, int pages);

}  // namespace servewright
