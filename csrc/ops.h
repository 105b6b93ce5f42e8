// Single ops as Python sees them: for tests and for torch. The step never comes this way.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace servewright {

pybind11::list variants();
std::string unfit_config(const pybind11::object& config);
pybind11::array_t<float> op_project(const std::string& variant, const std::string& type,
                                    const pybind11::object& rows, const pybind11::object& x);
// Packed for `variant`: [groups, group_bytes].
pybind11::array_t<uint8_t> pack_matrix(const std::string& variant, const std::string& type,
                                       const pybind11::object& rows, int cols);
// x W^T of packed rows, under an RMSNorm where `norm` is no None.
pybind11::array_t<float> project_packed(const std::string& variant, const std::string& type,
                                        const pybind11::object& packed, int rows,
                                        const pybind11::object& x, const pybind11::object& norm,
                                        float eps, int threads);
// [rows, cols] of packed rows, exact but for Q4_1's rounded sum.
pybind11::array_t<float> dequantise_packed(const std::string& variant, const std::string& type,
                                           const pybind11::object& packed, int rows, int cols);
// (ids int32 [rows], whether all of a row is finite) of logits [rows, vocab], drawn as the
// SamplingBatch says; its logprobs are not computed.
pybind11::tuple sample(const std::string& variant, const pybind11::object& logits,
                       const pybind11::object& sampling, int threads);
pybind11::array_t<float> op_dequantise(const std::string& variant, const std::string& type,
                                       const pybind11::object& rows, int cols);
pybind11::tuple op_quantise(const std::string& variant, const pybind11::object& x,
                            const pybind11::object& weight, float eps);
pybind11::array_t<double> op_exponentials(const std::string& variant, const pybind11::object& x,
                                          double temperature);
pybind11::tuple op_scan(const std::string& variant, const pybind11::object& x);

}  // namespace servewright
