// Dense networks as Python sees them: arrays checked, then one call.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "model/network.h"

namespace servewright {

// A network with its own copy of the weights.
class KeptNetwork {
 public:
  KeptNetwork(const std::string& variant, const pybind11::sequence& weights,
              const pybind11::sequence& biases, const pybind11::sequence& activations, int threads);
  // [..., inputs] to [..., outputs]
  pybind11::array_t<float> run(const pybind11::object& x) const;

 private:
  const Kernels& kernels_;
  Network network_;
  int threads_;
};

// One run on the caller's own weights.
pybind11::array_t<float> run_network(const std::string& variant, const pybind11::object& x,
                                     const pybind11::sequence& weights,
                                     const pybind11::sequence& biases,
                                     const pybind11::sequence& activations, int threads);

}  // namespace servewright
