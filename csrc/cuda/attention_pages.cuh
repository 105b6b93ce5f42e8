// One warp's share of a split in decode attention: its pages through shared memory and tensor
// cores.
//
// Page p of a split is warp p % 8's. K and V come by 16-byte asynchronous copies, the next page's K
// while this one's V is used; a warp waits only for its own. A page is 16 positions:
//   scores  [16 x 16 positions] = (q's upper parts, q's lower parts) [16 x dim] K^T, two tiles of 8
//   values  [dim x 8 heads] += V^T [dim x 16] weights [16 x 8], twice: lower parts, upper parts
// Fragments of both products are 16-byte loads without bank conflicts: dimensions (and so the order
// of a sum over them) are permuted the same way in q and K, and rows of V^T as they lie in memory.
#pragma once
#include "attention_items.cuh"

namespace servewright::cuda {

// 8: at batch 1 a split's time is that of the pages a warp takes one after the other, here 2.
constexpr int ATTENTION_WARPS = 8;
constexpr int ATTENTION_THREADS = 32 * ATTENTION_WARPS;
constexpr int GROUP = 8;  // columns of an mma tile
constexpr float NOTHING = -__builtin_inff();
constexpr float LOG2_E = 1.4426950408889634f;

using Words = Vector<uint32_t, 4>;  // 16 bytes: 8 bf16, or 4 float
using Floats = Vector<float, 4>;
struct alignas(8) Softmax {
  float max, sum;  // of exponents to base 2
};

// Shared memory of a block, in this order.
template <int D>
struct AttentionLayout {
  static constexpr int CHUNKS = D / 8;                        // 16-byte pieces of a bf16 row
  static constexpr int PAGE_WORDS = PAGE_POSITIONS * CHUNKS;  // of K or of V
  static constexpr int STAGES = 128 / D;  // pages of a warp in flight: 64 KB a block
  static constexpr int WARP_WORDS = STAGES * 2 * PAGE_WORDS;
  static constexpr int STAGE_WORDS = ATTENTION_WARPS * WARP_WORDS;
  static constexpr int QUERY_WORDS = 2 * D;          // of each step of 16 dimensions, a word a lane
  static constexpr int APPENDED_WORDS = 2 * CHUNKS;  // the new token's k and v
  static constexpr size_t BYTES = sizeof(Words) * (STAGE_WORDS + QUERY_WORDS + APPENDED_WORDS);
};

// The 16-byte piece of a row that holds piece `chunk`. Rows 2j and 2j+1 differ in bit 2 (a phase of
// K's fragment loads reads half of each), rows 0, 2, 4, 6 in bits 1-2 (V's reads a quarter of
// each).
SW_DEVICE int swizzled(int row, int chunk) { return chunk ^ (row & 6) ^ (row & 1) << 2; }
// A warp's values [head][half chunk][chunk] of 4 float: where `chunk` lies. They are written by
// four heads times two chunks, and read by one head times eight.
SW_DEVICE int swizzled_chunk(int head, int chunk) { return chunk ^ (head & 6); }

// q as fragments: where the 16 bytes of a lane for a step of 16 dimensions lie. Steps 2i and 2i + 2
// are written together.
SW_DEVICE int query_place(int step, int lane) { return 32 * step + (lane ^ (step & 2) << 1); }

SW_DEVICE float lower_half(uint32_t pair) { return bit_cast<float>(pair << 16); }
SW_DEVICE float upper_half(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }

// (a, b) as the sum of two bf16 pairs.
SW_DEVICE void split_pair(float a, float b, uint32_t* high, uint32_t* low) {
  *high = pack_bfloat16(a, b);
  *low = pack_bfloat16(a - lower_half(*high), b - upper_half(*high));
}

SW_DEVICE void load_8(const float* from, float (&to)[8]) {
  for (int half = 0; half < 2; ++half) {
    const Words x = load_vector<Words>(from + 4 * half);
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

// One warp's share of an item.
template <int D>
struct AttentionWarp {
  using Layout = AttentionLayout<D>;
  static constexpr int CHUNKS = Layout::CHUNKS, PAGE_WORDS = Layout::PAGE_WORDS;
  static constexpr int STAGES = Layout::STAGES;
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
      : args(args),
        item(item),
        stages(shared + warp * Layout::WARP_WORDS),
        warp(warp),
        lane(lane),
        page(0),
        max(NOTHING),
        sum(0) {
    const int positions = minimum(item.length - item.split * SPLIT_POSITIONS, SPLIT_POSITIONS);
    const int count = (positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
    pages = (count - warp + ATTENTION_WARPS - 1) / ATTENTION_WARPS;
    const size_t row = static_cast<size_t>(item.token) * args.table_width;
    if (lane < count)
      page = args.page_table[row + item.split * (SPLIT_POSITIONS / PAGE_POSITIONS) + lane];
    SW_UNROLL
    for (int j = 0; j < 4 * TILES; ++j) values[j / 4][j % 4] = 0;
  }

  SW_DEVICE int first_position(int i) const {
    return item.split * SPLIT_POSITIONS + (i * ATTENTION_WARPS + warp) * PAGE_POSITIONS;
  }

  SW_DEVICE Words* stage(int i, int which) const {
    return stages + (static_cast<unsigned>(i) % STAGES * 2 + which) * PAGE_WORDS;
  }

  // Where 16-byte piece `chunk` of a row lies in its stage.
  SW_DEVICE static int place_of(int row, int chunk) { return row * CHUNKS + swizzled(row, chunk); }

  // The new token's row of the warp's page i; 16 or more where it is in a later page.
  SW_DEVICE int new_row(int i) const { return item.length - 1 - first_position(i); }

  SW_DEVICE size_t pool_row(int i, int which) const {
    const size_t number = shuffle(page, i * ATTENTION_WARPS + warp);
    return ((number * 2 + which) * args.kv_heads + item.kv_head) * PAGE_POSITIONS;
  }

  // K, or V, of the warp's page i, as one group of copies. Not the new token's row; zeros behind
  // it, because the value product multiplies these rows by 0.
  SW_DEVICE void fetch(int i, int which) {
    const bfloat16* from = args.pool + pool_row(i, which) * D + lane * 8;
    Words* to = stage(i, which);
    const int end = new_row(i), row = lane / CHUNKS, chunk = lane % CHUNKS;
    if (i < pages && end >= PAGE_POSITIONS) {
      SW_UNROLL
      for (int word = 0; word < PAGE_WORDS; word += 32)
        copy_async_16(to + place_of(word / CHUNKS + row, chunk), from + word * 8);
    } else if (i < pages) {
      for (int word = 0; word < PAGE_WORDS; word += 32) {
        const int at = word / CHUNKS + row;
        if (at != end) copy_async_16(to + place_of(at, chunk), from + word * 8, at < end);
      }
    }
    commit_copies();
  }

  // The new token's k and v, rotated, to the pool and to `appended`, by the warp that owns its
  // page.
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
      store_vector(stage(i, which) + place_of(row, chunk), load_vector<Words>(appended + lane));
  }

  // Scores of 16 positions -> e^(score - max): this lane's are of head lane / 4 at positions
  // 8 tile + 2 (lane % 4) + {0, 1}.
  SW_DEVICE void weigh(int i, const Words* query, float (&weights)[2][2]) {
    const int g = lane / 4, t = lane % 4, visible = item.length - first_position(i);
    // Row 8 + g is swizzled as row g, and piece 8 + c lies 8 behind piece c.
    const Words* const keys[2] = {stage(i, 0) + place_of(g, t), stage(i, 0) + place_of(g, 4 + t)};
    float d[2][4] = {};  // rows 0-7: of q's upper parts, 8-15: of its lower parts
    SW_UNROLL
    for (int step = 0; step < D / 32; ++step) {
      const Words q0 = load_vector<Words>(query + query_place(2 * step, lane));
      const Words q1 = load_vector<Words>(query + query_place(2 * step + 1, lane));
      SW_UNROLL
      for (int tile = 0; tile < 2; ++tile) {
        const Words k = load_vector<Words>(keys[step % 2] + step / 2 * 8 + tile * 8 * CHUNKS);
        mma_bf16_16x8x16(d[tile], q0.v, {k[0], k[1]});
        mma_bf16_16x8x16(d[tile], q1.v, {k[2], k[3]});
      }
    }
    float most = max;
    SW_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float score = d[j / 2][j % 2] + d[j / 2][j % 2 + 2];
      weights[j / 2][j % 2] = 2 * t + j % 2 + j / 2 * 8 < visible ? score : NOTHING;
      most = maximum(most, weights[j / 2][j % 2]);
    }
    most = maximum(most, shuffle_xor(most, 1));
    most = maximum(most, shuffle_xor(most, 2));
    const float before = exp2(max - most);
    max = most;
    sum *= before;
    SW_UNROLL
    for (int j = 0; j < 4; ++j) {
      weights[j / 2][j % 2] = exp2(weights[j / 2][j % 2] - most);
      sum += weights[j / 2][j % 2];
    }
    // Values are kept by columns: heads 2t and 2t + 1.
    const float before0 = shuffle(before, 8 * t), before1 = shuffle(before, 8 * t + 4);
    SW_UNROLL
    for (int j = 0; j < 4 * TILES; ++j) values[j / 4][j % 4] *= j % 2 ? before1 : before0;
  }

  // values += V^T weights: rows of the product are dimensions, columns heads. Tile 4 half + n has
  // dimensions 64 half + 8g + n in rows g and 64 half + 8g + 4 + n in rows g + 8, so that a lane's
  // share of a row of V is 16 bytes; it needs them of positions 2t, 2t + 1, 2t + 8, 2t + 9.
  SW_DEVICE void add_values(int i, const float (&weights)[2][2]) {
    const int g = lane / 4, t = lane % 4;
    const Words* const rows[2] = {stage(i, 1) + place_of(2 * t, g),
                                  stage(i, 1) + place_of(2 * t + 1, g)};
    uint32_t high[2], low[2];
    SW_UNROLL
    for (int tile = 0; tile < 2; ++tile)
      split_pair(weights[tile][0], weights[tile][1], &high[tile], &low[tile]);
    SW_UNROLL
    for (int half = 0; half < D / 64; ++half) {
      Words v[4];
      SW_UNROLL
      for (int j = 0; j < 4; ++j)
        v[j] = load_vector<Words>(rows[j % 2] + 8 * half + j / 2 * 8 * CHUNKS);
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

  SW_DEVICE void run(const Words* query, const Words* appended) {
    for (int i = 0; i < pages; ++i) {
      float weights[2][2];
      wait_copies<2 * STAGES - 1>();
      place(i, appended);
      warp_barrier();
      weigh(i, query, weights);
      wait_copies<2 * STAGES - 2>();
      warp_barrier();
      fetch(i + STAGES, 0);
      add_values(i, weights);
      warp_barrier();
      fetch(i + STAGES, 1);
    }
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
  }

  // values [head][dim] float32 into this warp's stages, (max, sum) of head g.
  SW_DEVICE void leave(Softmax* statistics) {
    const int g = lane / 4, t = lane % 4;
    SW_UNROLL
    for (int part = 0; part < TILES; ++part) {
      const int half = part / 4, j = part % 4, head = 2 * t + j % 2;
      Floats x;
      SW_UNROLL
      for (int n = 0; n < 4; ++n) x[n] = values[4 * half + n][j];
      store_vector(stages + (2 * head + j / 2) * CHUNKS + swizzled_chunk(head, 8 * half + g), x);
    }
    if (t == 0) statistics[warp * GROUP + g] = {max, sum};
  }
};

}  // namespace servewright::cuda
