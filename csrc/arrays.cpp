#include "arrays.h"

#include <stdexcept>

namespace servewright {

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + "]";
}

template <class T>
py::array_t<T> typed_array(const py::object& object, const char* name, int rank) {
  const std::string wanted = std::string(name) + " must be a C-contiguous numpy array of " +
                             py::str(py::dtype::of<T>()).cast<std::string>() + " with " +
                             std::to_string(rank) + " dimension" + (rank == 1 ? "" : "s");
  if (!py::isinstance<py::array>(object))
    throw std::invalid_argument(wanted + ", got " +
                                py::str(py::type::of(object)).cast<std::string>());
  const auto array = py::reinterpret_borrow<py::array>(object);
  const auto flags = array.flags();
  const bool is_plain =
      (flags & py::array::c_style) && (flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
  if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != rank || !is_plain)
    throw std::invalid_argument(wanted + ", got " + py::str(array.dtype()).cast<std::string>() +
                                " " + shape_text(array) + (is_plain ? "" : ", not contiguous"));
  for (int i = 0; i < rank; ++i)
    if (array.shape(i) > INT_MAX)
      throw std::invalid_argument(wanted + " of fewer than 2^31 elements, got " +
                                  shape_text(array));
  return py::reinterpret_borrow<py::array_t<T>>(array);
}

template <class T>
const T* ArrayReader::read(const py::object& owner, const char* name, int* count) {
  const std::string full = std::string(caller_) + ": " + name;
  auto array = typed_array<T>(owner.attr(name), full.c_str(), 1);
  const int length = static_cast<int>(array.shape(0));
  if (*count < 0) *count = length;
  if (length != *count)
    throw std::invalid_argument(full + " must be [" + std::to_string(*count) + "], got " +
                                shape_text(array));
  kept_.push_back(array);
  return array.data();
}

template <class T>
const T* ArrayReader::read_table(const py::object& owner, const char* name, int rows,
                                 int* columns) {
  const std::string full = std::string(caller_) + ": " + name;
  auto array = typed_array<T>(owner.attr(name), full.c_str(), 2);
  if (array.shape(0) != rows)
    throw std::invalid_argument(full + " must have " + std::to_string(rows) + " rows, got " +
                                shape_text(array));
  *columns = static_cast<int>(array.shape(1));
  kept_.push_back(array);
  return array.data();
}

#define SW_INSTANTIATE(T)                                                       \
  template py::array_t<T> typed_array<T>(const py::object&, const char*, int);  \
  template const T* ArrayReader::read<T>(const py::object&, const char*, int*); \
  template const T* ArrayReader::read_table<T>(const py::object&, const char*, int, int*);
SW_INSTANTIATE(int32_t)
SW_INSTANTIATE(uint64_t)
SW_INSTANTIATE(float)
SW_INSTANTIATE(uint8_t)
SW_INSTANTIATE(uint16_t)
#undef SW_INSTANTIATE

}  // namespace servewright
