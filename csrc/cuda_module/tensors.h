// Tensors of other libraries, read where they lie: DLPack in, every promise checked, none copied.
#pragma once
#include <pybind11/pybind11.h>

#include <climits>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "../common/bfloat16.h"
#include "dlpack.h"
#include "runtime.h"

namespace servewright::cuda_module {

namespace py = pybind11;

// A dimension as a call wants it.
class Size {
 public:
  Size(int64_t exactly)  // NOLINT: written as a number in a list of sizes
      : least_(exactly), most_(exactly) {}
  static Size any(int* got) { return {0, INT_MAX, got}; }
  static Size at_least(int64_t least, int* got = nullptr) {
    return {least, got ? INT_MAX : INT64_MAX, got};
  }
  bool takes(int64_t size) const;  // and tells who asked
  std::string text() const;

 private:
  Size(int64_t least, int64_t most, int* got)
      : least_(least), most_(most), got_(got) {}
  int64_t least_, most_;
  int* got_ = nullptr;
};

struct ElementType {
  uint8_t code, bits;
  const char* name;
};

// The element types that arrays of T may have. uint64 comes as int64 too, for torch has few ops on
// uint64; bf16 as uint16 from numpy, which has no bf16, so in the emulated module alone.
template <class T>
std::vector<ElementType> element_types();

// Tensors that stay where they are while this lives.
struct Kept {
  std::vector<std::shared_ptr<DLManagedTensor>> tensors;
  Regions regions;  // for the emulator; empty on the device

  void add(const Kept& more) {
    tensors.insert(tensors.end(), more.tensors.begin(), more.tensors.end());
    regions.insert(regions.end(), more.regions.begin(), more.regions.end());
  }
};

// The tensors of one call. They live at least as long as this does.
class Tensors {
 public:
  // `caller` opens every message. device: -1, or the one on which all tensors must lie.
  explicit Tensors(const char* caller, int device = -1)
      : caller_(caller), device_(device) {}

  // What launches only read is read as const T. Throws std::invalid_argument that names the tensor,
  // what was wanted and what came.
  template <class T>
  T* read(const py::handle& object, const std::string& name, std::initializer_list<Size> shape,
          size_t alignment = 16) {
    const auto types = element_types<std::remove_const_t<T>>();
    void* data = read(object, name, types, shape, alignment, nullptr);
    if (EMULATED) kept_.regions.back().is_written = !std::is_const_v<T>;
    return static_cast<T*>(data);
  }
  // Of any of these types, only read; `which` gets its index.
  void* read(const py::handle& object, const std::string& name,
             const std::vector<ElementType>& types, std::initializer_list<Size> shape,
             size_t alignment, int* which);

  int device() const { return device_; }  // of the tensors read so far
  const Kept& kept() const { return kept_; }
  const Regions& regions() const { return kept_.regions; }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& what) const;
  std::shared_ptr<DLManagedTensor> take(const py::handle& object, const std::string& name);
  void check_device(const DLTensor& tensor, const std::string& name);

  const char* caller_;
  int device_;
  Kept kept_;
};

}  // namespace servewright::cuda_module
