// Launcher of attention.cuh.
#include "attention.cuh"

namespace servewright::cuda {
namespace {

constexpr size_t RESERVED_SHARED = 2048;  // of a block: 1 KB the system takes, statistics

constexpr int most_splits(int max_length) {
  return max_length < 1 ? 1 : (max_length + SPLIT_POSITIONS - 1) / SPLIT_POSITIONS;
}

template <int D>
int launch_attention(const AttentionArgs& args, int tokens, Stream stream, Start start) {
  const int items = most_splits(args.max_length) * tokens * args.kv_heads;
  const unsigned blocks = static_cast<unsigned>(items < args.max_blocks ? items : args.max_blocks);
  return SW_LAUNCH_AT(start, paged_attention<D>, blocks, ATTENTION_THREADS,
                      AttentionLayout<D>::BYTES, stream, args, tokens);
}

}  // namespace

size_t attention_workspace(int heads, int kv_heads, int head_dim, int max_length, int tokens) {
  const size_t record = STATISTICS + static_cast<size_t>(heads / kv_heads) * head_dim;
  return sizeof(float) * record * kv_heads * tokens * most_splits(max_length);
}

int attention_blocks(int head_dim, int processors, size_t shared_bytes) {
  const size_t block = RESERVED_SHARED +
                       (head_dim == 128 ? AttentionLayout<128>::BYTES : AttentionLayout<64>::BYTES);
  const int blocks = static_cast<int>(shared_bytes / block);
  return processors * (blocks < 1 ? 1 : blocks > RESIDENT_BLOCKS ? RESIDENT_BLOCKS : blocks);
}

int attention(const AttentionArgs& args, int tokens, Stream stream, Start start) {
  constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
  if (tokens < 0 || tokens > MAX_DECODE_TOKENS || args.max_blocks < 1) return INVALID_VALUE;
  if (args.head_dim != 64 && args.head_dim != 128) return INVALID_VALUE;
  if (args.kv_heads < 1 || args.heads % args.kv_heads) return INVALID_VALUE;
  if (args.heads < args.kv_heads || args.heads > GROUP * args.kv_heads) return INVALID_VALUE;
  if (tokens == 0) return 0;
  return args.head_dim == 128 ? launch_attention<128>(args, tokens, stream, start)
                              : launch_attention<64>(args, tokens, stream, start);
}

}  // namespace servewright::cuda
