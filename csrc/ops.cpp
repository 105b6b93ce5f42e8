#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "arrays.h"
#include "convert.h"
#include "cpu/dispatch.h"
#include "model/pack.h"

namespace servewright {
namespace {

struct PackedRows {
  Buffer<uint8_t> bytes;
  Matrix matrix{};
};

void pack(const Kernels& kernels, const std::string& type_wanted, const py::object& object,
          long long cols, PackedRows* out) {
  int type = 0;
  while (type < TENSOR_TYPES && type_wanted != type_name(TensorType(type))) ++type;
  if (type == TENSOR_TYPES) throw std::invalid_argument("tensor_type: no type " + type_wanted);
  if (cols < BLOCK || cols % BLOCK || cols > INT_MAX / 8)
    throw std::invalid_argument("cols must be a multiple of 32, got " + std::to_string(cols));
  const auto rows = typed_array<uint8_t>(object, "rows", 2);
  const size_t wanted = row_bytes(TensorType(type), static_cast<int>(cols));
  if (static_cast<size_t>(rows.shape(1)) != wanted || rows.shape(0) < 1)
    throw std::invalid_argument("rows must be [rows, " + std::to_string(wanted) + "], got " +
                                shape_text(rows));
  const int count = static_cast<int>(rows.shape(0));
  const size_t group = group_bytes(TensorType(type), static_cast<int>(cols), kernels.lanes);
  const size_t bytes = (count + kernels.lanes - 1) / kernels.lanes * group;
  uint8_t* data = out->bytes.ensure(bytes);
  std::memset(data, 0, bytes);
  out->matrix = Matrix{data, group, count, static_cast<int>(cols), TensorType(type)};
  pack_rows(kernels, out->matrix, data, 0, count, rows.data());
}

struct Quantised {
  Buffer<uint8_t> q8;
  Buffer<float> f32;
  Activations activations{};
};

void prepare(const Kernels& kernels, const py::array_t<float>& x, const float* weight, float eps,
             Quantised* out) {
  const int tokens = static_cast<int>(x.shape(0)), cols = static_cast<int>(x.shape(1));
  if (cols < BLOCK || cols % BLOCK)
    throw std::invalid_argument("x must have a multiple of 32 columns, got " + shape_text(x));
  const size_t n = static_cast<size_t>(tokens) * cols;
  out->activations =
      Activations{out->q8.ensure(n / BLOCK * ACTIVATION_BYTES), out->f32.ensure(n), tokens, cols};
  const NormArgs norm{x.data(), static_cast<size_t>(cols), nullptr, weight,
                      eps,      out->activations,          nullptr};
  kernels.norm(norm, 0, tokens);
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
  Quantised in;
  prepare(kernels, x, nullptr, 0.0f, &in);
  const int tokens = in.activations.tokens, count = w.matrix.rows;
  const int groups = (count + kernels.lanes - 1) / kernels.lanes, stride = groups * kernels.lanes;
  Buffer<float> buffer;
  float* y = buffer.ensure(static_cast<size_t>(tokens) * stride);
  const ProjectArgs args{w.matrix, in.activations, y, static_cast<size_t>(stride), false};
  kernels.project(args, 0, groups, 0, (tokens + kernels.tile_tokens - 1) / kernels.tile_tokens);
  py::array_t<float> out({tokens, count});
  for (int t = 0; t < tokens; ++t)
    std::copy_n(y + static_cast<size_t>(t) * stride, count, out.mutable_data(t, 0));
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

py::tuple op_quantise(const std::string& variant, const py::object& x_object,
                      const py::object& weight_object, float eps) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto x = typed_array<float>(x_object, "x", 2);
  py::array_t<float> weight;
  const bool has_weight = !weight_object.is_none();
  if (has_weight) {
    weight = typed_array<float>(weight_object, "weight", 1);
    if (weight.shape(0) != x.shape(1))
      throw std::invalid_argument("weight must be [" + std::to_string(x.shape(1)) + "], got " +
                                  shape_text(weight));
  }
  Quantised in;
  prepare(kernels, x, has_weight ? weight.data() : nullptr, eps, &in);
  const int tokens = in.activations.tokens, blocks = in.activations.cols / BLOCK;
  py::array_t<int8_t> q({tokens, blocks * BLOCK});
  py::array_t<float> scales({tokens, blocks});
  py::array_t<int32_t> minus_8_sums({tokens, blocks});
  const uint8_t* at = in.activations.q8;
  for (int first = 0; first < tokens; first += kernels.tile_tokens) {
    const int count = std::min(kernels.tile_tokens, tokens - first);
    for (int b = 0; b < blocks; ++b, at += count * ACTIVATION_BYTES)
      for (int m = 0; m < count; ++m) {
        std::memcpy(q.mutable_data(first + m, b * BLOCK), at + m * BLOCK, BLOCK);
        std::memcpy(scales.mutable_data(first + m, b), at + count * BLOCK + 4 * m, 4);
        std::memcpy(minus_8_sums.mutable_data(first + m, b), at + count * (BLOCK + 4) + 4 * m, 4);
      }
  }
  return py::make_tuple(q, scales, minus_8_sums);
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
