// Projections: packing on the host, then one launch.
// clang-format off
// Sources: csrc/cuda/gemm.cu csrc/cuda/gemm_bf16.cu csrc/cuda/gemm_q8_0.cu csrc/cuda/gemm_q4_0.cu csrc/cuda/gemm_q4_1.cu csrc/cuda/weights.cpp
// clang-format on
#include "emulator_driver.h"

#include "../../csrc/cuda/weights.h"

using namespace servewright;
using servewright::driver::Request;

namespace {

int integer(const Request& request, const char* name) {
  return static_cast<int>(request.integer(name));
}

// Rows of GGUF, `name`, packed.
cuda::PackedMatrix packed(Request& request, const std::string& name) {
  const auto type = static_cast<cuda::Weight>(request.integer("type"));
  const int rows = integer(request, "rows"), cols = integer(request, "cols");
  const auto bytes = static_cast<int64_t>(cuda::packed_bytes(type, rows, cols));
  auto* data = request.workspace<uint8_t>(name + " packed", bytes);
  cuda::pack_weights(type, rows, cols, request.input<uint8_t>(name), data);
  return {data, rows, cols, type};
}

cuda::NormInput norm(Request& request) {
  return {request.input<float>("x"), request.input<float>("norm"),
          static_cast<float>(request.number("eps"))};
}

// What the launch before would leave of "scaled" rows: given, with the sums of squares beside.
cuda::ScaledInput scaled(Request& request) {
  return {request.input<bfloat16>("scaled"), request.input<float>("squares"),
          static_cast<float>(request.number("eps"))};
}

cuda::NextNorm next(Request& request, int tokens, int cols) {
  if (!request.has("next")) return {};
  return {request.input<float>("next"), request.output<bfloat16>("next scaled", {tokens, cols}),
          request.output<float>("next squares", {tokens, cuda::squares_stride(cols)})};
}

cuda::Tiling tiling(const Request& request) {
  return {integer(request, "row_tiles"), integer(request, "token_tiles")};
}

}  // namespace

SW_OP(pack) {
  const auto type = static_cast<cuda::Weight>(request.integer("type"));
  const int rows = integer(request, "rows"), cols = integer(request, "cols");
  const auto bytes = static_cast<int64_t>(cuda::packed_bytes(type, rows, cols));
  cuda::pack_weights(type, rows, cols, request.input<uint8_t>("w"),
                     request.output<uint8_t>("packed", {bytes}));
}

SW_OP(project_normed) {
  const int tokens = integer(request, "tokens"), stride = integer(request, "out_stride");
  const cuda::PackedMatrix w = packed(request, "w");
  auto* const out = request.output<float>("out", {tokens, stride});
  const cuda::Tiling tiles = tiling(request);
  request.check(request.has("scaled")
                    ? cuda::project_normed(w, scaled(request), out, stride, tokens, nullptr, tiles)
                    : cuda::project_normed(w, norm(request), out, stride, tokens, nullptr, tiles));
}

SW_OP(project_residual) {
  const int tokens = integer(request, "tokens");
  request.check(cuda::project_residual(
      packed(request, "w"), request.input<bfloat16>("in"), request.inout<float>("x"), tokens,
      nullptr, tiling(request), Start::BEHIND, next(request, tokens, integer(request, "rows"))));
}

SW_OP(gate_up) {
  const int tokens = integer(request, "tokens"), rows = integer(request, "rows");
  const cuda::PackedMatrix gate = packed(request, "w"), up = packed(request, "up");
  auto* const out = request.output<bfloat16>("out", {tokens, rows});
  const cuda::Tiling tiles = tiling(request);
  request.check(request.has("scaled")
                    ? cuda::gate_up(gate, up, scaled(request), out, tokens, nullptr, tiles)
                    : cuda::gate_up(gate, up, norm(request), out, tokens, nullptr, tiles));
}
