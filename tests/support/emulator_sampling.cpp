// Sampling: the kernel, and beside it the CPU's sampler on the very same logits.
// Sources: csrc/cuda/sampling.cu csrc/model/sampling.cpp
#include <math.h>

#include "../../csrc/cuda/sampling.cuh"
#include "../../csrc/model/sampling.h"
#include "emulator_driver.h"

using namespace servewright;

namespace {

cuda::SamplingArgs arguments(driver::Request& request) {
  cuda::SamplingArgs args = {};
  args.logits = request.input<float>("logits");
  args.logits_stride = static_cast<int>(request.shape("logits")[1]);
  args.vocab = static_cast<int>(request.integer("vocab"));
  args.temperature = request.input<float>("temperature");
  args.top_p = request.input<float>("top_p");
  args.min_p = request.input<float>("min_p");
  args.presence = request.input<float>("presence");
  args.frequency = request.input<float>("frequency");
  args.repetition = request.input<float>("repetition");
  args.top_k = request.input<int32_t>("top_k");
  args.seed = request.input<uint64_t>("seed");
  args.draw = request.input<uint64_t>("draw");
  args.history_ids = request.input<int32_t>("history_ids");
  args.history_starts = request.input<int32_t>("history_starts");
  args.history_prompts = request.input<int32_t>("history_prompts");
  args.bias_ids = request.input<int32_t>("bias_ids");
  args.bias_values = request.input<float>("bias_values");
  args.bias_starts = request.input<int32_t>("bias_starts");
  args.logprobs = request.input<uint8_t>("logprobs");
  args.top_logprobs = request.input<int32_t>("top_logprobs");
  args.top_width = static_cast<int>(request.integer("top_width"));
  const auto rows = request.shape("logits")[0];
  args.token_ids = request.output<int32_t>("token_ids", {rows});
  args.finite = request.output<int32_t>("finite", {rows});
  args.token_logprobs = request.output<float>("token_logprobs", {rows});
  args.top_ids = request.output<int32_t>("top_ids", {rows, args.top_width});
  args.top_values = request.output<float>("top_values", {rows, args.top_width});
  return args;
}

// Scalar forms of csrc/cpu/reductions.h.
void scan(const float* x, int n, ScanResult* result) {
  *result = {-INFINITY, 0, 1};
  for (int i = 0; i < n; ++i) {
    if (!isfinite(x[i])) result->finite = 0;
    if (!(x[i] > result->max)) continue;
    result->max = x[i];
    result->argmax = i;
  }
}

void exponentials(double* x, int n, double max, double temperature) {
  for (int i = 0; i < n; ++i) {
    const double y = (x[i] - max) / temperature;
    x[i] = y < -700.0 ? 0.0 : cuda::exponential(y);
  }
}

}  // namespace

// `launches` times with one workspace, which is never cleared; `parts` and `threads` 0: chosen.
SW_OP(sample) {
  cuda::SamplingArgs args = arguments(request);
  const int rows = static_cast<int>(request.shape("logits")[0]);
  const size_t bytes = cuda::sampling_workspace(args.vocab, rows);
  args.workspace = request.workspace<uint8_t>("workspace", static_cast<int64_t>(bytes));
  args.tickets = request.inout<uint32_t>("tickets");
  const cuda::SamplingGrid grid = {static_cast<int>(request.integer("parts")),
                                   static_cast<int>(request.integer("threads"))};
  for (int64_t i = 0; i < request.integer("launches"); ++i)
    request.check(cuda::sample(args, rows, nullptr, Start::BEHIND, grid));
}

// csrc/model/sampling.cpp itself, as model/runner.cpp calls it.
SW_OP(sample_on_cpu) {
  const cuda::SamplingArgs args = arguments(request);
  Kernels kernels = {};
  kernels.scan = scan;
  kernels.exponentials = exponentials;
  Sampler sampler(kernels, args.vocab);
  for (int64_t row = 0; row < request.shape("logits")[0]; ++row) {
    const float* logits = args.logits + row * args.logits_stride;
    ScanResult result;
    kernels.scan(logits, args.vocab, &result);
    const int32_t history = args.history_starts[row], bias = args.bias_starts[row];
    const SamplingRow params{args.temperature[row],
                             args.top_p[row],
                             args.min_p[row],
                             args.presence[row],
                             args.frequency[row],
                             args.repetition[row],
                             args.top_k[row],
                             args.seed[row],
                             args.draw[row],
                             args.history_ids + history,
                             args.history_starts[row + 1] - history,
                             args.history_prompts[row],
                             args.bias_ids + bias,
                             args.bias_values + bias,
                             args.bias_starts[row + 1] - bias,
                             args.logprobs[row] != 0,
                             args.top_logprobs[row]};
    args.token_ids[row] = sampler.draw(logits, result, params);
    args.finite[row] = result.finite;
    if (params.wants_logprob || params.top_logprobs > 0)
      sampler.logprobs(logits, result, params, args.token_ids[row], &args.token_logprobs[row],
                       args.top_ids + row * args.top_width, args.top_values + row * args.top_width);
  }
}

// The kernel's exponential of -700 <= x <= 0.
SW_OP(sampling_exponential) {
  const double* x = request.input<double>("x");
  const auto count = request.shape("x")[0];
  double* out = request.output<double>("out", {count});
  for (int64_t i = 0; i < count; ++i) out[i] = cuda::exponential(x[i]);
}

// The integers of common/draws.h.
SW_OP(draw_numbers) {
  const float* top_p = request.input<float>("top_p");
  const uint64_t* total = request.input<uint64_t>("total");
  const uint64_t* bits = request.input<uint64_t>("bits");
  const uint64_t* seed = request.input<uint64_t>("seed");
  const auto count = request.shape("top_p")[0];
  uint64_t* wanted = request.output<uint64_t>("wanted", {count});
  uint64_t* place = request.output<uint64_t>("place", {count});
  uint64_t* random = request.output<uint64_t>("random", {count});
  for (int64_t i = 0; i < count; ++i) {
    wanted[i] = wanted_of(top_p[i], total[i]);
    place[i] = place_of(bits[i], total[i]);
    random[i] = random_bits(seed[i], bits[i]);
  }
}

// The kernel's x / divisor.
SW_OP(sampling_quotient) {
  const double* x = request.input<double>("x");
  const double* divisor = request.input<double>("divisor");
  const auto count = request.shape("x")[0];
  double* out = request.output<double>("out", {count});
  for (int64_t i = 0; i < count; ++i) out[i] = cuda::Divisor(divisor[i]).of(x[i]);
}
