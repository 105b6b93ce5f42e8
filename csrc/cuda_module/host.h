// What needs no device: layout, packing, tables, checks.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "layout.h"

namespace servewright::cuda_module {

namespace py = pybind11;

Types read_types(const py::object& types);
std::string unfit_model(const py::object& config, const py::object& types);
py::tuple layout(const py::object& config, const py::object& types);
int64_t row_bytes(const std::string& type, int64_t cols);
int64_t packed_bytes(const std::string& type, int64_t rows, int64_t cols);
void pack(const std::string& type, int64_t cols, const py::object& rows, const py::object& out,
          int threads);
void fill_rope(const py::object& config, const py::object& cosines, const py::object& sines);
void check_step(const py::object& batch, const py::object& config, int num_blocks);

}  // namespace servewright::cuda_module
