#include "networks.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "arrays.h"
#include "convert.h"

namespace servewright {
namespace {

Activation activation(const py::handle& wanted, size_t layer) {
  const std::string name = py::str(wanted).cast<std::string>();
  int found = 0;
  for (const char* known : ACTIVATION_NAMES) {
    if (name == known) return static_cast<Activation>(found);
    ++found;
  }
  throw std::invalid_argument("activations[" + std::to_string(layer) + "] is " + name +
                              "; choose none, relu, gelu, gelu_tanh, tanh, sigmoid or softmax");
}

// Float32, float16, which pybind11 has no type for, or the bits of bfloat16, which numpy has none
// for, as uint16.
py::array weights_array(const py::object& given, const std::string& name, TensorType* type) {
  *type = F32;
  if (py::isinstance<py::array_t<uint16_t>>(given)) {
    *type = BF16;
    return typed_array<uint16_t>(given, name.c_str(), 2);
  }
  if (py::isinstance<py::array>(given)) {
    const auto array = py::reinterpret_borrow<py::array>(given);
    const bool is_half = array.dtype().char_() == 'e';
    if (is_half) *type = F16;
    if (is_half && array.ndim() == 2 && (array.flags() & py::array::c_style))
      return typed_array<uint16_t>(array.attr("view")("uint16"), name.c_str(), 2);
    if (is_half)
      throw std::invalid_argument(name + " must be C-contiguous with 2 dimensions, got float16 " +
                                  shape_text(array));
  }
  return typed_array<float>(given, name.c_str(), 2);
}

// Pointers into the arrays, which the caller keeps in `arrays`.
std::vector<DenseLayer> read_layers(const py::sequence& weights, const py::sequence& biases,
                                    const py::sequence& activations,
                                    std::vector<py::array>* arrays) {
  const size_t count = py::len(weights);
  if (count == 0) throw std::invalid_argument("weights holds no layer; give one at least");
  if (py::len(biases) != count || py::len(activations) != count)
    throw std::invalid_argument("each layer has weights, a bias or None, and an activation; got " +
                                std::to_string(count) + " weights, " +
                                std::to_string(py::len(biases)) + " biases, " +
                                std::to_string(py::len(activations)) + " activations");
  std::vector<DenseLayer> layers;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = "weights[" + std::to_string(i) + "]";
    TensorType type = F32;
    const py::array w = weights_array(weights[i], name, &type);
    for (const py::ssize_t width : {w.shape(0), w.shape(1)})
      if (width < 1 || width > MAX_DENSE_WIDTH)
        throw std::invalid_argument(name + " must be [outputs, inputs], each 1 to " +
                                    std::to_string(MAX_DENSE_WIDTH) + ", got " + shape_text(w));
    const int rows = static_cast<int>(w.shape(0)), cols = static_cast<int>(w.shape(1));
    if (i && layers.back().rows != cols)
      throw std::invalid_argument(name + " must have " + std::to_string(layers.back().rows) +
                                  " columns, what the layer before it gives, got " + shape_text(w));
    DenseLayer layer{w.data(),
                     type,
                     static_cast<size_t>(cols),
                     nullptr,
                     rows,
                     cols,
                     activation(py::object(activations[i]), i)};
    arrays->push_back(w);
    const py::object bias = biases[i];
    if (!bias.is_none()) {
      const std::string bias_name = "biases[" + std::to_string(i) + "]";
      const auto b = typed_array<float>(bias, bias_name.c_str(), 1);
      if (b.shape(0) != rows)
        throw std::invalid_argument(bias_name + " must be [" + std::to_string(rows) + "], got " +
                                    shape_text(b));
      layer.bias = b.data();
      arrays->push_back(b);
    }
    layers.push_back(layer);
  }
  return layers;
}

void check_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads must be in 1..1024, got " + std::to_string(threads));
}

Network kept(const py::sequence& weights, const py::sequence& biases,
             const py::sequence& activations) {
  std::vector<py::array> arrays;
  Network network(read_layers(weights, biases, activations, &arrays));
  network.keep();
  return network;
}

// Whether `object` is what the kernels read.
bool is_plain(const py::object& object) {
  if (!py::isinstance<py::array_t<float, py::array::c_style>>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  return array.ndim() > 0 && (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
}

py::array_t<float> run(const Kernels& kernels, const Network& network, const py::object& object,
                       int threads) {
  if (!is_plain(object)) {
    const bool is_array = py::isinstance<py::array>(object);
    const int rank =
        is_array ? static_cast<int>(py::reinterpret_borrow<py::array>(object).ndim()) : 2;
    typed_array<float>(object, "x", std::max(rank, 1));  // throws
  }
  const auto x = py::reinterpret_borrow<py::array_t<float>>(object);
  const py::ssize_t rank = x.ndim();
  if (x.shape(rank - 1) != network.inputs())
    throw std::invalid_argument("x must be [..., " + std::to_string(network.inputs()) + "], got " +
                                shape_text(x));
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + rank);
  shape.back() = network.outputs();
  const py::ssize_t tokens = x.size() / network.inputs();
  if (tokens > INT_MAX)
    throw std::invalid_argument("x must have fewer than 2^31 rows, got " + shape_text(x));
  py::array_t<float> y(shape);
  const float* from = x.data();
  float* to = y.mutable_data();
  py::gil_scoped_release release;
  network.run(kernels, from, static_cast<int>(tokens), to, threads);
  return y;
}

}  // namespace

KeptNetwork::KeptNetwork(const std::string& variant, const py::sequence& weights,
                         const py::sequence& biases, const py::sequence& activations, int threads)
    : kernels_(runnable_kernels(variant)),
      network_(kept(weights, biases, activations)),
      threads_(threads) {
  check_threads(threads);
}

py::array_t<float> KeptNetwork::run(const py::object& x) const {
  return servewright::run(kernels_, network_, x, threads_);
}

py::array_t<float> run_network(const std::string& variant, const py::object& x,
                               const py::sequence& weights, const py::sequence& biases,
                               const py::sequence& activations, int threads) {
  check_threads(threads);
  std::vector<py::array> arrays;
  const Network network(read_layers(weights, biases, activations, &arrays));
  return run(runnable_kernels(variant), network, x, threads);
}

}  // namespace servewright
