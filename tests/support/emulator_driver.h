// Ops of the emulator's driver: one file emulator_NAME.cpp for each group of ops.
//
//   // Sources: csrc/cuda/gemm.cu csrc/cuda/weights.cpp
//   #include "emulator_driver.h"
//   SW_OP(project) {
//     const float* x = request.input<float>("x");
//     float* out = request.output<float>("out", {tokens, rows});
//     request.check(servewright::cuda::project_normed(..., nullptr));
//   }
//
// Its line "Sources:" names what is linked beside it (the emulator always is). The Python side,
// emulated.py, builds one executable from each such file that is asked for.
#pragma once
#include <stdint.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/common/bfloat16.h"
#include "../../csrc/emulator/memory.h"

namespace servewright::driver {

using Shape = std::vector<int64_t>;

template <class T>
struct TypeName;
#define SW_TYPE_NAME(T, text)                  \
  template <>                                  \
  struct TypeName<T> {                         \
    static constexpr const char* value = text; \
  };
SW_TYPE_NAME(int8_t, "int8")
SW_TYPE_NAME(uint8_t, "uint8")
SW_TYPE_NAME(uint16_t, "uint16")
SW_TYPE_NAME(bfloat16, "uint16")
SW_TYPE_NAME(int32_t, "int32")
SW_TYPE_NAME(uint32_t, "uint32")
SW_TYPE_NAME(int64_t, "int64")
SW_TYPE_NAME(uint64_t, "uint64")
SW_TYPE_NAME(float, "float32")
SW_TYPE_NAME(double, "float64")
#undef SW_TYPE_NAME

class Request {
 public:
  explicit Request(const char* path);
  const std::string& op() const { return op_; }
  bool has(const std::string& name) const { return values_.count(name) != 0; }
  const Shape& shape(const std::string& name) const { return given(name).shape; }
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;

  // An array that kernels only read. Its pages refuse writes.
  template <class T>
  const T* input(const std::string& name) {
    return reinterpret_cast<const T*>(place(name, TypeName<T>::value, emulator::Use::READ));
  }
  // A given array that kernels read and write; it goes into the answer.
  template <class T>
  T* inout(const std::string& name) {
    return reinterpret_cast<T*>(place(name, TypeName<T>::value, emulator::Use::WRITE));
  }
  // A new array of NaN bytes; it goes into the answer.
  template <class T>
  T* output(const std::string& name, const Shape& shape) {
    return reinterpret_cast<T*>(create(name, TypeName<T>::value, sizeof(T), shape, true));
  }
  // A new array of NaN bytes that nobody is told of.
  template <class T>
  T* workspace(const std::string& name, int64_t count) {
    return reinterpret_cast<T*>(create(name, TypeName<T>::value, sizeof(T), {count}, false));
  }
  // Waits for the launches so far; faults on a launcher's error code.
  void check(int status) const;
  void answer(const char* path) const;

 private:
  struct Value {
    std::string type;
    Shape shape;
    std::string bytes;
    std::unique_ptr<emulator::Array> array;
    bool answered = false;
  };
  const Value& given(const std::string& name) const;
  char* place(const std::string& name, const char* type, emulator::Use use);
  char* create(const std::string& name, const char* type, size_t size, const Shape& shape,
               bool answered);

  std::string op_;
  std::map<std::string, Value> values_;
};

using Op = void (*)(Request&);
bool add_op(const char* name, Op op);

#define SW_OP(name)                                                \
  static void run_##name(::servewright::driver::Request& request); \
  [[maybe_unused]] static const bool added_##name =                \
      ::servewright::driver::add_op(#name, run_##name);            \
  static void run_##name(::servewright::driver::Request& request)

}  // namespace servewright::driver
