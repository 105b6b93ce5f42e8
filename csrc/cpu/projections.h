// Projections y = W x of packed weights, and what is fused behind them.
//
//   Q4_0, Q8_0:  y = sum_b (scale_w[b] * scale_x[b]) * dot_b       dot_b exact in int32
//   Q4_1:        y = sum_b (scale_w[b] * scale_x[b]) * dot_b + min_w[b] * scaled_sum_x[b]
//   floats:      y = sum_k w[k] * x[k]
// each a chain of fused multiply-adds in float in an order that the columns alone decide: of 64
// blocks first the coarse parts, ascending, then the fine parts that count, ascending; then the
// next 64. So a token's result has the same bits alone and in any batch. |error| <= (2 blocks + 2)
// 2^-24 sum|terms| (floats: columns for 2 blocks).
//
// Behind them: RoPE, the KV cache and the scaling of q (qkv); the residual (project); SwiGLU and
// the quantised input of the next projection (gate_up). Weights are read once a call and token tile
// from L1, where a group stays over all tiles: rows * cols * bytes/weight from memory a call.
#pragma once
#include "dots.h"

namespace {

using servewright::GateUpArgs;
using servewright::KV_POSITIONS;
using servewright::KvLayer;
using servewright::Matrix;
using servewright::ProjectArgs;
using servewright::QkvArgs;
using servewright::TensorType;

// The hardware's prefetchers stream the weights: prefetches beside them, of all or some lines, 2 or
// 4 KiB ahead, into L1 or L2, cost a decode step on a Zen 4 2 to 9 %. Two or more tiles fetch the
// next group into L1, while the last tile reads this one from there.
SW_INLINE void fetch(const uint8_t* w, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)w + i, _MM_HINT_T0);
}

template <TensorType TYPE>
constexpr int block_bytes() {
  return LANES * (2 * (TYPE == servewright::Q4_1 ? 2 : 1) + (TYPE == servewright::Q8_0 ? 32 : 16));
}

// sums[m] += scale_w scales[m] dot[m], and Q4_1's min_w scaled_sums[m], of M tokens of a part that
// holds TOKENS from the first of them on.
template <int M, int TOKENS, TensorType TYPE>
SW_INLINE void add_part(const uint8_t* w, F scale, const uint8_t* q, const uint8_t* tail, F* sums) {
  constexpr bool has_min = TYPE == servewright::Q4_1;
  const uint8_t* weights = w + LANES * 2 * (has_min ? 2 : 1);
  I dots[M];
  if (TYPE == servewright::Q8_0)
    dots_8<M>(weights, q, tail + 4 * TOKENS, dots);
  else
    dots_u4<M, TYPE == servewright::Q4_0>(weights, q, tail + 4 * TOKENS, dots);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
    sums[m] = fma(__builtin_convertvector(dots[m], F), scale * load_float(tail + 4 * m), sums[m]);
  if (has_min) {
    const F min = load_half((const uint16_t*)w + LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      sums[m] = fma(min, all(load_float(tail + 4 * (2 * TOKENS + m))), sums[m]);
  }
}

// Bits of the tokens of a tile whose scale of a block is above their limit.
template <int M>
SW_INLINE uint32_t tokens_above(const uint8_t* scales, const float* limits) {
  if (M == 1) return load_float(scales) > limits[0];  // a vector would end behind the activations
  return lanes_above(load<F>(scales), load<F>(limits)) & ((1u << M) - 1);
}

// Adds the fine parts of a block that count to values[M][LANES].
template <int M, TensorType TYPE>
SW_INLINE void add_fine_parts(const uint8_t* w, const uint8_t* a, uint32_t tokens,
                              float* __restrict values) {
  const uint8_t* fine = a + M * PART_BYTES;
  const F scale = load_half((const uint16_t*)w);
  do {
    const int m = __builtin_ctz(tokens);
    F sum = load<F>(values + m * LANES);
    add_part<1, M, TYPE>(w, scale, fine + m * BLOCK, fine + M * BLOCK + 4 * m, &sum);
    store(values + m * LANES, sum);
  } while (tokens &= tokens - 1);
}

// out[m * LANES + row], a group of LANES rows times M tokens. next: the group to fetch, or null.
// limits: of tile_limits, and room for a vector. The few fine parts that count come after the
// coarse ones, token by token: a tile's tokens seldom have theirs in the same block.
template <int M, TensorType TYPE>
void quantised_tile(const uint8_t* w, const uint8_t* next, const uint8_t* a, const float* limits,
                    int cols, float* out) {
  constexpr int w_bytes = block_bytes<TYPE>(), a_bytes = M * ACTIVATION_BYTES;
  F sums[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = F{};
  for (int rest = cols / BLOCK; rest > 0; rest -= 64) {
    const int blocks = rest < 64 ? rest : 64;
    uint64_t fine = 0;
    for (int b = 0; b < blocks; ++b, w += w_bytes, a += a_bytes) {
      if (next) {
        fetch(next, w_bytes);
        next += w_bytes;
      }
      const uint8_t* tail = a + M * BLOCK;
      add_part<M, M, TYPE>(w, load_half((const uint16_t*)w), a, tail, sums);
      fine |= (uint64_t)(tokens_above<M>(tail, limits) != 0) << b;
    }
    if (fine == 0) continue;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
    do {
      const int back = blocks - __builtin_ctzll(fine);
      const uint8_t* block = a - back * a_bytes;
      const uint32_t tokens = tokens_above<M>(block + M * BLOCK, limits);
      add_fine_parts<M, TYPE>(w - back * w_bytes, block, tokens, out);
    } while (fine &= fine - 1);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m] = load<F>(out + m * LANES);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
}

template <int M, TensorType TYPE>
void float_tile(const uint8_t* w, const uint8_t*, const uint8_t* a, const float*, int cols,
                float* out) {
  const float* x = (const float*)a;
  F sums[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = F{};
  for (int k = 0; k < cols; ++k) {
    F v;
    if (TYPE == servewright::F32)
      v = load<F>(w);
    else if (TYPE == servewright::F16)
      v = load_half((const uint16_t*)w);
    else
      v = load_bfloat((const uint16_t*)w);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m] = fma(v, all(x[m]), sums[m]);
    w += LANES * (TYPE == servewright::F32 ? 4 : 2);
    x += M;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store(out + m * LANES, sums[m]);
}

typedef void (*TileFunction)(const uint8_t* w, const uint8_t* next, const uint8_t* a,
                             const float* limits, int cols, float* out);

template <TensorType TYPE, bool FLOAT>
TileFunction tile_function(int tokens) {
// Sizes beyond TILE repeat TILE's kernel and are never asked for.
#define SW_TILE(M)                                                      \
  case M: {                                                             \
    constexpr int size = M < TILE ? M : TILE;                           \
    return FLOAT ? float_tile<size, TYPE> : quantised_tile<size, TYPE>; \
  }
  switch (tokens) {
    SW_TILE(1)
    SW_TILE(2)
    SW_TILE(3)
    SW_TILE(4)
    SW_TILE(5)
    SW_TILE(6)
    SW_TILE(7)
  }
#undef SW_TILE
  return FLOAT ? float_tile<TILE, TYPE> : quantised_tile<TILE, TYPE>;
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

// A range of tiles with their limits. The runner asks for 128 tokens at most at a time.
struct Window {
  static constexpr int TILES = 128 / TILE;
  int begin, end;
  float limits[TILES * TILE + LANES];  // tiles are read by whole vectors

  inline __attribute__((always_inline)) Window(const Activations& a, int tile_begin, int tile_end)
      : begin(tile_begin), end(tile_end < tile_begin + TILES ? tile_end : tile_begin + TILES) {
    if (a.q8)
      for (int t = begin; t < end; ++t) tile_limits(a, t, limits + (t - begin) * TILE);
  }
};

SW_INLINE void compute_tile(const Matrix& w, int group, const uint8_t* next, const Activations& a,
                            int tile, const Window& window, TileFunction f, Tile* out) {
  const uint8_t* x = is_float(w.type) ? (const uint8_t*)tile_f32(a, tile) : tile_q8(a, tile);
  const float* limits = window.limits + (tile - window.begin) * TILE;
  f(w.data + group * w.group_bytes, next, x, limits, w.cols, out->values);
}

// What to fetch while tile t of a group is computed: the next group, during the last of several.
SW_INLINE const uint8_t* next_group(const Matrix& w, int next, int end, const Window& window,
                                    int t) {
  const bool is_last_of_several = t > window.begin && t + 1 == window.end;
  return is_last_of_several && next < end ? w.data + next * w.group_bytes : nullptr;
}

SW_INLINE int groups(const Matrix& w) { return (w.rows + LANES - 1) / LANES; }

// Each (group, tile) of a range, the group outside: its weights stay in L1.
template <class Epilogue>
SW_INLINE void each_tile(const Matrix& w, const Activations& a, int begin, int end, int tile_begin,
                         int tile_end, const Epilogue& epilogue) {
  Tile tile;
  if (begin >= end) return;
  for (; tile_begin < tile_end; tile_begin += Window::TILES) {
    const Window window(a, tile_begin, tile_end);
    for (int g = begin; g < end; ++g)
      for (int t = window.begin; t < window.end; ++t) {
        const int tokens = tile_tokens(a, t);
        const uint8_t* next = next_group(w, g + 1, end, window, t);
        compute_tile(w, g, next, a, t, window, tile_function(w.type, tokens), &tile);
        epilogue(g * LANES, t * TILE, tokens, tile);
      }
  }
}

void project(const ProjectArgs& args, int begin, int end, int tile_begin, int tile_end) {
  each_tile(args.w, args.in, begin, end, tile_begin, tile_end,
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
  const auto part = [](int x, int low, int high) { return x < low ? low : (x > high ? high : x); };
  each_tile(args.q, args.in, part(begin, 0, q_end), part(end, 0, q_end), tile_begin, tile_end,
            [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m)
                store(args.q_out + (size_t)(token + m) * args.q.rows + row,
                      rotate(args, token + m, row % dim, tile.row(m)) * args.q_scale);
            });
  each_tile(args.k, args.in, part(begin, q_end, k_end) - q_end, part(end, q_end, k_end) - q_end,
            tile_begin, tile_end, [&](int row, int token, int tokens, const Tile& tile) {
              for (int m = 0; m < tokens; ++m) {
                const int t = token + m, d = row % dim;
                uint16_t half[LANES];
                store(half, to_half(rotate(args, t, d, tile.row(m))));
                uint16_t* k = kv_block(args.kv, args.kv_blocks[t], row / dim) + args.kv_slots[t];
                for (int i = 0; i < LANES; ++i) k[(d + i) * KV_POSITIONS] = half[i];
              }
            });
  each_tile(args.v, args.in, part(begin, k_end, end) - k_end, part(end, k_end, end) - k_end,
            tile_begin, tile_end, [&](int row, int token, int tokens, const Tile& tile) {
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
  Tile gate[VECTORS], up[VECTORS];
  for (; tile_begin < tile_end; tile_begin += Window::TILES) {
    const Window window(args.in, tile_begin, tile_end);
    for (int unit = begin; unit < end; ++unit)
      for (int t = window.begin; t < window.end; ++t) {
        const int tokens = tile_tokens(args.in, t);
        const TileFunction gate_tile = tile_function(args.gate.type, tokens);
        const TileFunction up_tile = tile_function(args.up.type, tokens);
        for (int v = 0; v < VECTORS; ++v) {
          const int group = unit * VECTORS + v;
          const int next = group + VECTORS, last = end * VECTORS;
          compute_tile(args.gate, group, next_group(args.gate, next, last, window, t), args.in, t,
                       window, gate_tile, &gate[v]);
          compute_tile(args.up, group, next_group(args.up, next, last, window, t), args.in, t,
                       window, up_tile, &up[v]);
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
}

}  // namespace
