#include "tensors.h"

#include <stdexcept>

#include "runtime.h"

namespace servewright::cuda_module {
namespace {

constexpr int64_t MOST_BYTES = int64_t{1} << 47;  // of an address space

std::string list(const std::vector<std::string>& items) {
  std::string text = "[";
  for (size_t i = 0; i < items.size(); ++i) text += (i ? ", " : "") + items[i];
  return text + "]";
}

std::string numbers(const int64_t* values, int count) {
  std::vector<std::string> items;
  for (int i = 0; i < count; ++i) items.push_back(std::to_string(values[i]));
  return list(items);
}

std::string name_of(DLDataType type) {
  static const char* const NAMES[] = {"int",    "uint",    "float", "opaque",
                                      "bfloat", "complex", "bool"};
  const bool is_known = type.code < sizeof NAMES / sizeof *NAMES;
  std::string text =
      is_known ? NAMES[type.code] : "type code " + std::to_string(type.code) + " of ";
  text += std::to_string(type.bits);
  return type.lanes == 1 ? text : text + " x " + std::to_string(type.lanes);
}

const char* memory_name(int type) {
  switch (type) {
    case CPU:
      return "the CPU's memory";
    case CUDA:
      return "a CUDA device's memory";
    default:
      return "another kind of memory";
  }
}

bool is_contiguous(const DLTensor& tensor) {
  if (!tensor.strides) return true;
  int64_t step = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] > 1 && tensor.strides[i] != step) return false;
    step *= tensor.shape[i];
  }
  return true;
}

// Elements, or -1 where their bytes are more than an address space has.
int64_t count_of(const DLTensor& tensor, int64_t element_bytes) {
  int64_t count = 1;
  for (int i = 0; i < tensor.ndim; ++i)
    if (tensor.shape[i] == 0) return 0;
  for (int i = 0; i < tensor.ndim; ++i) {
    if (tensor.shape[i] < 0 || tensor.shape[i] > MOST_BYTES / element_bytes / count) return -1;
    count *= tensor.shape[i];
  }
  return count;
}

}  // namespace

bool Size::takes(int64_t size) const {
  if (size < least_ || size > most_) return false;
  if (got_) *got_ = static_cast<int>(size);
  return true;
}

std::string Size::text() const {
  if (least_ == most_) return std::to_string(least_);
  return least_ ? std::to_string(least_) + " or more" : "any";
}

#define SW_ELEMENT_TYPE(T, ...)                 \
  template <>                                   \
  std::vector<ElementType> element_types<T>() { \
    return __VA_ARGS__;                         \
  }
SW_ELEMENT_TYPE(uint8_t, {{UINT, 8, "uint8"}})
SW_ELEMENT_TYPE(int32_t, {{INT, 32, "int32"}})
SW_ELEMENT_TYPE(uint64_t, {{UINT, 64, "uint64"}, {INT, 64, "int64"}})
SW_ELEMENT_TYPE(float, {{FLOAT, 32, "float32"}})
SW_ELEMENT_TYPE(bfloat16,
                EMULATED ? std::vector<ElementType>{{BFLOAT, 16, "bfloat16"}, {UINT, 16, "uint16"}}
                         : std::vector<ElementType>{{BFLOAT, 16, "bfloat16"}})
#undef SW_ELEMENT_TYPE

void Tensors::refuse(const std::string& name, const std::string& what) const {
  throw std::invalid_argument(std::string(caller_) + ": " + name + " " + what);
}

std::shared_ptr<DLManagedTensor> Tensors::take(const py::handle& object, const std::string& name) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__"))
    refuse(name, "must be a tensor with __dlpack__, got " +
                     py::str(py::type::handle_of(object)).cast<std::string>());
  try {
    const auto device = object.attr("__dlpack_device__")().cast<py::tuple>();
    const DLTensor there = {
        nullptr, {device[0].cast<int>(), device[1].cast<int>()}, 0, {}, nullptr, nullptr, 0};
    check_device(there, name);
    // -1: whoever made the tensor adds no synchronisation; streams are the caller's business.
    py::object capsule =
        EMULATED ? object.attr("__dlpack__")() : object.attr("__dlpack__")(py::arg("stream") = -1);
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // from here on it is ours to free
    return {managed, [](DLManagedTensor* tensor) {
              if (tensor->deleter) tensor->deleter(tensor);
            }};
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // an interrupt
    refuse(name, "gives no tensor by DLPack (" + py::str(error.value()).cast<std::string>() + ")");
  } catch (const py::cast_error&) {
    refuse(name, "tells no device by DLPack");
  }
}

void Tensors::check_device(const DLTensor& tensor, const std::string& name) {
  const DLDevice device = tensor.device;
  if (device.type != DEVICE_TYPE)
    refuse(name, "must lie in " + std::string(memory_name(DEVICE_TYPE)) + ", got " +
                     memory_name(device.type) + " (DLPack type " + std::to_string(device.type) +
                     ")");
  if (device_ >= 0 && device.id != device_)
    refuse(name, "must lie on device " + std::to_string(device_) + " as the rest, got device " +
                     std::to_string(device.id));
}

void* Tensors::read(const py::handle& object, const std::string& name,
                    const std::vector<ElementType>& types, std::initializer_list<Size> shape,
                    size_t alignment, int* which) {
  const std::shared_ptr<DLManagedTensor> managed = take(object, name);
  const DLTensor& tensor = managed->tensor;
  check_device(tensor, name);

  int type = -1;
  std::string wanted;
  for (size_t i = 0; i < types.size(); ++i) {
    wanted += (i ? " or " : "") + std::string(types[i].name);
    if (tensor.dtype.lanes == 1 && tensor.dtype.code == types[i].code &&
        tensor.dtype.bits == types[i].bits)
      type = static_cast<int>(i);
  }
  bool fits = type >= 0 && tensor.ndim == static_cast<int>(shape.size());
  std::vector<std::string> sizes;
  int at = 0;
  for (const Size& size : shape) {
    sizes.push_back(size.text());
    fits = fits && size.takes(tensor.shape[at++]);
  }
  const std::string came = name_of(tensor.dtype) + " " + numbers(tensor.shape, tensor.ndim);
  if (!fits) refuse(name, "must be " + wanted + " " + list(sizes) + ", got " + came);
  const int64_t count = count_of(tensor, types[type].bits / 8);
  if (count < 0) refuse(name, "must have a size that memory can have, got " + came);
  if (count && !is_contiguous(tensor))
    refuse(name, "must be C-contiguous, got " + came + " with strides " +
                     numbers(tensor.strides, tensor.ndim));
  const auto address = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
  if (count && !tensor.data) refuse(name, "must have memory, got " + came + " without");
  if (count && address % alignment)
    refuse(name, "must be aligned to " + std::to_string(alignment) +
                     " bytes, got an address that " + "is " + std::to_string(address % alignment) +
                     " beyond");
  device_ = tensor.device.id;
  if (which) *which = type;
  kept_.tensors.push_back(managed);
  if (EMULATED) {
    const size_t bytes = static_cast<size_t>(count) * types[type].bits / 8;
    kept_.regions.push_back({name, reinterpret_cast<char*>(address), bytes, false});
  }
  return reinterpret_cast<void*>(address);
}

}  // namespace servewright::cuda_module
