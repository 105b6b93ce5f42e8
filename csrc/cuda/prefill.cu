// Launchers of rope_append.cuh and prefill_attention.cuh.
#include "prefill_attention.cuh"
#include "rope_append.cuh"

namespace servewright::cuda {
namespace {

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

bool is_supported(const PrefillArgs& args) {
  return (args.head_dim == 64 || args.head_dim == 128) && args.kv_heads >= 1 &&
         args.heads >= args.kv_heads && args.heads % args.kv_heads == 0 && args.tokens >= 0 &&
         args.first_position >= 0;
}

template <int D>
int launch_rope(const PrefillArgs& args, Stream stream) {
  const unsigned blocks = static_cast<unsigned>(args.tokens);
  if (args.qkv_type == Element::BF16)
    return SW_LAUNCH((prefill::rotate_and_append<D, bfloat16>), blocks, prefill::ROPE_THREADS, 0,
                     stream, args);
  return SW_LAUNCH((prefill::rotate_and_append<D, float>), blocks, prefill::ROPE_THREADS, 0, stream,
                   args);
}

// H100 SXM. Elsewhere only the balance of the choice suffers.
constexpr int MULTIPROCESSORS = 132;
constexpr int LONG_CONTEXT = 2048;

template <int D, int ROW_TILES>
int launch_tiled(const PrefillArgs& args, Stream stream) {
  using Plan = prefill::AttentionPlan<D, ROW_TILES>;
  const int rows = args.tokens * (args.heads / args.kv_heads);
  const prefill::Index3 grid(args.kv_heads, (rows + Plan::ROWS - 1) / Plan::ROWS);
  return SW_LAUNCH((prefill::attend_chunk<D, ROW_TILES>), grid, prefill::ATTENTION_THREADS,
                   Plan::BYTES, stream, args);
}

// Two tiles a warp read shared memory half as often; one makes twice as many, shorter blocks. Where
// the context is long, blocks on half of the multiprocessors already take less time.
int chosen_row_tiles(const PrefillArgs& args) {
  constexpr int ROWS = prefill::AttentionPlan<64, 2>::ROWS;
  const int rows = args.tokens * (args.heads / args.kv_heads);
  const int blocks = (rows + ROWS - 1) / ROWS * args.kv_heads;
  const bool is_long = args.first_position + args.tokens >= LONG_CONTEXT;
  return blocks >= (is_long ? MULTIPROCESSORS / 2 : MULTIPROCESSORS) ? 2 : 1;
}

template <int D>
int launch_attention(const PrefillArgs& args, int row_tiles, Stream stream) {
  return row_tiles == 2 ? launch_tiled<D, 2>(args, stream) : launch_tiled<D, 1>(args, stream);
}

}  // namespace

int rope_append(const PrefillArgs& args, Stream stream) {
  if (!is_supported(args)) return INVALID_VALUE;
  if (args.tokens == 0) return 0;
  return args.head_dim == 128 ? launch_rope<128>(args, stream) : launch_rope<64>(args, stream);
}

int prefill_attention(const PrefillArgs& args, Stream stream, int row_tiles) {
  if (!is_supported(args) || row_tiles < 0 || row_tiles > 2) return INVALID_VALUE;
  if (args.tokens == 0) return 0;
  if (row_tiles == 0) row_tiles = chosen_row_tiles(args);
  return args.head_dim == 128 ? launch_attention<128>(args, row_tiles, stream)
                              : launch_attention<64>(args, row_tiles, stream);
}

}  // namespace servewright::cuda
