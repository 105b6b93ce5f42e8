#include "prefill.h"

#include <stdexcept>

#include "../common/prefill_ops.h"
#include "runtime.h"

namespace servewright::cuda_module {
namespace {

cuda::Stream to_stream(uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

// float32 or bf16, only read.
const void* read_either(Tensors& tensors, const Object& object, const char* name,
                        std::initializer_list<Size> shape, cuda::Element* type) {
  std::vector<ElementType> types = element_types<float>();
  const size_t floats = types.size();
  for (const ElementType& half : element_types<bfloat16>()) types.push_back(half);
  int which = 0;
  const void* data = tensors.read(object, name, types, shape, 16, &which);
  const bool is_float = static_cast<size_t>(which) < floats;
  *type = is_float ? cuda::Element::FLOAT32 : cuda::Element::BF16;
  return data;
}

// What both ops of a chunk have in common: sizes, pool and pages. T: whether the pool is written.
template <class T>
cuda::PrefillArgs read_chunk(Tensors& tensors, const char* caller, const Object& q_rotated,
                             const Object& pool, const Object& pages, int first_position,
                             bool writes_queries) {
  cuda::PrefillArgs args = {};
  const std::initializer_list<Size> shape = {Size::any(&args.tokens), Size::any(&args.heads),
                                             Size::any(&args.head_dim)};
  args.queries =
      writes_queries
          ? tensors.read<bfloat16>(q_rotated, "q_rotated", shape)
          : const_cast<bfloat16*>(tensors.read<const bfloat16>(q_rotated, "q_rotated", shape));
  if (args.head_dim != 64 && args.head_dim != 128)
    throw std::invalid_argument(std::string(caller) +
                                ": q_rotated must have heads of 64 or 128 dimensions, got " +
                                std::to_string(args.head_dim));
  args.pool = const_cast<bfloat16*>(
      tensors.read<T>(pool, "pool",
                      {Size::at_least(1), 2, Size::at_least(1, &args.kv_heads),
                       cuda::PAGE_POSITIONS, args.head_dim}));
  if (args.heads % args.kv_heads)
    throw std::invalid_argument(
        std::string(caller) + ": q_rotated must have a multiple of pool's " +
        std::to_string(args.kv_heads) + " heads, got " + std::to_string(args.heads));
  if (first_position < 0)
    throw std::invalid_argument(std::string(caller) + ": first_position must be at least 0, got " +
                                std::to_string(first_position));
  args.first_position = first_position;
  const int64_t end = int64_t{first_position} + args.tokens;
  args.pages = tensors.read<const int32_t>(
      pages, "pages", {Size::at_least((end + cuda::PAGE_POSITIONS - 1) / cuda::PAGE_POSITIONS)},
      sizeof(int32_t));
  return args;
}

}  // namespace

void dequantise(const Matrix& matrix, const Object& out, uintptr_t stream) {
  Tensors tensors("dequantise", matrix.device());
  const cuda::PackedMatrix& w = matrix.packed();
  auto* to = tensors.read<bfloat16>(out, "out", {w.rows, w.cols});
  Regions regions = tensors.regions();
  regions.insert(regions.end(), matrix.regions().begin(), matrix.regions().end());
  run("dequantise", matrix.device(), regions,
      [&] { return cuda::dequantise(w, to, to_stream(stream)); });
}

void rope_append(const Object& qkv, const Object& cosines, const Object& sines, const Object& pool,
                 const Object& pages, int first_position, const Object& q_rotated, bool interleaved,
                 uintptr_t stream) {
  Tensors tensors("rope_append");
  cuda::PrefillArgs args =
      read_chunk<bfloat16>(tensors, "rope_append", q_rotated, pool, pages, first_position, true);
  args.qkv = read_either(tensors, qkv, "qkv",
                         {args.tokens, int64_t{args.heads + 2 * args.kv_heads} * args.head_dim},
                         &args.qkv_type);
  const Size positions = Size::at_least(int64_t{first_position} + args.tokens);
  const int pairs = args.head_dim / 2;
  args.cosines = tensors.read<const float>(cosines, "cosines", {positions, pairs});
  args.sines = tensors.read<const float>(sines, "sines", {positions, pairs});
  args.interleaved_rope = interleaved;
  run("rope_append", tensors.device(), tensors.regions(),
      [&] { return cuda::rope_append(args, to_stream(stream)); });
}

void prefill_attention(const Object& q_rotated, const Object& pool, const Object& pages,
                       int first_position, const Object& out, uintptr_t stream) {
  Tensors tensors("prefill_attention");
  cuda::PrefillArgs args = read_chunk<const bfloat16>(tensors, "prefill_attention", q_rotated, pool,
                                                      pages, first_position, false);
  args.out = tensors.read<bfloat16>(out, "out", {args.tokens, int64_t{args.heads} * args.head_dim});
  run("prefill_attention", tensors.device(), tensors.regions(),
      [&] { return cuda::prefill_attention(args, to_stream(stream)); });
}

void residual_norm(const Object& x, const Object& delta, const Object& weight, float eps,
                   const Object& out, uintptr_t stream) {
  Tensors tensors("residual_norm");
  cuda::ResidualNormArgs args = {};
  args.x = tensors.read<float>(x, "x", {Size::any(&args.tokens), Size::any(&args.hidden)});
  if (args.hidden % 8)
    throw std::invalid_argument("residual_norm: x must have rows of a multiple of 8, got " +
                                std::to_string(args.hidden));
  if (!delta.is_none())
    args.delta = read_either(tensors, delta, "delta", {args.tokens, args.hidden}, &args.delta_type);
  args.weight = tensors.read<const float>(weight, "weight", {args.hidden});
  args.eps = eps;
  if (!out.is_none()) args.out = tensors.read<bfloat16>(out, "out", {args.tokens, args.hidden});
  run("residual_norm", tensors.device(), tensors.regions(),
      [&] { return cuda::residual_norm(args, to_stream(stream)); });
}

void silu_mul(const Object& inp, const Object& out, uintptr_t stream) {
  Tensors tensors("silu_mul");
  int tokens = 0, ffn = 0;
  auto* to = tensors.read<bfloat16>(out, "out", {Size::any(&tokens), Size::any(&ffn)});
  if (ffn % 8)
    throw std::invalid_argument("silu_mul: out must have rows of a multiple of 8, got " +
                                std::to_string(ffn));
  cuda::Element type = cuda::Element::FLOAT32;
  const void* from = read_either(tensors, inp, "inp", {tokens, int64_t{2} * ffn}, &type);
  run("silu_mul", tensors.device(), tensors.regions(),
      [&] { return cuda::silu_mul(from, type, to, tokens, ffn, to_stream(stream)); });
}

}  // namespace servewright::cuda_module
