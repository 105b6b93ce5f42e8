// Decode attention of one new token a sequence, over a paged bf16 KV pool, in one launch:
//
//   q, k <- RoPE(q, k);   pool[length - 1] <- k, v;   out = softmax(q K^T / sqrt(head_dim)) V
//
// Shapes   qkv [tokens, (heads + 2 kv_heads) head_dim] float32, unrotated; out [tokens, heads
//          head_dim] bf16; cosines, sines [position, head_dim / 2] float32, one number a pair (1 and
//          0 where a model leaves dimensions unrotated). head_dim 64 or 128, heads / kv_heads <= 8.
// Pool     [page][K, V][kv_heads][16][head_dim] bf16, page_table [tokens, table_width]. `lengths`
//          count the new token; length 0 is an empty slot: its row of `out` becomes 0, no page is
//          touched. No position beyond a length and no table entry beyond its pages is read.
// Fused    6 launches (RoPE, append, scores, softmax, values, combine): between them they would
//          write and read q, k, v and the partial results.
// Work     an item is 256 positions (a split) of one KV head: 4 warps, page p of the split is warp
//          p % 4's. Blocks take items in turn, so the grid may have any size; a captured graph's
//          grid follows max_length, and what is not needed leaves at once. A warp waits only for its
//          own copies (two pages in flight, 1024 head_dim bytes a block). The last block to finish a
//          sequence's KV head, by a ticket, merges the splits and resets the ticket.
// Order    pages of a warp ascending, warps 0..3, splits ascending: it follows from the length
//          alone. Batch, grid and max_length do not change a sequence's bits.
// Numbers  both products run on tensor cores with the group's heads as columns (8, unused ones 0), so
//          that 8 query heads cost what 1 does. q and the weights e^(s - max) go in as sums of two
//          bf16 (rows 0-7 and 8-15 of the score tile; two products for the values): relative error
//          2^-16 each, sums in float32. |error| <= 2^-9 |out| (bf16 result) + 2^-14 (1 + |s|)
//          max |v|, s the largest score.
// Bytes    4 head_dim (length - 1) a KV head (K and V, once) + qkv + appended k, v + out; with more
//          than one split also 8 (16 + group head_dim) a split and KV head, in L2.
// Source   split-KV with log-sum-exp merge: Dao et al., Flash-Decoding (2023); heads of a group as
//          rows of one tile: FlashInfer (Ye et al. 2025); fragments: PTX ISA 9.0, mma.m16n8k16.
#pragma once
#include "../common/device.cuh"
#include "../common/step_ops.h"

namespace servewright::cuda {

using namespace servewright::device;

constexpr int ATTENTION_WARPS = 4;  // one a scheduler; 3 blocks an H100 SM hold 192 KB of copies
constexpr int ATTENTION_THREADS = 32 * ATTENTION_WARPS;
constexpr int RESIDENT_BLOCKS = 4;  // by registers: 128 a thread
constexpr int STAGES = 2;           // pages of a warp in flight
constexpr int GROUP = 8;          // columns of an mma tile
constexpr int STATISTICS = 2 * GROUP;  // floats of a record: (max, sum) of each head
constexpr float NOTHING = -__builtin_inff();
constexpr float LOG2_E = 1.4426950408889634f;

using Words = Vector<uint32_t, 4>;  // 16 bytes: 8 bf16, or 4 float
using Floats = Vector<float, 4>;
struct Softmax {
  float max, sum;  // of exponents to base 2
};

// Shared memory of a block, in this order.
template <int D>
struct AttentionLayout {
  static constexpr int CHUNKS = D / 8;  // 16-byte pieces of a bf16 row
  static constexpr int PAGE_WORDS = PAGE_POSITIONS * CHUNKS;  // of K or of V
  static constexpr int WARP_WORDS = STAGES * 2 * PAGE_WORDS;
  static constexpr int STAGE_WORDS = ATTENTION_WARPS * WARP_WORDS;
  static constexpr int QUERY_WORDS = 2 * GROUP * CHUNKS;
  static constexpr int APPENDED_WORDS = 2 * CHUNKS;  // the new token's k and v
  static constexpr size_t BYTES = sizeof(Words) * (STAGE_WORDS + QUERY_WORDS + APPENDED_WORDS);
};

// One item's coordinates, the same in all threads of a block.
struct AttentionItem {
  int token;
  int kv_head;
  int split;
  int splits;  // of this sequence
  int first_slot;  // splits of the sequences before it
  int length;
};

// The 16-byte piece of a row that holds piece `chunk`. Rows 2j and 2j+1 differ in bit 2 (a phase of
// K's fragment loads reads half of each), rows 0, 2, 4, 6 in bits 1-2 (V's reads a quarter of each).
SW_DEVICE int swizzled(int row, int chunk) { return chunk ^ (row & 6) ^ (row & 1) << 2; }
// The same for merged values, float quads of heads 2t: four heads times quads {0, 2}.
SW_DEVICE int swizzled_quad(int head, int quad) { return quad ^ (head >> 1 & 1) ^ (head >> 2) << 2; }

SW_DEVICE float lower_half(uint32_t pair) { return bit_cast<float>(pair << 16); }
SW_DEVICE float upper_half(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }

// (a, b) as the sum of two bf16 pairs.
SW_DEVICE void split_pair(float a, float b, uint32_t* high, uint32_t* low) {
  *high = pack_bfloat16(a, b);
  *low = pack_bfloat16(a - lower_half(*high), b - upper_half(*high));
}

SW_DEVICE void load_8(const float* from, float (&to)[8]) {
  for (int half = 0; half < 2; ++half) {
    const Words x = load_16(from + 4 * half);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) to[4 * half + i] = bit_cast<float>(x[i]);
  }
}

// Dimensions [8 chunk, 8 chunk + 8) of one head, rotated by its position.
// Adjacent pairs (2i, 2i + 1), as GGUF's Llama has them, or halves (i, i + D / 2).
template <int D>
SW_DEVICE void rotated_chunk(const AttentionArgs& args, int position, const float* head, int chunk,
                             float (&to)[8]) {
  const float* cosines = args.cosines + static_cast<size_t>(position) * (D / 2);
  const float* sines = args.sines + static_cast<size_t>(position) * (D / 2);
  float x[8];
  load_8(head + 8 * chunk, x);
  if (args.interleaved_rope) {
    const Words c = load_16(cosines + 4 * chunk), s = load_16(sines + 4 * chunk);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float cosine = bit_cast<float>(c[i]), sine = bit_cast<float>(s[i]);
      to[2 * i] = fma(x[2 * i], cosine, -(x[2 * i + 1] * sine));
      to[2 * i + 1] = fma(x[2 * i + 1], cosine, x[2 * i] * sine);
    }
  } else {
    const bool is_first = 8 * chunk < D / 2;
    float partner[8], c[8], s[8];
    load_8(head + (8 * chunk + D / 2) % D, partner);
    load_8(cosines + 8 * chunk % (D / 2), c);
    load_8(sines + 8 * chunk % (D / 2), s);
    SW_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float crossed = partner[i] * s[i];
      to[i] = fma(x[i], c[i], is_first ? -crossed : crossed);
    }
  }
}

SW_DEVICE const float* qkv_head(const AttentionArgs& args, int token, int head, int dim) {
  return args.qkv + (static_cast<size_t>(token) * (args.heads + 2 * args.kv_heads) + head) * dim;
}

// Slots are splits of all sequences in a row; an empty sequence has one, which writes zeros.
// Lane i keeps sequences 2i and 2i + 1.
struct Slots {
  int lengths[2];
  int end;  // slots up to and with this lane's
  int count;

  SW_DEVICE static int splits(int length) {
    return maximum((length + SPLIT_POSITIONS - 1) / SPLIT_POSITIONS, 1);
  }

  SW_DEVICE Slots(const AttentionArgs& args, int tokens, int lane) {
    end = 0;
    SW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int token = 2 * lane + i;
      lengths[i] = token < tokens ? args.lengths[token] : -1;
      end += lengths[i] < 0 ? 0 : splits(lengths[i]);
    }
    SW_UNROLL
    for (int step = 1; step < 32; step *= 2) {
      const int before = shuffle(end, lane - step);
      if (lane >= step) end += before;
    }
    count = shuffle(end, 31);
  }

  SW_DEVICE AttentionItem item(int number, int kv_heads) const {
    const int slot = number / kv_heads;
    const int owner = popcount(~vote_ballot(end > slot));  // ends ascend
    const int length0 = shuffle(lengths[0], owner), length1 = shuffle(lengths[1], owner);
    const int splits0 = splits(length0), splits1 = length1 < 0 ? 0 : splits(length1);
    const int first = shuffle(end, owner) - splits0 - splits1;
    const bool is_second = slot >= first + splits0;
    AttentionItem item;
    item.token = 2 * owner + is_second;
    item.kv_head = number % kv_heads;
    item.splits = is_second ? splits1 : splits0;
    item.first_slot = is_second ? first + splits0 : first;
    item.split = slot - item.first_slot;
    item.length = is_second ? length1 : length0;
    return item;
  }
};

// One warp's share of an item.
template <int D>
struct AttentionWarp {
  using Layout = AttentionLayout<D>;
  static constexpr int CHUNKS = Layout::CHUNKS, PAGE_WORDS = Layout::PAGE_WORDS;
  static constexpr int TILES = D / 16;  // of values: 16 dimensions times 8 heads

  const AttentionArgs& args;
  const AttentionItem& item;
  Words* stages;  // this warp's
  int warp, lane;
  int page;   // lane i: the number of the split's page i
  int pages;  // this warp's
  float values[TILES][4];
  float max, sum;  // of head lane / 4; the sum only of this lane's positions

  SW_DEVICE AttentionWarp(const AttentionArgs& args, const AttentionItem& item, Words* shared,
                          int warp, int lane)
      : args(args), item(item), stages(shared + warp * Layout::WARP_WORDS), warp(warp), lane(lane),
        page(0), max(NOTHING), sum(0) {
    const int positions = minimum(item.length - item.split * SPLIT_POSITIONS, SPLIT_POSITIONS);
    const int count = (positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
    pages = (count - warp + ATTENTION_WARPS - 1) / ATTENTION_WARPS;
    const size_t row = static_cast<size_t>(item.token) * args.table_width;
    if (lane < count)
      page = args.page_table[row + item.split * (SPLIT_POSITIONS / PAGE_POSITIONS) + lane];
    SW_UNROLL
    for (int i = 0; i < TILES; ++i)
      SW_UNROLL
      for (int j = 0; j < 4; ++j) values[i][j] = 0;
  }

  SW_DEVICE int first_position(int i) const {
    return item.split * SPLIT_POSITIONS + (i * ATTENTION_WARPS + warp) * PAGE_POSITIONS;
  }

  SW_DEVICE Words* stage(int i, int which) const {
    return stages + (static_cast<unsigned>(i) % STAGES * 2 + which) * PAGE_WORDS;
  }

  // The new token's row of the warp's page i; 16 or more where it is in a later page.
  SW_DEVICE int new_row(int i) const { return item.length - 1 - first_position(i); }

  SW_DEVICE size_t pool_row(int i, int which) const {
    const size_t number = shuffle(page, i * ATTENTION_WARPS + warp);
    return ((number * 2 + which) * args.kv_heads + item.kv_head) * PAGE_POSITIONS;
  }

  // K, or V, of the warp's page i, as one group of copies. Not the new token's row; zeros behind it,
  // because the value product multiplies these rows by 0.
  SW_DEVICE void fetch(int i, int which) {
    const bfloat16* from = args.pool + pool_row(i, which) * D + lane * 8;
    Words* to = stage(i, which);
    const int end = new_row(i);
    if (i < pages) {
      SW_UNROLL
      for (int word = 0; word < PAGE_WORDS; word += 32) {
        const int row = word / CHUNKS + lane / CHUNKS;
        Words* piece = to + row * CHUNKS + swizzled(row, lane % CHUNKS);
        if (end >= PAGE_POSITIONS)
          copy_async_16(piece, from + word * 8);
        else if (row != end)
          copy_async_16(piece, from + word * 8, row < end);
      }
    }
    commit_copies();
  }

  // The new token's k and v, rotated, to the pool and to `appended`, by the warp that owns its page.
  SW_DEVICE void append(Words* appended) {
    const int row = new_row(pages - 1), which = lane / CHUNKS, chunk = lane % CHUNKS;
    const size_t first_row = pool_row(pages - 1, which);
    if (pages == 0 || row >= PAGE_POSITIONS || which > 1) return;
    const int head = args.heads + which * args.kv_heads + item.kv_head;
    float x[8];
    if (which == 0)
      rotated_chunk<D>(args, item.length - 1, qkv_head(args, item.token, head, D), chunk, x);
    else
      load_8(qkv_head(args, item.token, head, D) + 8 * chunk, x);
    Words words;
    SW_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = pack_bfloat16(x[2 * i], x[2 * i + 1]);
    store_vector(appended + lane, words);
    Words* const pool = reinterpret_cast<Words*>(args.pool);
    store_vector(pool + (first_row + row) * CHUNKS + chunk, words);
  }

  // ... from there to the stage of page i.
  SW_DEVICE void place(int i, const Words* appended) {
    const int row = new_row(i), which = lane / CHUNKS, chunk = lane % CHUNKS;
    if (row < PAGE_POSITIONS && which < 2)
      store_vector(stage(i, which) + row * CHUNKS + swizzled(row, chunk),
                   load_vector<Words>(appended + lane));
  }

  // Scores of 16 positions -> e^(score - max): this lane's are of head lane / 4 at positions
  // 8 tile + 2 (lane % 4) + {0, 1}.
  SW_DEVICE void weigh(int i, const Words* queries, float (&weights)[2][2]) {
    const Words* keys = stage(i, 0);
    const int g = lane / 4, t = lane % 4, visible = item.length - first_position(i);
    float most = max;
    SW_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      const int row = 8 * tile + g;
      float d[4] = {0, 0, 0, 0};  // rows 0-7: q's upper parts, 8-15: its lower parts
      SW_UNROLL
      for (int step = 0; step < D / 32; ++step) {
        const Words k = load_vector<Words>(keys + row * CHUNKS + swizzled(row, 4 * step + t));
        const Words high = load_vector<Words>(queries + g * CHUNKS + swizzled(g, 4 * step + t));
        const Words low = load_vector<Words>(queries + (GROUP + g) * CHUNKS + swizzled(g, 4 * step + t));
        mma_bf16_16x8x16(d, {high[0], low[0], high[1], low[1]}, {k[0], k[1]});
        mma_bf16_16x8x16(d, {high[2], low[2], high[3], low[3]}, {k[2], k[3]});
      }
      SW_UNROLL
      for (int j = 0; j < 2; ++j) {
        weights[tile][j] = 8 * tile + 2 * t + j < visible ? d[j] + d[j + 2] : NOTHING;
        most = maximum(most, weights[tile][j]);
      }
    }
    most = maximum(most, shuffle_xor(most, 1));
    most = maximum(most, shuffle_xor(most, 2));
    const float before = exp2(max - most);
    max = most;
    sum *= before;
    SW_UNROLL
    for (int tile = 0; tile < 2; ++tile)
      SW_UNROLL
      for (int j = 0; j < 2; ++j) {
        weights[tile][j] = exp2(weights[tile][j] - most);
        sum += weights[tile][j];
      }
    // Values are kept by columns: heads 2t and 2t + 1.
    const float before0 = shuffle(before, 8 * t), before1 = shuffle(before, 8 * t + 4);
    SW_UNROLL
    for (int tile = 0; tile < TILES; ++tile)
      SW_UNROLL
      for (int j = 0; j < 4; ++j) values[tile][j] *= j % 2 ? before1 : before0;
  }

  // values += V^T weights: rows of the product are dimensions, columns heads. Tile 4 half + n has
  // dimensions 64 half + 8g + n in rows g and 64 half + 8g + 4 + n in rows g + 8, so that a lane's
  // share of a row of V is 16 bytes; it needs them of positions 2t, 2t + 1, 2t + 8, 2t + 9.
  SW_DEVICE void add_values(int i, const float (&weights)[2][2]) {
    const Words* from = stage(i, 1);
    const int g = lane / 4, t = lane % 4;
    uint32_t high[2], low[2];
    SW_UNROLL
    for (int tile = 0; tile < 2; ++tile)
      split_pair(weights[tile][0], weights[tile][1], &high[tile], &low[tile]);
    SW_UNROLL
    for (int half = 0; half < D / 64; ++half) {
      Words v[4];
      SW_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int row = 2 * t + j % 2 + j / 2 * 8;
        v[j] = load_vector<Words>(from + row * CHUNKS + swizzled(row, 8 * half + g));
      }
      SW_UNROLL
      for (int n = 0; n < 4; ++n) {
        uint32_t a[4];
        SW_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int word = n / 2 + j % 2 * 2;
          const uint32_t even = v[j / 2 * 2][word], odd = v[j / 2 * 2 + 1][word];
          a[j] = n % 2 ? even >> 16 | (odd & 0xffff0000u) : (even & 0xffffu) | odd << 16;
        }
        mma_bf16_16x8x16(values[4 * half + n], a, low);
        mma_bf16_16x8x16(values[4 * half + n], a, high);
      }
    }
  }

  SW_DEVICE void run(const Words* queries, const Words* appended) {
    for (int i = 0; i < pages; ++i) {
      float weights[2][2];
      wait_copies<2 * STAGES - 1>();
      place(i, appended);
      warp_barrier();
      weigh(i, queries, weights);
      wait_copies<2 * STAGES - 2>();
      warp_barrier();
      add_values(i, weights);
      warp_barrier();
      fetch(i + STAGES, 0);
      fetch(i + STAGES, 1);
    }
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
  }

  // values [head][dim] float32 into this warp's stages, (max, sum) of head g.
  SW_DEVICE void leave(Softmax* statistics) {
    const int g = lane / 4, t = lane % 4;
    SW_UNROLL
    for (int half = 0; half < D / 64; ++half)
      SW_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int head = 2 * t + j % 2, quad = 16 * half + 2 * g + j / 2;
        Floats x;
        SW_UNROLL
        for (int n = 0; n < 4; ++n) x[n] = values[4 * half + n][j];
        store_vector(stages + head * (D / 4) + swizzled_quad(head, quad), x);
      }
    if (t == 0) statistics[warp * GROUP + g] = {max, sum};
  }
};

// Values of 8 dimensions of one head, merged in the order they are added.
struct Merged {
  float values[8];
  Softmax total;

  SW_DEVICE Merged() : values{}, total{NOTHING, 0} {}

  // Nothing may come (max -inf, sum and values 0), but not first.
  SW_DEVICE void add(const Softmax& part, const Floats& first, const Floats& second) {
    const float max = maximum(total.max, part.max);
    const float before = exp2(total.max - max), now = exp2(part.max - max);
    total = {max, fma(part.sum, now, total.sum * before)};
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[i] = fma(first[i], now, values[i] * before);
      values[4 + i] = fma(second[i], now, values[4 + i] * before);
    }
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

template <int D>
SW_KERNEL(ATTENTION_THREADS, RESIDENT_BLOCKS)
void paged_attention(AttentionArgs args, int tokens) {
  using Layout = AttentionLayout<D>;
  constexpr int CHUNKS = Layout::CHUNKS;
  SW_DYNAMIC_SHARED(Words, shared);
  SW_SHARED(Softmax, statistics, ATTENTION_WARPS* GROUP);
  SW_SHARED(unsigned, arrived, 1);
  Words* const queries = shared + Layout::STAGE_WORDS;
  Words* const appended = queries + Layout::QUERY_WORDS;
  // Unsigned until divided; warp through a shuffle, so that nvcc sees it is the warp's.
  const int thread = static_cast<int>(thread_index());
  const int lane = static_cast<int>(thread_index() % 32);
  const int warp = shuffle(static_cast<int>(thread_index() / 32), 0);
  const int group = args.heads / args.kv_heads, record_words = (STATISTICS + group * D) / 4;
  const int head = static_cast<int>(thread_index() / CHUNKS);
  const int chunk = static_cast<int>(thread_index() % CHUNKS);  // this thread's share of q and out
  const Slots slots(args, tokens, lane);
  const int items = slots.count * args.kv_heads;
  Words* const records = reinterpret_cast<Words*>(args.partials);

  for (int number = block_index().x; number < items; number += grid_size().x) {
    const AttentionItem item = slots.item(number, args.kv_heads);
    bfloat16* const out =
        args.out + (static_cast<size_t>(item.token) * args.heads + item.kv_head * group + head) * D +
        8 * chunk;
    if (item.length == 0) {
      if (head < group) store_vector(out, Words{});
      continue;
    }
    AttentionWarp<D> work(args, item, shared, warp, lane);
    for (int i = 0; i < STAGES; ++i)
      for (int which = 0; which < 2; ++which) work.fetch(i, which);

    if (head < GROUP) {
      Words high = {}, low = {};
      if (head < group) {
        float x[8];
        rotated_chunk<D>(args, item.length - 1,
                         qkv_head(args, item.token, item.kv_head * group + head, D), chunk, x);
        const float scale = LOG2_E * (D == 128 ? 0.08838834764831845f : 0.125f);
        SW_UNROLL
        for (int i = 0; i < 4; ++i)
          split_pair(x[2 * i] * scale, x[2 * i + 1] * scale, &high[i], &low[i]);
      }
      store_vector(queries + head * CHUNKS + swizzled(head, chunk), high);
      store_vector(queries + (GROUP + head) * CHUNKS + swizzled(head, chunk), low);
    }
    work.append(appended);
    barrier();
    work.run(queries, appended);
    work.leave(statistics);
    barrier();

    const auto add_from = [&](Merged* merged, const Softmax& part, const Words* row, bool plain) {
      const int quad0 = 2 * chunk, quad1 = quad0 + 1;
      merged->add(part,
                  load_vector<Floats>(row + (plain ? quad0 : swizzled_quad(head, quad0))),
                  load_vector<Floats>(row + (plain ? quad1 : swizzled_quad(head, quad1))));
    };
    Merged merged;
    if (head < group)
      for (int w = 0; w < ATTENTION_WARPS; ++w)
        add_from(&merged, statistics[w * GROUP + head],
                 shared + w * Layout::WARP_WORDS + head * (D / 4), false);
    if (item.splits == 1) {
      if (head < group) merged.write(out);
      barrier();  // the next item's copies land where this one's values are
      continue;
    }

    Words* const record = records + static_cast<size_t>(number) * record_words;
    if (head < group) {
      Floats parts[2];
      SW_UNROLL
      for (int i = 0; i < 8; ++i) parts[i / 4][i % 4] = merged.values[i];
      Words* const values = record + STATISTICS / 4 + head * (D / 4) + 2 * chunk;
      store_vector(values, parts[0]);
      store_vector(values + 1, parts[1]);
      if (chunk == 0)
        store_vector(reinterpret_cast<Softmax*>(record) + head,
                     Vector<float, 2>{{merged.total.max, merged.total.sum}});
    }
    barrier();
    unsigned* const ticket = args.tickets + item.token * args.kv_heads + item.kv_head;
    if (thread == 0) arrived[0] = atomic_add_acq_rel(ticket, 1);
    barrier();
    if (arrived[0] + 1 != static_cast<unsigned>(item.splits)) continue;

    // The last block: bring the records of all splits, as many at a time as the stages hold.
    Merged all;
    const int room = Layout::STAGE_WORDS / record_words;
    const Words* const first =
        records +
        (static_cast<size_t>(item.first_slot) * args.kv_heads + item.kv_head) * record_words;
    for (int done = 0; done < item.splits; done += room) {
      const int count = minimum(room, item.splits - done);
      for (int i = 0; i < count; ++i) {
        const Words* from = first + static_cast<size_t>(done + i) * args.kv_heads * record_words;
        for (int word = thread; word < record_words; word += ATTENTION_THREADS)
          copy_async_16(shared + i * record_words + word, from + word);
      }
      commit_copies();
      wait_copies<0>();
      barrier();
      if (head < group)
        for (int i = 0; i < count; ++i) {
          const Words* row = shared + i * record_words;
          add_from(&all, reinterpret_cast<const Softmax*>(row)[head],
                   row + STATISTICS / 4 + head * (D / 4), true);
        }
      barrier();
    }
    if (head < group) all.write(out);
    if (thread == 0) *ticket = 0;  // for the next launch
  }
}

}  // namespace servewright::cuda
