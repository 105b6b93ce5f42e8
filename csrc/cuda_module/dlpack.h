// Tensors as DLPack hands them over in a capsule "dltensor": the public ABI of
// https://dmlc.github.io/dlpack, declared here so that no foreign header is needed.
#pragma once
#include <stdint.h>

namespace servewright::cuda_module {

enum DeviceType : int32_t { CPU = 1, CUDA = 2 };
enum TypeCode : uint8_t { INT = 0, UINT = 1, FLOAT = 2, BFLOAT = 4 };

struct DLDevice {
  int32_t type;
  int32_t id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

}  // namespace servewright::cuda_module
