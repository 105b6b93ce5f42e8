#include "arrays.h"

#include <stdexcept>

namespace servewright {

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + "]";
}

namespace {

template <class T>
std::string wanted_text(const std::string& name, int rank) {
  return name + " must be a C-contiguous numpy array of " +
         py::str(py::dtype::of<T>()).cast<std::string>() + " with " + std::to_string(rank) +
         " dimension" + (rank == 1 ? "" : "s");
}

bool is_plain(const py::array& array) {
  const auto flags = array.flags();
  return (flags & py::array::c_style) && (flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
}

// Whether `object` is what typed_array returns. Nothing here makes text: numpy writes the name of a
// dtype in Python, and a step reads 22 arrays.
template <class T>
bool is_typed(const py::object& object, int rank) {
  if (!py::isinstance<py::array_t<T>>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != rank || !is_plain(array)) return false;
  for (int i = 0; i < rank; ++i)
    if (array.shape(i) > INT_MAX) return false;
  return true;
}

template <class T>
[[noreturn]] void refuse(const py::object& object, const std::string& name, int rank) {
  const std::string wanted = wanted_text<T>(name, rank);
  if (!py::isinstance<py::array>(object))
    throw std::invalid_argument(wanted + ", got " +
                                py::str(py::type::of(object)).cast<std::string>());
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (is_plain(array) && array.ndim() == rank && py::isinstance<py::array_t<T>>(array))
    throw std::invalid_argument(wanted + " of fewer than 2^31 elements, got " + shape_text(array));
  throw std::invalid_argument(wanted + ", got " + py::str(array.dtype()).cast<std::string>() + " " +
                              shape_text(array) + (is_plain(array) ? "" : ", not contiguous"));
}

}  // namespace

template <class T>
py::array_t<T> typed_array(const py::object& object, const char* name, int rank) {
  if (!is_typed<T>(object, rank)) refuse<T>(object, name, rank);
  return py::reinterpret_borrow<py::array_t<T>>(object);
}

template <class T>
const T* ArrayReader::read(const py::object& owner, const char* name, int* count) {
  const py::array array = kept<T>(owner, name, 1);
  const int length = static_cast<int>(array.shape(0));
  if (*count < 0) *count = length;
  if (length != *count)
    throw std::invalid_argument(full_name(name) + " must be [" + std::to_string(*count) +
                                "], got " + shape_text(array));
  return static_cast<const T*>(array.data());
}

template <class T>
const T* ArrayReader::read_table(const py::object& owner, const char* name, int rows,
                                 int* columns) {
  const py::array array = kept<T>(owner, name, 2);
  if (array.shape(0) != rows)
    throw std::invalid_argument(full_name(name) + " must have " + std::to_string(rows) +
                                " rows, got " + shape_text(array));
  *columns = static_cast<int>(array.shape(1));
  return static_cast<const T*>(array.data());
}

template <class T>
py::array ArrayReader::kept(const py::object& owner, const char* name, int rank) {
  const py::object object = owner.attr(name);
  if (!is_typed<T>(object, rank)) refuse<T>(object, full_name(name), rank);
  return kept_.emplace_back(py::reinterpret_borrow<py::array>(object));
}

std::string ArrayReader::full_name(const char* name) const {
  return std::string(caller_) + ": " + name;
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
