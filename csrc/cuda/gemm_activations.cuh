// Operand B: of each token tile a lane holds, for a 32-block of columns, token g's columns
// 8 t .. 8 t + 7 as four pairs of bf16, read from L2 as 16-byte vectors. And 1 / rms of each token.
#pragma once
#include "gemm_plan.cuh"

namespace servewright::cuda {

// ---- Activations: of each token tile this lane's columns 8 t .. 8 t + 7 of token g, as pairs.
// ----

// Where this lane reads next.
template <class T>
struct Reader {
  const T* first;   // of the lane's token in token tile 0
  int tokens_left;  // from that token to the last one

  SW_DEVICE Reader(const T* x, const GemmArgs& args, int first_token, const Lane& at, int column) {
    const int token = minimum(first_token + at.group, args.tokens - 1);
    first = x + static_cast<size_t>(token) * args.cols + column;
    tokens_left = args.tokens - 1 - token;
  }
  // In token tile n. Past the last token it is the last one again, whose results nobody stores.
  SW_DEVICE const T* row(int n, int cols) const {
    return first + minimum(n * MMA_TOKENS, tokens_left) * cols;
  }
};

SW_DEVICE Vector<uint32_t, 4> load_or_zeros(const void* p, bool valid) {
  return valid ? load_vector<Vector<uint32_t, 4>>(p) : Vector<uint32_t, 4>{{0, 0, 0, 0}};
}

// `left`: columns from this lane's first one to the end of the matrix.
template <int TOKEN_TILES>
SW_DEVICE void load_activations(const Reader<bfloat16>& in, int cols, int left,
                                uint32_t (&pairs)[TOKEN_TILES][4]) {
  SW_UNROLL
  for (int n = 0; n < TOKEN_TILES; ++n) {
    const auto v = load_or_zeros(in.row(n, cols), left > 0);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) pairs[n][i] = v[i];
  }
}

// x * weight as bf16 pairs. A lane's 8 floats are a sector of 32 bytes; that each load takes whole
// sectors, the two lanes of a pair load both halves of the even lane's sector, then of the odd
// lane's, and swap halves when they are bf16.
SW_DEVICE void scale_half(const Vector<uint32_t, 4>& x, const Vector<uint32_t, 4>& weight,
                          uint32_t (&pairs)[2], float& squares) {
  float y[4];
  SW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float value = bit_cast<float>(x[i]);
    squares = fma(value, value, squares);
    y[i] = value * bit_cast<float>(weight[i]);
  }
  pairs[0] = pack_bfloat16(y[0], y[1]);
  pairs[1] = pack_bfloat16(y[2], y[3]);
}

template <int TOKEN_TILES>
SW_DEVICE void load_normed(const Reader<float>& in, int cols, const float* weight, bool odd,
                           int left, uint32_t (&pairs)[TOKEN_TILES][4],
                           float (&squares)[TOKEN_TILES]) {
  const bool even_valid = left > 0, odd_valid = left > 8;
  const auto even_weight = load_or_zeros(weight, even_valid);
  const auto odd_weight = load_or_zeros(weight + 8, odd_valid);
  SW_UNROLL
  for (int n = 0; n < TOKEN_TILES; ++n) {
    const auto even_x = load_or_zeros(in.row(n, cols), even_valid);
    const auto odd_x = load_or_zeros(in.row(n, cols) + 8, odd_valid);
    uint32_t even_pairs[2], odd_pairs[2];
    scale_half(even_x, even_weight, even_pairs, squares[n]);
    scale_half(odd_x, odd_weight, odd_pairs, squares[n]);
    SW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t got = shuffle_xor(odd ? even_pairs[i] : odd_pairs[i], 1);
      pairs[n][i] = odd ? got : even_pairs[i];
      pairs[n][2 + i] = odd ? odd_pairs[i] : got;
    }
  }
}

// 1 / rms of the block's tokens, from the sums of squares that the launch before left. A warp takes
// every WARPS-th token, a lane every 32nd vector of four sums, and lanes are added in a tree: the
// columns alone decide the order. The caller waits.
template <int WARPS, int TOKENS>
SW_DEVICE void leave_scales(const GemmArgs& args, const Lane& at, int first_token,
                            float (&scales)[TOKENS]) {
  constexpr int OWN = TOKENS / WARPS;
  const int count = (args.cols + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
  float sums[OWN] = {};
  for (int first = 4 * at.lane; first < count; first += 4 * 32) {
    SW_UNROLL
    for (int i = 0; i < OWN; ++i) {
      const int token = minimum(first_token + at.warp + i * WARPS, args.tokens - 1);
      const auto v =
          load_vector<Vector<float, 4>>(args.squares + squares_at(token, first, args.cols));
      SW_UNROLL
      for (int k = 0; k < 4; ++k) sums[i] += first + k < count ? v[k] : 0.0f;
    }
  }
  SW_UNROLL
  for (int i = 0; i < OWN; ++i) {
    SW_UNROLL
    for (int mask = 1; mask < 32; mask *= 2) sums[i] += shuffle_xor(sums[i], mask);
    if (at.lane == 0)
      scales[at.warp + i * WARPS] = rsqrt(fma(sums[i], args.inverse_cols, args.eps));
  }
}

}  // namespace servewright::cuda
