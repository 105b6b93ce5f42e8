// Layers of dense networks in float32, W in float32, float16 or bfloat16:
// y = activation(W x + bias).
//
//   Order   float32, float16: lane i sums the columns i, i + LANES, ... in ascending order, one
//           chain of fused multiply-adds. bfloat16: the columns 2 i, 2 i + 1, 2 i + 2 LANES, ...
//           Then lanes by halves (sum of simd.h), then the bias. Rows and tokens that share a tile
//           do not enter, so a token has the same bits in any batch.
//   Error   of a product: (n + log2(LANES) + 2) 2^-24 sum|terms|, n the columns of a lane; the base
//           variant, whose fma rounds twice, doubles n. Weights are taken as they are.
//   Bytes   W once for each 64 tokens from memory, for each tile of tokens from L2.
//
// Activations, u = 2^-24, beside the error of their argument:
//   relu              exact
//   sigmoid           7 u relative; exactly 0 below -87
//   tanh              5 u relative
//   gelu, gelu_tanh   |error| <= 10 u |z|
//   softmax           (d_i + D + rows / LANES + 20) u relative, with d_i = max z - z_i and D the
//                     mean of d by the probabilities; exactly 0 where d_i is above 87
// NaN stays NaN, in softmax for the whole row.
#pragma once
#include "simd.h"

namespace {

using servewright::Activation;
using servewright::DENSE_ROWS;
using servewright::DENSE_TOKENS;
using servewright::DenseArgs;
using servewright::UnzipArgs;

// Of a tile: rows, and tokens (with weights of bfloat16). Rows of a tile of one token, chains that
// hide an fma's latency.
constexpr int DENSE_TILE_ROWS = 4;
#if SW_LANES == 16
constexpr int DENSE_TILE = 4;  // 16 sums, 4 inputs (8) and a weight (3) of 32 registers
constexpr int DENSE_PAIRS_TILE = 4;
constexpr int DENSE_CHAINS = 8;
#elif defined(SW_AVX2)
constexpr int DENSE_TILE = 3;        // 12 sums, 3 inputs and a weight of 16
constexpr int DENSE_PAIRS_TILE = 2;  // 8, 4 and 3
constexpr int DENSE_CHAINS = 8;
#else
constexpr int DENSE_TILE = 1;  // 8 of 16 registers, in pairs
constexpr int DENSE_PAIRS_TILE = 1;
constexpr int DENSE_CHAINS = 4;
#endif

// What a type of weights reads in a step of COLUMNS columns, or of the last `count` where it is not
// WHOLE: PARTS vectors of weights, and the inputs that meet them. What is beyond `count` is 0, and
// no byte of it is touched.
struct Singles {
  static constexpr int COLUMNS = LANES, PARTS = 1, TILE = DENSE_TILE;
  template <bool WHOLE>
  SW_INLINE void inputs(const float* p, int count, F (&in)[PARTS]) {
    in[0] = once(WHOLE ? load<F>(p) : load_first(p, count));
  }
};

struct Float32 : Singles {
  using Weight = float;
  template <bool WHOLE>
  SW_INLINE void weights(const float* p, int count, F (&w)[PARTS]) {
    w[0] = WHOLE ? load<F>(p) : load_first(p, count);
  }
};

struct Float16 : Singles {
  using Weight = uint16_t;
  template <bool WHOLE>
  SW_INLINE void weights(const uint16_t* p, int count, F (&w)[PARTS]) {
    w[0] = WHOLE ? load_half(p) : load_first_half(p, count);
  }
};

// A lane of 32 bits holds two columns; each is a float32 whose lower half is 0. Inputs are
// unzipped.
struct BFloat16 {
  using Weight = uint16_t;
  static constexpr int COLUMNS = 2 * LANES, PARTS = 2, TILE = DENSE_PAIRS_TILE;
  template <bool WHOLE>
  SW_INLINE void inputs(const float* p, int, F (&in)[PARTS]) {
    in[0] = once(load<F>(p));
    in[1] = once(load<F>(p + LANES));
  }
  template <bool WHOLE>
  SW_INLINE void weights(const uint16_t* p, int count, F (&w)[PARTS]) {
    const U pairs = once(WHOLE ? load<U>(p) : load_first_pairs(p, count));
    w[0] = (F)(pairs << 16);
    w[1] = (F)(pairs & 0xffff0000u);
  }
};

template <class W, bool WHOLE, int R, int M>
SW_INLINE void dense_step(const DenseArgs& a, const typename W::Weight* w, const float* x,
                          int count, F (&sums)[M][R]) {
  F in[M][W::PARTS];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) W::template inputs<WHOLE>(x + m * a.x_stride, count, in[m]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    F weights[W::PARTS];
    W::template weights<WHOLE>(w + r * a.weights_stride, WHOLE ? count : anew(count), weights);
#pragma GCC unroll 8
    for (int part = 0; part < W::PARTS; ++part)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m][r] = fma(weights[part], in[m][part], sums[m][r]);
  }
}

// The sums of R rows and M tokens, into y. Not inlined: a caller's registers would be spilled
// inside the loop.
template <class W, int R, int M>
__attribute__((noinline)) void dense_tile(const DenseArgs& a, int row, int token) {
  const auto* w = (const typename W::Weight*)a.weights + (size_t)row * a.weights_stride;
  const float* x = a.x + (size_t)token * a.x_stride;
  F sums[M][R];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[m][r] = F{};
  int k = 0;
  for (; k + W::COLUMNS <= a.cols; k += W::COLUMNS)
    dense_step<W, true>(a, w + k, x + k, W::COLUMNS, sums);
  if (k < a.cols) dense_step<W, false>(a, w + k, x + k, a.cols - k, sums);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float* y = a.y + (size_t)(token + m) * a.y_stride + row;
    int r = 0;
#pragma GCC unroll 8
    for (; r + 4 <= R; r += 4)
      store(y + r, sums_of_four(sums[m][r], sums[m][r + 1], sums[m][r + 2], sums[m][r + 3]));
#pragma GCC unroll 8
    for (; r < R; ++r) y[r] = sum(sums[m][r]);
  }
}

// R rows of the tokens [token, last), M of them at a time as long as there are so many.
template <class W, int R, int M>
void dense_tokens(const DenseArgs& a, int row, int token, int last) {
  for (; token + M <= last; token += M) dense_tile<W, R, M>(a, row, token);
  if constexpr (M > 1) dense_tokens<W, R, M - 1>(a, row, token, last);
}

// A tile's tokens stay in L1 while all rows pass by.
template <class W>
void dense_rows(const DenseArgs& a, int first, int last) {
  for (int token = 0; token < a.tokens; token += W::TILE) {
    const int end = token + W::TILE < a.tokens ? token + W::TILE : a.tokens;
    int row = first;
    if (end - token == 1)
      for (; row + DENSE_CHAINS <= last; row += DENSE_CHAINS)
        dense_tile<W, DENSE_CHAINS, 1>(a, row, token);
    for (; row + DENSE_TILE_ROWS <= last; row += DENSE_TILE_ROWS)
      dense_tokens<W, DENSE_TILE_ROWS, W::TILE>(a, row, token, end);
    for (; row < last; ++row) dense_tokens<W, 1, W::TILE>(a, row, token, end);
  }
}

SW_INLINE F sigmoid(F z) { return z < -87.0f ? F{} : 1.0f / (exponential(-z) + 1.0f); }

SW_INLINE F tanh_of(F z) {
  const F size = magnitude(z);
  const F large = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
  const I sign = (I)z & ~0x7fffffff;
  // Cephes' tanhf (Moshier): z + z^3 P(z^2) below 0.625.
  const F square = z * z;
  F p = fma(square, all(-5.70498872745e-3f), all(2.06390887954e-2f));
  p = fma(p, square, all(-5.37397155531e-2f));
  p = fma(p, square, all(1.33314422036e-1f));
  p = fma(p, square, all(-3.33332819422e-1f));
  const F small = fma(p * square, z, z);
  return size < 0.625f ? small : (F)((I)large | sign);
}

// P(t) = e^(a^2) erfc(a) / 2 t of t = 1 / (1 + a / 2), 0 <= a <= 9.4, relative error below 8e-8: a
// least-squares fit on Chebyshev points.
constexpr float TAIL_FIT[] = {0.141041741f, 0.14121677f,    0.121316135f,
                              0.102367759f, -0.0159383118f, 0.143121436f,
                              -0.24739626f, 0.144219771f,   -0.0299490485f};

// z Phi(z) = max(z, 0) - |z| Q with Q = erfc(a) / 2 = t P(t) e^(-a^2), a = |z| / sqrt 2.
SW_INLINE F gelu(F z) {
  F size = magnitude(z);
  size = size > 16.0f ? all(16.0f) : size;  // Q is 0 from 13.2 on; infinity would be NaN
  const F t = 1.0f / fma(size, all(0.353553391f), all(1.0f));
  constexpr int DEGREE = sizeof TAIL_FIT / sizeof *TAIL_FIT - 1;
  F p = all(TAIL_FIT[DEGREE]);
#pragma GCC unroll 8
  for (int i = DEGREE - 1; i >= 0; --i) p = fma(p, t, all(TAIL_FIT[i]));
  const F tail = size * (p * t) * exponential(-0.5f * (size * size));
  return z < 0.0f ? -tail : z - tail;
}

SW_INLINE F gelu_tanh(F z) {
  const F cube = z * z * z;
  const F w = fma(cube, all(0.044715f), z) * 1.5957691216057308f;  // 2 sqrt(2 / pi)
  return z * sigmoid(w);
}

template <Activation A>
SW_INLINE F activate(F z) {
  if (A == Activation::RELU) return z < 0.0f ? F{} : z;
  if (A == Activation::GELU) return gelu(z);
  if (A == Activation::GELU_TANH) return gelu_tanh(z);
  if (A == Activation::TANH) return tanh_of(z);
  if (A == Activation::SIGMOID) return sigmoid(z);
  return z;
}

// y[begin, end) of a token becomes activation(y + bias).
template <Activation A>
void finish_rows(const DenseArgs& a, int token, int begin, int end) {
  float* y = a.y + (size_t)token * a.y_stride;
  for (int row = begin; row < end; row += LANES) {
    const int count = end - row < LANES ? end - row : LANES;
    F z = load_first(y + row, count);
    if (a.bias) z += load_first(a.bias + row, count);
    store_first(y + row, activate<A>(z), count);
  }
}

void finish_rows(const DenseArgs& a, int token, int begin, int end) {
  switch (a.activation) {
    case Activation::RELU:
      return finish_rows<Activation::RELU>(a, token, begin, end);
    case Activation::GELU:
      return finish_rows<Activation::GELU>(a, token, begin, end);
    case Activation::GELU_TANH:
      return finish_rows<Activation::GELU_TANH>(a, token, begin, end);
    case Activation::TANH:
      return finish_rows<Activation::TANH>(a, token, begin, end);
    case Activation::SIGMOID:
      return finish_rows<Activation::SIGMOID>(a, token, begin, end);
    default:
      return finish_rows<Activation::NONE>(a, token, begin, end);
  }
}

void dense(const DenseArgs& a, int begin, int end) {
  for (int unit = begin; unit < end; ++unit) {
    const int first = unit * DENSE_ROWS;
    const int last = a.rows - first < DENSE_ROWS ? a.rows : first + DENSE_ROWS;
    if (a.type == servewright::F16)
      dense_rows<Float16>(a, first, last);
    else if (a.type == servewright::BF16)
      dense_rows<BFloat16>(a, first, last);
    else
      dense_rows<Float32>(a, first, last);
    for (int token = 0; token < a.tokens; ++token) finish_rows(a, token, first, last);
  }
}

void unzip(const UnzipArgs& a, int begin, int end) {
  for (int token = begin; token < end; ++token) {
    const float* x = a.x + (size_t)token * a.x_stride;
    float* out = a.out + (size_t)token * a.out_stride;
    for (int k = 0; k < a.cols; k += 2 * LANES) {
      const int left = a.cols - k;
      const F first = left >= LANES ? load<F>(x + k) : load_first(x + k, left);
      F second = {};
      if (left >= 2 * LANES)
        second = load<F>(x + k + LANES);
      else if (left > LANES)
        second = load_first(x + k + LANES, left - LANES);
      store(out + k, evens(first, second));
      store(out + k + LANES, odds(first, second));
    }
  }
}

void softmax(const DenseArgs& a, int begin, int end) {
  const float nothing = -__builtin_inff();
  for (int token = begin; token < end; ++token) {
    float* y = a.y + (size_t)token * a.y_stride;
    const int whole = a.rows / LANES * LANES, rest = a.rows - whole;
    // Lanes beyond the last row are -infinity, whose exponential is 0.
    const auto last = [&] {
      return LANE_NUMBERS < rest ? load_first(y + whole, rest) : all(nothing);
    };
    F most = rest ? last() : all(nothing), total = {};
    for (int i = 0; i < whole; i += LANES) most = maximum(most, load<F>(y + i));
    const float max = largest(most);
    for (int i = 0; i < whole; i += LANES) {
      const F e = exponential(load<F>(y + i) - max);
      total += e;
      store(y + i, e);
    }
    if (rest) {
      const F e = exponential(last() - max);
      total += e;
      store_first(y + whole, e, rest);
    }
    const float inverse = 1.0f / sum(total);
    for (int i = 0; i < whole; i += LANES) store(y + i, load<F>(y + i) * inverse);
    if (rest) store_first(y + whole, load_first(y + whole, rest) * inverse, rest);
  }
}

}  // namespace
