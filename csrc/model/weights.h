// The model's tensors: packed as they arrive, checked for wholeness at the end.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "../common/kernels.h"
#include "arena.h"
#include "config.h"

namespace servewright {

struct LayerWeights {
  Matrix q{}, k{}, v{}, o{}, gate{}, up{}, down{};
  const float* attention_norm = nullptr;
  const float* ffn_norm = nullptr;
};

class Weights {
 public:
  Weights(const Config& config, const Kernels& kernels);

  // Packs `rows` GGUF rows of `row_bytes` bytes from row `first_row` on. Throws
  // std::invalid_argument, having written nothing.
  void load(const std::string& name, const std::string& type, long long first_row,
            const uint8_t* data, long long rows, long long row_bytes);

  // Throws std::invalid_argument that names what is missing. No load may follow.
  void seal();

  bool is_sealed() const { return is_sealed_; }
  size_t bytes() const { return used_; }

  Matrix embedding{};
  Matrix head{};
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;

 private:
  struct Tensor {
    int rows = 0;
    int cols = 0;
    Matrix* matrix = nullptr;        // of a matrix
    const float** vector = nullptr;  // of a norm; neither: rope factors, compared and dropped
    bool is_begun = false;
    TensorType type = F32;
    uint8_t* data = nullptr;
    std::vector<bool> loaded;  // by LOAD_ROWS rows
  };
  uint8_t* allocate(size_t bytes);

  const Config& config_;
  const Kernels& kernels_;
  std::map<std::string, Tensor> tensors_;
  Reservation arena_;
  size_t used_ = 0;
  bool is_sealed_ = false;
};

}  // namespace servewright
