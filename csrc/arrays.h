// Reading numpy arrays out of Python objects: dtype, rank and contiguity are checked here, ranges
// of values in model/step.cpp.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <climits>
#include <string>
#include <vector>

namespace servewright {

namespace py = pybind11;

std::string shape_text(const py::array& array);

// `object` as a C-contiguous array of T with `rank` dimensions, none longer than 2^31 - 1.
// Throws std::invalid_argument that names it; never copies or converts.
template <class T>
py::array_t<T> typed_array(const py::object& object, const char* name, int rank);

// Keeps the arrays of a step alive and hands out their pointers.
class ArrayReader {
 public:
  explicit ArrayReader(const char* caller)
      : caller_(caller) {}
  // Attribute `name` of `owner`: [count], or of any length with count -1, which then gets it.
  template <class T>
  const T* read(const py::object& owner, const char* name, int* count);
  template <class T>
  const T* read(const py::object& owner, const char* name, int count) {
    return read<T>(owner, name, &count);
  }
  // [rows, *columns]
  template <class T>
  const T* read_table(const py::object& owner, const char* name, int rows, int* columns);

 private:
  // Attribute `name` of `owner`, checked as typed_array does, and kept.
  template <class T>
  py::array kept(const py::object& owner, const char* name, int rank);
  std::string full_name(const char* name) const;

  const char* caller_;
  std::vector<py::array> kept_;
};

}  // namespace servewright
