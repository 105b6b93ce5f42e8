#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "arrays.h"
#include "common/draws.h"
#include "convert.h"
#include "cpu/dispatch.h"
#include "model/pack.h"
#include "model/pool.h"
#include "model/sampling.h"
#include "records.h"

namespace servewright {
namespace {

struct PackedRows {
  Buffer<uint8_t> bytes;
  Matrix matrix{};
};

// A thread is worth waking for this many multiplications, of a wake's 50 us.
constexpr size_t MULTIPLICATIONS_A_THREAD = size_t{1} << 22;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

TensorType tensor_type(const std::string& wanted) {
  int type = 0;
  while (type < TENSOR_TYPES && wanted != type_name(TensorType(type))) ++type;
  if (type == TENSOR_TYPES) throw std::invalid_argument("tensor_type: no type " + wanted);
  return TensorType(type);
}

void check_columns(long long cols) {
  if (cols < BLOCK || cols % BLOCK || cols > INT_MAX / 8)
    throw std::invalid_argument("cols must be a multiple of 32, got " + std::to_string(cols));
}

// A norm's weights for rows of x.
const float* norm_of(const py::object& object, const py::array_t<float>& x,
                     py::array_t<float>* kept) {
  *kept = typed_array<float>(object, "weight", 1);
  if (kept->shape(0) != x.shape(1))
    throw std::invalid_argument("weight must be [" + std::to_string(x.shape(1)) + "], got " +
                                shape_text(*kept));
  return kept->data();
}

void pack(const Kernels& kernels, const std::string& type_wanted, const py::object& object,
          long long cols, PackedRows* out) {
  const TensorType type = tensor_type(type_wanted);
  check_columns(cols);
  const auto rows = typed_array<uint8_t>(object, "rows", 2);
  const size_t wanted = row_bytes(type, static_cast<int>(cols));
  if (static_cast<size_t>(rows.shape(1)) != wanted || rows.shape(0) < 1)
    throw std::invalid_argument("rows must be [rows, " + std::to_string(wanted) + "], got " +
                                shape_text(rows));
  const int count = static_cast<int>(rows.shape(0));
  const size_t group = group_bytes(type, static_cast<int>(cols), kernels.lanes);
  const size_t bytes = (count + kernels.lanes - 1) / kernels.lanes * group;
  uint8_t* data = out->bytes.ensure(bytes);
  std::memset(data, 0, bytes);
  out->matrix = Matrix{data, group, count, static_cast<int>(cols), type};
  pack_rows(kernels, out->matrix, data, 0, count, rows.data());
}

// What pack_matrix made.
Matrix packed_matrix(const Kernels& kernels, const std::string& type_wanted,
                     const py::object& object, int rows, long long cols,
                     py::array_t<uint8_t>* kept) {
  const TensorType type = tensor_type(type_wanted);
  check_columns(cols);
  *kept = typed_array<uint8_t>(object, "packed", 2);
  const size_t group = group_bytes(type, static_cast<int>(cols), kernels.lanes);
  const long long groups = (rows + kernels.lanes - 1LL) / kernels.lanes;
  if (rows < 1 || kept->shape(0) != groups || static_cast<size_t>(kept->shape(1)) != group)
    throw std::invalid_argument("packed must be what pack() made here of " + std::to_string(rows) +
                                " " + type_wanted + " rows of " + std::to_string(cols) +
                                " columns, got " + shape_text(*kept));
  return {kept->data(), group, rows, static_cast<int>(cols), type};
}

void check_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads must be in 1..1024, got " + std::to_string(threads));
}

// x, normed where there is a weight, as a projection takes it.
Activations prepare(const Kernels& kernels, const py::array_t<float>& x, const float* weight,
                    float eps, ActivationBuffer* out) {
  const int tokens = static_cast<int>(x.shape(0)), cols = static_cast<int>(x.shape(1));
  if (cols < BLOCK || cols % BLOCK)
    throw std::invalid_argument("x must have a multiple of 32 columns, got " + shape_text(x));
  const Activations in = out->ensure(kernels, tokens, cols, true, true);
  kernels.norm(NormArgs{x.data(), static_cast<size_t>(cols), nullptr, weight, eps, in}, 0, tokens);
  return in;
}

}  // namespace

py::list variants() {
  py::list out;
  for (const Kernels* kernels : all_kernels())
    out.append(py::make_tuple(kernels->name, is_runnable(*kernels)));
  return out;
}

std::string unfit_config(const py::object& config) { return unfit(read_config(config)); }

py::array_t<float> op_project(const std::string& variant, const std::string& type,
                              const py::object& rows, const py::object& x_object) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 2);
  PackedRows w;
  pack(kernels, type, rows, x.shape(1), &w);
  ActivationBuffer inputs;
  const Activations in = prepare(kernels, x, nullptr, 0.0f, &inputs);
  const int tokens = in.tokens, count = w.matrix.rows;
  const int groups = (count + kernels.lanes - 1) / kernels.lanes, stride = groups * kernels.lanes;
  Buffer<float> buffer;
  float* y = buffer.ensure(static_cast<size_t>(tokens) * stride);
  const ProjectArgs args{w.matrix, in, y, static_cast<size_t>(stride), false};
  kernels.project(args, 0, groups, 0, (tokens + kernels.tile_tokens - 1) / kernels.tile_tokens);
  py::array_t<float> out({tokens, count});
  for (int t = 0; t < tokens; ++t)
    std::copy_n(y + static_cast<size_t>(t) * stride, count, out.mutable_data(t, 0));
  return out;
}

py::array_t<uint8_t> pack_matrix(const std::string& variant, const std::string& type,
                                 const py::object& rows, int cols) {
  PackedRows w;
  pack(runnable_kernels(variant), type, rows, cols, &w);
  const auto group = static_cast<py::ssize_t>(w.matrix.group_bytes);
  const py::ssize_t groups = ceil_div(w.matrix.rows, runnable_kernels(variant).lanes);
  py::array_t<uint8_t> out({groups, group});
  std::copy_n(w.matrix.data, out.size(), out.mutable_data());
  return out;
}

py::array_t<float> project_packed(const std::string& variant, const std::string& type_wanted,
                                  const py::object& packed_object, int rows,
                                  const py::object& x_object, const py::object& norm_object,
                                  float eps, int threads) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 2);
  const int cols = static_cast<int>(x.shape(1));
  py::array_t<uint8_t> packed;
  const Matrix w = packed_matrix(kernels, type_wanted, packed_object, rows, cols, &packed);
  const int groups = static_cast<int>(packed.shape(0));
  check_threads(threads);
  py::array_t<float> norm;
  const float* norm_weight = nullptr;
  if (!norm_object.is_none()) norm_weight = norm_of(norm_object, x, &norm);
  py::array_t<float> out({static_cast<int>(x.shape(0)), rows});
  if (out.size() == 0) return out;
  float* const to = out.mutable_data();
  py::gil_scoped_release release;
  ActivationBuffer inputs;
  const Activations in = prepare(kernels, x, norm_weight, eps, &inputs);
  const int tokens = in.tokens, stride = groups * kernels.lanes;
  const int tiles = ceil_div(tokens, kernels.tile_tokens);
  const int block_tiles = BLOCK_TOKENS / kernels.tile_tokens;
  const bool is_whole = stride == rows;
  Buffer<float> buffer;
  float* const y = is_whole ? to : buffer.ensure(static_cast<size_t>(tokens) * stride);
  const ProjectArgs args{w, in, y, static_cast<size_t>(stride), false};
  const size_t work = static_cast<size_t>(rows) * cols * tokens / MULTIPLICATIONS_A_THREAD;
  Team team(static_cast<int>(std::min<size_t>(threads, std::max<size_t>(work, 1))));
  team.reset(1);
  run_on_pool(team.threads(), [&](int thread) {
    int phase = 0;
    team.phase(&phase, thread, groups, ceil_div(groups, 8 * team.threads()),
               [&](int begin, int end) {
                 for (int tile = 0; tile < tiles; tile += block_tiles)
                   kernels.project(args, begin, end, tile, std::min(tile + block_tiles, tiles));
               });
  });
  for (int t = 0; t < tokens && !is_whole; ++t)
    std::copy_n(y + static_cast<size_t>(t) * stride, rows, to + static_cast<size_t>(t) * rows);
  return out;
}

py::array_t<float> op_dequantise(const std::string& variant, const std::string& type,
                                 const py::object& rows, int cols) {
  const Kernels& kernels = runnable_kernels(variant);
  PackedRows w;
  pack(kernels, type, rows, cols, &w);
  py::array_t<float> out({w.matrix.rows, cols});
  for (int r = 0; r < w.matrix.rows; ++r) unpack_row(kernels, w.matrix, r, out.mutable_data(r, 0));
  return out;
}

py::array_t<float> dequantise_packed(const std::string& variant, const std::string& type,
                                     const py::object& packed_object, int rows, int cols) {
  const Kernels& kernels = runnable_kernels(variant);
  py::array_t<uint8_t> packed;
  const Matrix w = packed_matrix(kernels, type, packed_object, rows, cols, &packed);
  py::array_t<float> out({rows, cols});
  float* const to = out.mutable_data();
  py::gil_scoped_release release;
  for (int r = 0; r < rows; ++r) unpack_row(kernels, w, r, to + static_cast<size_t>(r) * cols);
  return out;
}

py::tuple sample(const std::string& variant, const py::object& logits_object,
                 const py::object& sampling, int threads) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto logits = typed_array<float>(logits_object, "sample: logits", 2);
  const int vocab = static_cast<int>(logits.shape(1));
  if (vocab < 1 || vocab > MAX_DRAW_VOCAB)
    throw std::invalid_argument("sample: logits must have 1.." + std::to_string(MAX_DRAW_VOCAB) +
                                " columns, got " + std::to_string(vocab));
  check_threads(threads);
  StepInput in;
  in.samples = static_cast<int>(logits.shape(0));
  ArrayReader arrays("sample");
  read_sampling(sampling, &arrays, &in);
  check_sampling("sample", in, vocab);
  py::array_t<int32_t> ids(in.samples);
  py::array_t<bool> finite(in.samples);
  int32_t* const to_ids = ids.mutable_data();
  bool* const to_finite = finite.mutable_data();
  {
    py::gil_scoped_release release;
    Team team(std::max(std::min(threads, in.samples), 1));
    team.reset(1);
    std::vector<std::unique_ptr<Sampler>> samplers(team.threads());
    for (auto& sampler : samplers) sampler = std::make_unique<Sampler>(kernels, vocab);
    run_on_pool(team.threads(), [&](int thread) {
      int phase = 0;
      team.phase(&phase, thread, in.samples, 1, [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
          const float* const from = logits.data() + static_cast<size_t>(row) * vocab;
          ScanResult scan;
          kernels.scan(from, vocab, &scan);
          to_ids[row] = samplers[thread]->draw(from, scan, sampling_row(in, row));
          to_finite[row] = scan.finite != 0;
        }
      });
    });
  }
  return py::make_tuple(ids, finite);
}

py::tuple op_quantise(const std::string& variant, const py::object& x_object,
                      const py::object& weight_object, float eps) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 2);
  py::array_t<float> weight;
  const float* const values =
      weight_object.is_none() ? nullptr : norm_of(weight_object, x, &weight);
  ActivationBuffer inputs;
  const Activations in = prepare(kernels, x, values, eps, &inputs);
  const int tokens = in.tokens, blocks = in.cols / BLOCK;
  py::array_t<int8_t> q({tokens, blocks * BLOCK});
  py::array_t<float> scales({tokens, blocks}), outliers({tokens, blocks});
  py::array_t<int32_t> minus_8_sums({tokens, blocks}), columns({tokens, blocks});
  const uint8_t *at = in.q8, *marks = in.marks;
  const int mark_bytes = ceil_div(blocks, MARKS) * MARKS * MARKS;
  for (int first = 0; first < tokens; first += kernels.tile_tokens) {
    const int count = std::min(kernels.tile_tokens, tokens - first);
    for (int b = 0; b < blocks; ++b, at += count * ACTIVATION_BYTES)
      for (int m = 0; m < count; ++m) {
        std::memcpy(q.mutable_data(first + m, b * BLOCK), at + m * BLOCK, BLOCK);
        const uint8_t* tail = at + count * BLOCK + 4 * m;
        std::memcpy(scales.mutable_data(first + m, b), tail, 4);
        std::memcpy(minus_8_sums.mutable_data(first + m, b), tail + 4 * count, 4);
        std::memcpy(outliers.mutable_data(first + m, b), tail + 12 * count, 4);
        const uint8_t* part = marks + m / MARKS * mark_bytes;
        *columns.mutable_data(first + m, b) = part[b * MARKS + m % MARKS] - 1;
      }
    marks += ceil_div(kernels.tile_tokens, MARKS) * mark_bytes;
  }
  return py::make_tuple(q, scales, minus_8_sums, outliers, columns);
}

py::array_t<double> op_exponentials(const std::string& variant, const py::object& x_object,
                                    double temperature) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 1);
  const int n = static_cast<int>(x.shape(0));
  py::array_t<double> out(n);
  if (n == 0) return out;
  std::copy_n(x.data(), n, out.mutable_data());
  kernels.exponentials(out.mutable_data(), n, *std::max_element(x.data(), x.data() + n),
                       temperature);
  return out;
}

py::tuple op_scan(const std::string& variant, const py::object& x_object) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 1);
  ScanResult result;
  kernels.scan(x.data(), static_cast<int>(x.shape(0)), &result);
  return py::make_tuple(result.max, result.argmax, result.finite != 0);
}

}  // namespace servewright
