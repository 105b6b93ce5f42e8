// Projections y = W x of packed weights, and what is fused behind them.
//
//   Q4_0, Q8_0:  y = sum_b (scale_w[b] * scale_x[b]) * dot_b       dot_b exact in int32
//   Q4_1:        y = sum_b (scale_w[b] * scale_x[b]) * dot_b + min_w[b] * scaled_sum_x[b]
//   floats:      y = sum_k w[k] * x[k]
// each a chain of fused multiply-adds in float in an order that the columns alone decide: first the
// blocks, ascending, then the outliers times their float weights, ascending. So a token's result
// has the same bits alone and in any batch. |error| <= (2 blocks + 3) 2^-24 sum|terms| (floats:
// columns for 2 blocks).
//
// Behind them: RoPE, the KV cache and the scaling of q (qkv); the residual (project); SwiGLU and
// the quantised input of the next projection (gate_up). Weights are read once a call and token tile
// from L1, where a group stays over all tiles: rows * cols * bytes/weight from memory a call.
#pragma once
#include "tiles.h"

namespace {

using servewright::GateUpArgs;
using servewright::KV_POSITIONS;
using servewright::KvLayer;
using servewright::Matrix;
using servewright::ProjectArgs;
using servewright::QkvArgs;

// A tile with much to compute fetches the next group into L1 meanwhile.
SW_INLINE void fetch(const uint8_t* w, int bytes) {
#if defined(SW_AMX)
  constexpr auto hint = _MM_HINT_T1;
#else
  constexpr auto hint = _MM_HINT_T0;
#endif
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)w + i, hint);
}

// Others leave it to the hardware's prefetchers: prefetches beside them, of all or some lines, 2 or
// 4 KiB ahead, into L1 or L2, cost a decode step of one to six tokens on a Zen 4 2 to 20 %. The
// CPUs that have AMX read 1.1 times as fast with every line fetched 1 KiB ahead.
SW_INLINE void fetch_ahead(const uint8_t* w, int bytes) {
#if defined(SW_AMX)
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)w + 1024 + i, _MM_HINT_T1);
#else
  (void)w, (void)bytes;
#endif
}

template <TensorType TYPE>
constexpr int block_bytes() {
  return LANES * (2 * (TYPE == servewright::Q4_1 ? 2 : 1) + (TYPE == servewright::Q8_0 ? 32 : 16));
}

// sums[m] += scale_w scales[m] dot[m], and Q4_1's min_w scaled_sums[m], of a block of M tokens.
template <int M, TensorType TYPE>
SW_INLINE void scale_block(const uint8_t* w, const uint8_t* a, const I* dots, F* sums) {
  const uint8_t* tail = a + M * BLOCK;
  const F scale = load_half((const uint16_t*)w);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    sums[m] = fma(__builtin_convertvector(dots[m], F), scale * load_float(tail + 4 * m), sums[m]);
  if (TYPE == servewright::Q4_1) {
    const F min = load_half((const uint16_t*)w + LANES);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      sums[m] = fma(min, all(load_float(tail + 4 * (2 * M + m))), sums[m]);
  }
}

template <int M, TensorType TYPE>
SW_INLINE void add_block(const uint8_t* w, const uint8_t* a, F* sums) {
  const uint8_t* weights = w + LANES * 2 * (TYPE == servewright::Q4_1 ? 2 : 1);
  const uint8_t* minus_8 = a + M * (BLOCK + 4);
  I dots[M];
  if (TYPE == servewright::Q8_0)
    dots_8<M>(weights, a, minus_8, dots);
  else
    dots_u4<M, TYPE == servewright::Q4_0>(weights, a, minus_8, dots);
  scale_block<M, TYPE>(w, a, dots, sums);
}

// A column of a block's weights as float: one of each row.
template <TensorType TYPE>
SW_INLINE F weight_column(const uint8_t* w, unsigned column) {
  constexpr bool has_min = TYPE == servewright::Q4_1, is_8 = TYPE == servewright::Q8_0;
  const uint8_t* weights = w + LANES * 2 * (has_min ? 2 : 1);
  const F scale = load_half((const uint16_t*)w);
  const unsigned in_half = is_8 ? column : column % 16;
  const U four = load<U>(weights + in_half / 4 * LANES * 4);
  const unsigned shift = in_half % 4 * 8 + (is_8 ? 0 : column / 16 * 4);
  I q;
  if (is_8 && !UNSIGNED_Q8)
    q = (I)(four << (24 - shift)) >> 24;
  else
    q = (I)((four >> shift) & (is_8 ? 255u : 15u)) - (is_8 ? 128 : has_min ? 0 : 8);
  const F value = __builtin_convertvector(q, F);
  return has_min ? fma(value, scale, load_half((const uint16_t*)w + LANES)) : value * scale;
}

// out[m * LANES + row] += the outliers of M tokens times their weights, block by block.
template <int M, TensorType TYPE>
SW_INLINE void add_outliers(const uint8_t* w, const uint8_t* a, const uint8_t* marks, size_t blocks,
                            float* __restrict out) {
  for (int first = 0; first < M; first += MARKS, marks += mark_bytes(blocks * BLOCK)) {
    const int count = M - first < MARKS ? M - first : MARKS;
    const uint64_t tokens = 0x0101010101010101u * ((1u << count) - 1);
    for (size_t b = 0; b < blocks; b += MARKS) {
      uint64_t bits = bytes_set(marks + b * MARKS) & tokens;
      if (blocks - b < MARKS) bits &= ((uint64_t)1 << (blocks - b) * MARKS) - 1;
      for (; bits; bits &= bits - 1) {
        const unsigned bit = __builtin_ctzll(bits), m = first + bit % MARKS;
        const size_t block = b + bit / MARKS;
        const F column =
            weight_column<TYPE>(w + block * block_bytes<TYPE>(), marks[b * MARKS + bit] - 1u);
        const float x = load_float(a + block * M * ACTIVATION_BYTES + M * (BLOCK + 12) + 4 * m);
        store(out + m * LANES, fma(column, all(x), load<F>(out + m * LANES)));
      }
    }
  }
}

// out[m * LANES + row], a group of LANES rows times M tokens. next: the group to fetch, or null.
template <int M, TensorType TYPE>
void quantised_tile(const uint8_t* w, const uint8_t* next, const uint8_t* a, const uint8_t* marks,
                    int cols, float* __restrict out, Held*) {
  constexpr int w_bytes = block_bytes<TYPE>(), a_bytes = M * ACTIVATION_BYTES;
  const int blocks = cols / BLOCK;
  F sums[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = F{};
  for (int b = 0; b < blocks; ++b) {
    if (next) {
      fetch(next, w_bytes);
      next += w_bytes;
    } else {
      fetch_ahead(w + b * w_bytes, w_bytes);
    }
    add_block<M, TYPE>(w + b * w_bytes, a + b * a_bytes, sums);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
  add_outliers<M, TYPE>(w, a, marks, blocks, out);
}

#if SW_TILES
// The same by tiles; a block's floats follow while the next one multiplies. What lies behind the
// last of fewer tokens than TILE is multiplied too, and not looked at.
template <int M, TensorType TYPE>
void large_tile(const uint8_t* w, const uint8_t* next, const uint8_t* a, const uint8_t* marks,
                int cols, float* __restrict out, Held* held) {
  constexpr int w_bytes = block_bytes<TYPE>(), a_bytes = M * ACTIVATION_BYTES;
  const int blocks = cols / BLOCK;
  alignas(64) int32_t dots[2][TILE * LANES];
  F sums[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) sums[m] = F{};
  for (int b = 0; b <= blocks; ++b) {
    const int at = b % HELD_BLOCKS, rest = blocks - b;
    if (rest > 0) {
      if (at == 0)
        hold<TYPE>(w + b * w_bytes, rest < HELD_BLOCKS ? rest : HELD_BLOCKS, w_bytes, held);
      if (next) {
        fetch(next, w_bytes);
        next += w_bytes;
      }
      multiply_tile(a + b * a_bytes, held->bytes + at * TILE_BYTES, dots[b % 2]);
    }
    const int before = b - 1;
    if (before >= 0)
      scale_block<M, TYPE>(w + before * w_bytes, a + before * a_bytes, (const I*)dots[before % 2],
                           sums);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
  add_outliers<M, TYPE>(w, a, marks, blocks, out);
}
#endif

template <int M, TensorType TYPE>
void float_tile(const uint8_t* w, const uint8_t*, const uint8_t* a, const uint8_t*, int cols,
                float* out, Held*) {
  const float* x = (const float*)a;
  F sums[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) sums[m] = F{};
  for (int k = 0; k < cols; ++k) {
    F v;
    if (TYPE == servewright::F32)
      v = load<F>(w);
    else if (TYPE == servewright::F16)
      v = load_half((const uint16_t*)w);
    else
      v = load_bfloat((const uint16_t*)w);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums[m] = fma(v, all(x[m]), sums[m]);
    w += LANES * (TYPE == servewright::F32 ? 4 : 2);
    x += M;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
}

// held: of the row group, for all tiles of a call.
typedef void (*TileFunction)(const uint8_t* w, const uint8_t* next, const uint8_t* a,
                             const uint8_t* marks, int cols, float* out, Held* held);

template <int M, TensorType TYPE, bool FLOAT>
constexpr TileFunction tile_of() {
  if constexpr (FLOAT) {
    return float_tile<M, TYPE>;
  } else {
#if SW_TILES
    if constexpr (M > SMALL_TILE) return large_tile<M, TYPE>;
#endif
    return quantised_tile < M < SMALL_TILE ? M : SMALL_TILE, TYPE > ;
  }
}

template <TensorType TYPE, bool FLOAT>
TileFunction tile_function(int tokens) {
// Sizes beyond TILE repeat TILE's kernel and are never asked for.
#define SW_TILE(M) \
  case M:          \
    return tile_of<(M < TILE ? M : TILE), TYPE, FLOAT>();
  switch (tokens) {
    SW_TILE(1)
    SW_TILE(2)
    SW_TILE(3)
    SW_TILE(4)
    SW_TILE(5)
    SW_TILE(6)
    SW_TILE(7)
    SW_TILE(8)
    SW_TILE(9)
    SW_TILE(10)
    SW_TILE(11)
    SW_TILE(12)
    SW_TILE(13)
    SW_TILE(14)
    SW_TILE(15)
  }
#undef SW_TILE
  return tile_of<TILE, TYPE, FLOAT>();
}

SW_INLINE bool is_float(TensorType type) {
  return type == servewright::F32 || type == servewright::F16 || type == servewright::BF16;
}

TileFunction tile_function(TensorType type, int tokens) {
  switch (type) {
    case servewright::F32:
      return tile_function<servewright::F32, true>(tokens);
    case servewright::F16:
      return tile_function<servewright::F16, true>(tokens);
    case servewright::BF16:
      return tile_function<servewright::BF16, true>(tokens);
    case servewright::Q8_0:
      return tile_function<servewright::Q8_0, false>(tokens);
    case servewright::Q4_0:
      return tile_function<servewright::Q4_0, false>(tokens);
    default:
      return tile_function<servewright::Q4_1, false>(tokens);
  }
}

struct Tile {
  alignas(64) float values[TILE * LANES];  // [token][row]
  inline __attribute__((always_inline)) F row(int m) const { return load<F>(values + m * LANES); }
};

// Tiles [begin, end) of tokens.
struct Tiles {
  int begin, end;
};

SW_INLINE void compute_tile(const Matrix& w, int group, const uint8_t* next, const Activations& a,
                            int tile, TileFunction f, Tile* out, Held* held) {
  const uint8_t* x = is_float(w.type) ? (const uint8_t*)tile_f32(a, tile) : tile_q8(a, tile);
  f(w.data + group * w.group_bytes, next, x, tile_marks(a, tile), w.cols, out->values, held);
}

// Whether a call needs the tile registers.
SW_INLINE bool has_large(const Activations& a, Tiles tiles) {
  return tiles.begin < tiles.end && tile_tokens(a, tiles.begin) > SMALL_TILE;
}

// What to fetch while a tile of a group is computed: the next group, during the last tile with
// enough to compute meanwhile.
SW_INLINE const uint8_t* next_group(const Matrix& w, const Activations& a, int next, int end,
                                    Tiles tiles, int tile) {
  const bool is_one = tiles.end - tiles.begin == 1;
  const int least = SW_TILES ? SMALL_TILE + 1 : is_one ? TILE : TILE * 3 / 4;
  const bool is_last_enough = tile_tokens(a, tiles.end - 1) >= least;
  return tile + (is_last_enough ? 1 : 2) == tiles.end && next < end ? w.data + next * w.group_bytes
                                                                    : nullptr;
}

SW_INLINE int groups(const Matrix& w) { return (w.rows + LANES - 1) / LANES; }

// Each (group, tile) of a range, the group outside: its weights stay in L1.
template <class Epilogue>
SW_INLINE void each_tile(const Matrix& w, const Activations& a, int begin, int end, Tiles tiles,
                         const Epilogue& epilogue) {
  const TileUnit unit(has_large(a, tiles));
  Tile tile;
  Held held;
  for (int g = begin; g < end; ++g)
    for (int t = tiles.begin; t < tiles.end; ++t) {
      const int tokens = tile_tokens(a, t);
      const uint8_t* next = next_group(w, a, g + 1, end, tiles, t);
      compute_tile(w, g, next, a, t, tile_function(w.type, tokens), &tile, &held);
      epilogue(g * LANES, t * TILE, tokens, tile);
    }
}

void project(const ProjectArgs& args, int begin, int end, int tile_begin, int tile_end) {
  each_tile(args.w, args.in, begin, end, Tiles{tile_begin, tile_end},
            [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m) {
                float* out = args.out + (size_t)(token + m) * args.out_stride + row;
                store(out, args.accumulate ? load<F>(out) + tile.row(m) : tile.row(m));
              }
            });
}

SW_INLINE F rotate(const QkvArgs& args, int token, int dim, F x) {
  const size_t at = (size_t)token * args.kv.head_dim + dim;
  return fma(swap_pairs(x), load<F>(args.sines + at), x * load<F>(args.cosines + at));
}

SW_INLINE uint16_t* kv_block(const KvLayer& kv, int32_t block, int head) {
  return kv.base + (size_t)block * kv.block_stride + (size_t)head * 2 * KV_POSITIONS * kv.head_dim;
}

void qkv(const QkvArgs& args, int begin, int end, int tile_begin, int tile_end) {
  const int dim = args.kv.head_dim, q_end = groups(args.q), k_end = q_end + groups(args.k);
  const Tiles tiles{tile_begin, tile_end};
  const auto part = [](int x, int low, int high) { return x < low ? low : (x > high ? high : x); };
  each_tile(args.q, args.in, part(begin, 0, q_end), part(end, 0, q_end), tiles,
            [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m)
                store(args.q_out + (size_t)(token + m) * args.q.rows + row,
                      rotate(args, token + m, row % dim, tile.row(m)) * args.q_scale);
            });
  each_tile(args.k, args.in, part(begin, q_end, k_end) - q_end, part(end, q_end, k_end) - q_end,
            tiles, [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m) {
                const int t = token + m, d = row % dim;
                uint16_t half[LANES];
                store(half, to_half(rotate(args, t, d, tile.row(m))));
                uint16_t* k = kv_block(args.kv, args.kv_blocks[t], row / dim) + args.kv_slots[t];
                for (int i = 0; i < LANES; ++i) k[(d + i) * KV_POSITIONS] = half[i];
              }
            });
  each_tile(args.v, args.in, part(begin, k_end, end) - k_end, part(end, k_end, end) - k_end, tiles,
            [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m) {
                const int t = token + m;
                uint16_t* v = kv_block(args.kv, args.kv_blocks[t], row / dim) + KV_POSITIONS * dim;
                store(v + args.kv_slots[t] * dim + row % dim, to_half(tile.row(m)));
              }
            });
}

SW_INLINE F silu(F x) { return x / (exponential(-x) + 1.0f); }

// A unit is 32 rows: a whole block of the next projection's input.
void gate_up(const GateUpArgs& args, int begin, int end, int tile_begin, int tile_end) {
  const Tiles tiles{tile_begin, tile_end};
  const TileUnit unit(has_large(args.in, tiles));
  Tile gate[VECTORS], up[VECTORS];
  Held held_gate[VECTORS], held_up[VECTORS];
  for (int unit = begin; unit < end; ++unit)
    for (int t = tile_begin; t < tile_end; ++t) {
      const int tokens = tile_tokens(args.in, t);
      const TileFunction gate_tile = tile_function(args.gate.type, tokens);
      const TileFunction up_tile = tile_function(args.up.type, tokens);
      for (int v = 0; v < VECTORS; ++v) {
        const int group = unit * VECTORS + v;
        const int next = group + VECTORS, last = end * VECTORS;
        compute_tile(args.gate, group, next_group(args.gate, args.in, next, last, tiles, t),
                     args.in, t, gate_tile, &gate[v], &held_gate[v]);
        compute_tile(args.up, group, next_group(args.up, args.in, next, last, tiles, t), args.in, t,
                     up_tile, &up[v], &held_up[v]);
      }
      each_some(t * TILE, t * TILE + tokens, [&](int token, auto count) {
        constexpr int N = decltype(count)::value;
        F x[N * VECTORS];
#pragma GCC unroll 32
        for (int i = 0; i < N * VECTORS; ++i) {
          const int m = token - t * TILE + i / VECTORS, v = i % VECTORS;
          x[i] = silu(gate[v].row(m)) * up[v].row(m);
        }
        store_blocks<N>(args.out, token, unit, x);
      });
    }
}

}  // namespace
