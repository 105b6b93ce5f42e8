// What prefill does between torch's matrix products.
// clang-format off
// Sources: csrc/cuda/prefill.cu csrc/cuda/rows.cu csrc/cuda/dequantise.cu csrc/cuda/weights.cpp
// clang-format on
#include "../../csrc/common/prefill_ops.h"
#include "../../csrc/cuda/weights.h"
#include "emulator_driver.h"

using namespace servewright;
using servewright::driver::Request;

namespace {

int integer(const Request& request, const char* name) {
  return static_cast<int>(request.integer(name));
}

// float32, or bf16 where `name` says so.
const void* product(Request& request, const char* name, cuda::Element type) {
  if (type == cuda::Element::BF16) return request.input<bfloat16>(name);
  return request.input<float>(name);
}

cuda::Element element(const Request& request) {
  return static_cast<cuda::Element>(request.integer("element"));
}

cuda::PrefillArgs chunk(Request& request) {
  cuda::PrefillArgs args = {};
  args.pages = request.input<int32_t>("pages");
  args.first_position = integer(request, "first_position");
  args.tokens = integer(request, "tokens");
  args.heads = integer(request, "heads");
  args.kv_heads = integer(request, "kv_heads");
  args.head_dim = integer(request, "head_dim");
  args.interleaved_rope = request.integer("interleaved_rope") != 0;
  return args;
}

}  // namespace

SW_OP(dequantise) {
  const auto type = static_cast<cuda::Weight>(request.integer("type"));
  const int rows = integer(request, "rows"), cols = integer(request, "cols");
  const auto bytes = static_cast<int64_t>(cuda::packed_bytes(type, rows, cols));
  auto* data = request.workspace<uint8_t>("packed", bytes);
  cuda::pack_weights(type, rows, cols, request.input<uint8_t>("w"), data);
  request.check(cuda::dequantise({data, rows, cols, type},
                                 request.output<bfloat16>("out", {rows, cols}), nullptr));
}

SW_OP(rope_append) {
  cuda::PrefillArgs args = chunk(request);
  args.qkv_type = element(request);
  args.qkv = product(request, "qkv", args.qkv_type);
  args.cosines = request.input<float>("cosines");
  args.sines = request.input<float>("sines");
  args.pool = request.inout<bfloat16>("pool");
  args.queries = request.output<bfloat16>("queries", {args.tokens, args.heads, args.head_dim});
  request.check(cuda::rope_append(args, nullptr));
}

SW_OP(prefill_attention) {
  cuda::PrefillArgs args = chunk(request);
  // The kernel reads both only; the arguments are rope_append's too.
  args.pool = const_cast<bfloat16*>(request.input<bfloat16>("pool"));
  args.queries = const_cast<bfloat16*>(request.input<bfloat16>("queries"));
  args.out = request.output<bfloat16>("out", {args.tokens, args.heads, args.head_dim});
  request.check(cuda::prefill_attention(args, nullptr, integer(request, "row_tiles")));
}

SW_OP(residual_norm) {
  cuda::ResidualNormArgs args = {};
  args.tokens = integer(request, "tokens");
  args.hidden = integer(request, "hidden");
  args.eps = static_cast<float>(request.number("eps"));
  args.delta_type = element(request);
  args.x = request.inout<float>("x");
  args.weight = request.input<float>("weight");
  if (request.has("delta")) args.delta = product(request, "delta", args.delta_type);
  if (request.integer("norm"))
    args.out = request.output<bfloat16>("out", {args.tokens, args.hidden});
  request.check(cuda::residual_norm(args, nullptr));
}

SW_OP(silu_mul) {
  const int tokens = integer(request, "tokens"), ffn = integer(request, "ffn");
  const cuda::Element type = element(request);
  request.check(cuda::silu_mul(product(request, "in", type), type,
                               request.output<bfloat16>("out", {tokens, ffn}), tokens, ffn,
                               nullptr));
}
