// Decode attention of one new token a sequence, over a paged bf16 KV pool, in one launch:
//
//   q, k <- RoPE(q, k);   pool[length - 1] <- k, v;   out = softmax(q K^T / sqrt(head_dim)) V
//
// Shapes   qkv [tokens, (heads + 2 kv_heads) head_dim] float32, unrotated; out [tokens, heads
//          head_dim] bf16; cosines, sines [position, head_dim / 2] float32, one a pair (1 and 0
//          where a model leaves dimensions unrotated). head_dim 64 or 128, heads / kv_heads <= 8,
//          tokens <= 64.
// Pool     [page][K, V][kv_heads][16][head_dim] bf16, page_table [tokens, table_width]. `lengths`
//          count the new token; length 0 is an empty slot: its row of `out` becomes 0, no page is
//          touched. No position beyond a length and no table entry beyond its pages is read.
// Fused    RoPE, append, scores, softmax, values, combine: 6 launches that write and read q, k, v.
// Work     an item is a split of 256 positions of one KV head: 8 warps, 32 positions each. Blocks
//          take items in turn, so any grid does; blocks without an item leave at once. The last
//          block to finish a sequence's KV head, by a ticket of its own splits, merges them and
//          resets the ticket for the next launch.
// Beside   a block's first pages are fetched while the launch before ends, which wrote qkv.
// Order    pages of a warp ascending, warps 0..7, splits ascending: the length alone decides it.
//          Batch, grid, pages and max_length do not change a sequence's bits.
// Numbers  q and the weights e^(s - max) enter the tensor cores as sums of two bf16, each to 2^-16;
//          sums are float32. |error| <= 2^-8 |out| (it is bf16) + 2^-14 (1 + S) max |v|, S the
//          largest sum of |q_d k_d| / sqrt(head_dim) of a position.
// Bytes    4 head_dim (length - 1) a KV head from memory, once. From L2: qkv (q once a split), two
//          table rows, out; with several splits twice 4 (16 + group head_dim) a split and KV head.
// Source   split-KV with log-sum-exp merge: Dao et al., Flash-Decoding (2023); the heads of a group
//          in one tile: FlashInfer (Ye et al., 2025); fragments: PTX ISA 9.0, mma.m16n8k16.
#pragma once
#include "attention_pages.cuh"

namespace servewright::cuda {

constexpr int RESIDENT_BLOCKS = 2;     // by registers, 128 a thread; 128 KB of copies in flight
constexpr int STATISTICS = 2 * GROUP;  // floats of a record: (max, sum) of each head, then values

// Values of 8 dimensions of one head, merged in the order they are added.
struct Merged {
  float values[8];
  Softmax total;

  SW_DEVICE Merged()
      : values{}, total{NOTHING, 0} {}

  SW_DEVICE void add(float weight, float sum, const Floats& first, const Floats& second) {
    total.sum = fma(sum, weight, total.sum);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[i] = fma(first[i], weight, values[i]);
      values[4 + i] = fma(second[i], weight, values[4 + i]);
    }
  }

  // To a maximum that is not below the one so far.
  SW_DEVICE void rescale(float max) {
    const float before = exp2(total.max - max);
    total = {max, total.sum * before};
    SW_UNROLL
    for (int i = 0; i < 8; ++i) values[i] *= before;
  }

  SW_DEVICE void write(bfloat16* out) const {
    const float inverse = 1.0f / total.sum;
    Words row;
    SW_UNROLL
    for (int i = 0; i < 4; ++i)
      row[i] = pack_bfloat16(values[2 * i] * inverse, values[2 * i + 1] * inverse);
    store_vector(out, row);
  }
};

// A thread's share of q and of the result: 8 dimensions of one head of the group. Threads with a
// head beyond the group have none.
template <int D>
struct AttentionShare {
  using Layout = AttentionLayout<D>;

  const AttentionArgs& args;
  int thread, head, chunk, group;
  int record_words;  // of a split's result: statistics, then [group][half chunk][chunk] quads

  SW_DEVICE explicit AttentionShare(const AttentionArgs& args)
      : args(args),
        thread(static_cast<int>(thread_index())),
        head(static_cast<int>(thread_index() / Layout::CHUNKS)),
        chunk(static_cast<int>(thread_index() % Layout::CHUNKS)),
        group(args.heads / args.kv_heads),
        record_words((STATISTICS + group * D) / 4) {}

  SW_DEVICE bool is_used() const { return head < group; }

  SW_DEVICE bfloat16* out(const AttentionItem& item) const {
    const size_t row = static_cast<size_t>(item.token) * args.heads + item.kv_head * group + head;
    return args.out + row * D + 8 * chunk;
  }

  SW_DEVICE Words* record(int number) const {
    return reinterpret_cast<Words*>(args.partials) + static_cast<size_t>(number) * record_words;
  }

  // q, rotated and scaled, as two bf16 a number, in the order of the score product's fragments:
  // step s of lane 4 head + t has dimensions 32 (s / 2) + 8t + 4 (s % 2) + {0..3}, upper and lower
  // parts of each pair in turn. Heads beyond the group are 0.
  SW_DEVICE void leave_query(const AttentionItem& item, Words* query) const {
    if (head >= GROUP) return;
    Words parts[2] = {};
    if (is_used()) {
      float x[8];
      rotated_chunk<D>(args, item.length - 1,
                       qkv_head(args, item.token, item.kv_head * group + head, D), chunk, x);
      const float scale = LOG2_E * (D == 128 ? 0.08838834764831845f : 0.125f);
      SW_UNROLL
      for (int i = 0; i < 4; ++i)
        split_pair(x[2 * i] * scale, x[2 * i + 1] * scale, &parts[i / 2][i % 2 * 2],
                   &parts[i / 2][i % 2 * 2 + 1]);
    }
    const int step = chunk / 4 * 2, lane = 4 * head + chunk % 4;
    store_vector(query + query_place(step, lane), parts[0]);
    store_vector(query + query_place(step + 1, lane), parts[1]);
  }

  SW_DEVICE Merged merged_warps(const Words* shared, const Softmax* statistics) const {
    Merged merged;
    for (int warp = 0; warp < ATTENTION_WARPS; ++warp)
      merged.total.max = maximum(merged.total.max, statistics[warp * GROUP + head].max);
    for (int warp = 0; warp < ATTENTION_WARPS; ++warp) {
      const Softmax& part = statistics[warp * GROUP + head];
      const Words* row =
          shared + warp * Layout::WARP_WORDS + head * (D / 4) + swizzled_chunk(head, chunk);
      merged.add(exp2(part.max - merged.total.max), part.sum, load_vector<Floats>(row),
                 load_vector<Floats>(row + Layout::CHUNKS));
    }
    return merged;
  }

  SW_DEVICE void leave_record(const Merged& merged, Words* to) const {
    Floats parts[2];
    SW_UNROLL
    for (int i = 0; i < 8; ++i) parts[i / 4][i % 4] = merged.values[i];
    Words* const values = to + STATISTICS / 4 + head * (D / 4) + chunk;
    store_vector(values, parts[0]);
    store_vector(values + Layout::CHUNKS, parts[1]);
    if (chunk == 0) store_vector(reinterpret_cast<Softmax*>(to) + head, merged.total);
  }

  // The records of all splits, as many at a time as the stages hold. By the whole block.
  SW_DEVICE void add_splits(const AttentionItem& item, Words* shared, Merged* to) const {
    const int room = Layout::STAGE_WORDS / record_words;
    for (int done = 0; done < item.splits; done += room) {
      const int count = minimum(room, item.splits - done);
      for (int i = 0; i < count; ++i) {
        const Words* from = record((item.first_slot + done + i) * args.kv_heads + item.kv_head);
        for (int word = thread; word < record_words; word += ATTENTION_THREADS)
          copy_async_16(shared + i * record_words + word, from + word);
      }
      commit_copies();
      wait_copies<0>();
      barrier();
      for (int i = 0; is_used() && i < count; ++i) {
        const Words* part = shared + i * record_words;
        const Words* row = part + STATISTICS / 4 + head * (D / 4) + chunk;
        const Softmax& one = reinterpret_cast<const Softmax*>(part)[head];
        to->rescale(maximum(to->total.max, one.max));
        to->add(exp2(one.max - to->total.max), one.sum, load_vector<Floats>(row),
                load_vector<Floats>(row + Layout::CHUNKS));
      }
      barrier();
    }
  }
};

template <int D>
SW_KERNEL(ATTENTION_THREADS, RESIDENT_BLOCKS)
void paged_attention(AttentionArgs args, int tokens) {
  using Layout = AttentionLayout<D>;
  SW_DYNAMIC_SHARED(Words, shared);
  SW_SHARED(Softmax, statistics, ATTENTION_WARPS * GROUP);
  SW_SHARED(unsigned, arrived, 1);
  Words* const query = shared + Layout::STAGE_WORDS;
  Words* const appended = query + Layout::QUERY_WORDS;
  const int lane = static_cast<int>(thread_index() % 32);
  // Through a shuffle, so that nvcc sees that it is the same in the whole warp.
  const int warp = shuffle(static_cast<int>(thread_index() / 32), 0);
  const AttentionShare<D> share(args);
  const Slots slots(args, tokens, lane);
  const int items = slots.count * args.kv_heads;

  for (int number = block_index().x; number < items; number += grid_size().x) {
    const AttentionItem item = slots.item(number, args.kv_heads);
    if (item.length == 0) {
      wait_previous_launch();
      if (share.is_used()) store_vector(share.out(item), Words{});
      continue;
    }
    AttentionWarp<D> work(args, item, shared, warp, lane);
    for (int i = 0; i < Layout::STAGES; ++i)
      for (int which = 0; which < 2; ++which) work.fetch(i, which);
    wait_previous_launch();  // lengths, pages and cached positions are not of the launch before
    let_next_launch();
    share.leave_query(item, query);
    work.append(appended);
    barrier();
    work.run(query, appended);
    work.leave(statistics);
    barrier();

    Merged merged;
    if (share.is_used()) merged = share.merged_warps(shared, statistics);
    if (item.splits == 1) {
      if (share.is_used()) merged.write(share.out(item));
      barrier();  // the next item's copies land where this one's values are
      continue;
    }
    if (share.is_used()) share.leave_record(merged, share.record(number));
    barrier();
    unsigned* const ticket = args.tickets + item.token * args.kv_heads + item.kv_head;
    if (thread_index() == 0) arrived[0] = atomic_add_acq_rel(ticket, 1);
    barrier();
    if (arrived[0] + 1 != static_cast<unsigned>(item.splits)) continue;

    Merged all;
    share.add_splits(item, shared, &all);
    if (share.is_used()) all.write(share.out(item));
    if (thread_index() == 0) *ticket = 0;
  }
  wait_previous_launch();  // blocks without an item too: or this launch could end before that one
}

}  // namespace servewright::cuda
