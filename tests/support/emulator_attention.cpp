// Decode attention.
// Sources: csrc/cuda/attention.cu
#include "../../csrc/common/step_ops.h"
#include "emulator_driver.h"

using namespace servewright;

// One decode step, `launches` times: as a graph is replayed, with one workspace and one set of
// tickets.
SW_OP(attention) {
  cuda::AttentionArgs args = {};
  args.heads = static_cast<int>(request.integer("heads"));
  args.kv_heads = static_cast<int>(request.integer("kv_heads"));
  args.head_dim = static_cast<int>(request.integer("head_dim"));
  args.max_length = static_cast<int>(request.integer("max_length"));
  args.interleaved_rope = request.integer("interleaved_rope") != 0;
  args.max_blocks = static_cast<int>(request.integer("max_blocks"));
  const auto tokens = request.shape("qkv")[0];
  args.table_width = static_cast<int>(request.shape("page_table")[1]);
  args.qkv = request.input<float>("qkv");
  args.cosines = request.input<float>("cosines");
  args.sines = request.input<float>("sines");
  args.page_table = request.input<int32_t>("page_table");
  args.lengths = request.input<int32_t>("lengths");
  args.pool = request.inout<bfloat16>("pool");
  args.tickets = request.inout<uint32_t>("tickets");
  args.out = request.output<bfloat16>("out", {tokens, args.heads, args.head_dim});
  const size_t bytes = cuda::attention_workspace(args.heads, args.kv_heads, args.head_dim,
                                                 args.max_length, static_cast<int>(tokens));
  args.partials = request.workspace<float>("partials", static_cast<int64_t>(bytes / sizeof(float)));
  for (int64_t i = 0; i < request.integer("launches"); ++i)
    request.check(cuda::attention(args, static_cast<int>(tokens), nullptr));
}
