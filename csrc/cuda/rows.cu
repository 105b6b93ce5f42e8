// Launchers of rows.cuh.
#include "rows.cuh"

namespace servewright::cuda {
namespace {

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

template <class In>
int launch_silu(const void* in, bfloat16* out, int tokens, int ffn, Stream stream) {
  const int pieces = ffn / (16 / static_cast<int>(sizeof(In)));
  const rows::Index3 grid(tokens, (pieces + rows::THREADS - 1) / rows::THREADS);
  return SW_LAUNCH(rows::silu_rows<In>, grid, rows::THREADS, 0, stream, static_cast<const In*>(in),
                   out, ffn);
}

}  // namespace

int residual_norm(const ResidualNormArgs& args, Stream stream) {
  if (args.tokens < 0 || args.hidden < 8 || args.hidden % 8) return INVALID_VALUE;
  if (args.tokens == 0 || (!args.delta && !args.out)) return 0;
  const unsigned blocks = static_cast<unsigned>(args.tokens);
  const size_t shared = sizeof(float) * static_cast<size_t>(args.hidden);
  if (args.delta_type == Element::BF16)
    return SW_LAUNCH(rows::add_and_norm<bfloat16>, blocks, rows::THREADS, shared, stream, args);
  return SW_LAUNCH(rows::add_and_norm<float>, blocks, rows::THREADS, shared, stream, args);
}

int silu_mul(const void* in, Element in_type, bfloat16* out, int tokens, int ffn, Stream stream) {
  if (tokens < 0 || ffn < 8 || ffn % 8) return INVALID_VALUE;
  if (tokens == 0) return 0;
  return in_type == Element::BF16 ? launch_silu<bfloat16>(in, out, tokens, ffn, stream)
                                  : launch_silu<float>(in, out, tokens, ffn, stream);
}

}  // namespace servewright::cuda
