#include "network.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace servewright {
namespace {

constexpr int LINE_FLOATS = 16;  // of a cache line
constexpr size_t LINE_BYTES = LINE_FLOATS * sizeof(float);
// A thread is worth waking for so much: a wake costs 50 us. About 55 us of one core's arithmetic,
// or 0.2 ms of its memory where that gives each weight once.
constexpr size_t MULTIPLICATIONS_A_THREAD = 3'000'000;
constexpr size_t WEIGHTS_A_THREAD = size_t{1} << 20;

// Weights of so many bytes come from a core's own cache, however often.
constexpr size_t CACHED_BYTES = size_t{1} << 20;
// Then threads share a batch by so many tokens: two tiles or more in all variants, and few enough
// that one who comes late is not waited for.
constexpr int CACHED_TOKENS = 8;

// A network from this size on asks for huge pages (arena.h says what they are worth).
constexpr size_t HUGE_PAGE_FROM = HUGE_PAGE / 8;

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int whole(int floats, int of) { return ceil_div(floats, of) * of; }
int whole_lines(int floats) { return whole(floats, LINE_FLOATS); }
float* first_line(float* p) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p) + LINE_BYTES - 1;
  return reinterpret_cast<float*>(at / LINE_BYTES * LINE_BYTES);
}
size_t number_bytes(const DenseLayer& layer) { return layer.type == F32 ? 4 : 2; }
size_t kept_row(const DenseLayer& layer) {
  return (layer.cols * number_bytes(layer) + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}
size_t kept_bias(const DenseLayer& layer) { return whole_lines(layer.rows) * sizeof(float); }

}  // namespace

Network::Network(std::vector<DenseLayer> layers)
    : layers_(std::move(layers)) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DenseLayer& layer = layers_[i];
    const size_t weights = size_t(layer.rows) * layer.cols;
    multiplications_ += weights;
    weights_bytes_ += weights * number_bytes(layer);
    if (i + 1 < layers_.size()) widest_ = std::max(widest_, whole_lines(layer.rows));
    if (layer.type == BF16) unzipped_ = std::max(unzipped_, whole(layer.cols, 2 * MAX_LANES));
  }
}

void Network::keep() {
  size_t bytes = 0;
  for (const DenseLayer& layer : layers_) bytes += layer.rows * kept_row(layer) + kept_bias(layer);
  kept_ = Reservation(bytes, bytes >= HUGE_PAGE_FROM);
  uint8_t* at = kept_.data();
  for (DenseLayer& layer : layers_) {
    const size_t from_row = layer.stride * number_bytes(layer), to_row = kept_row(layer);
    for (int row = 0; row < layer.rows; ++row)
      std::memcpy(at + row * to_row, static_cast<const uint8_t*>(layer.weights) + row * from_row,
                  layer.cols * number_bytes(layer));
    layer.weights = at;
    layer.stride = to_row / number_bytes(layer);
    at += layer.rows * to_row;
    if (layer.bias) {
      std::memcpy(at, layer.bias, layer.rows * sizeof(float));
      layer.bias = reinterpret_cast<float*>(at);
    }
    at += kept_bias(layer);
  }
}

void Network::run_chunk(const Kernels& kernels, const float* x, int tokens, float* y,
                        float* workspace, const Place& at) const {
  size_t x_stride = inputs();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DenseLayer& layer = layers_[i];
    const bool is_last = i + 1 == layers_.size();
    float* out = is_last ? y : workspace + i % 2 * tokens * widest_;
    const size_t out_stride = is_last ? layer.rows : widest_;
    if (layer.type == BF16) {
      float* const unzipped = workspace + size_t(2) * tokens * widest_;
      const UnzipArgs args{x, x_stride, layer.cols, unzipped, size_t(unzipped_)};
      at.team.phase(at.phase, at.thread, tokens, 1,
                    [&](int begin, int end) { kernels.unzip(args, begin, end); });
      x = unzipped;
      x_stride = unzipped_;
    }
    const DenseArgs args{layer.weights, layer.stride, layer.type,       layer.bias,
                         layer.rows,    layer.cols,   layer.activation, x,
                         x_stride,      out,          out_stride,       tokens};
    at.team.phase(at.phase, at.thread, ceil_div(layer.rows, DENSE_ROWS), 1,
                  [&](int begin, int end) { kernels.dense(args, begin, end); });
    if (layer.activation == Activation::SOFTMAX)
      at.team.phase(at.phase, at.thread, tokens, 1,
                    [&](int begin, int end) { kernels.softmax(args, begin, end); });
    x = out;
    x_stride = out_stride;
  }
}

void Network::run(const Kernels& kernels, const float* x, int tokens, float* y, int threads) const {
  if (tokens == 0) return;
  size_t worth = multiplications_ * tokens / MULTIPLICATIONS_A_THREAD;
  if (weights_bytes_ > CACHED_BYTES) worth = std::max(worth, multiplications_ / WEIGHTS_A_THREAD);
  threads = static_cast<int>(std::min<size_t>(threads, std::max<size_t>(worth, 1)));
  const bool is_cached = weights_bytes_ <= CACHED_BYTES && tokens >= threads * CACHED_TOKENS;
  const int chunk_tokens = threads > 1 && is_cached ? CACHED_TOKENS : DENSE_TOKENS;
  const int chunks = ceil_div(tokens, chunk_tokens);
  // Enough chunks: each thread takes its own tokens, else all share the rows of a chunk.
  const bool is_by_chunk = chunks >= threads;
  const size_t floats = size_t(2 * widest_ + unzipped_) * std::min(tokens, chunk_tokens);
  const size_t all = floats * (is_by_chunk ? threads : 1);
  const std::unique_ptr<float[]> memory(new float[all + LINE_FLOATS]);
  float* const workspace = first_line(memory.get());
  const auto run_one = [&](int chunk, float* own, const Place& at) {
    const size_t first = size_t(chunk) * chunk_tokens;
    const int count = std::min(chunk_tokens, tokens - chunk * chunk_tokens);
    run_chunk(kernels, x + first * inputs(), count, y + first * outputs(), own, at);
  };
  const auto run_alone = [&](int begin, int end, float* own) {
    Team alone(1);
    for (int chunk = begin, phase = 0; chunk < end; ++chunk)
      run_one(chunk, own, {alone, 0, &phase});
  };
  if (threads == 1) return run_alone(0, chunks, workspace);
  Team team(threads);
  team.reset(is_by_chunk ? 1 : chunks * 3 * static_cast<int>(layers_.size()));
  run_on_pool(threads, [&](int thread) {
    int phase = 0;
    if (is_by_chunk)
      team.phase(&phase, thread, chunks, 1,
                 [&](int begin, int end) { run_alone(begin, end, workspace + floats * thread); });
    else
      for (int chunk = 0; chunk < chunks; ++chunk)
        run_one(chunk, workspace, {team, thread, &phase});
  });
}

}  // namespace servewright
