// A Llama model in device memory, its decode step, and what both keep alive.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "../cuda/step.h"
#include "layout.h"
#include "tensors.h"

namespace servewright::cuda_module {

// A packed weight matrix, and the memory that it lies in.
class Matrix {
 public:
  Matrix(const std::string& type, int64_t rows, int64_t cols, const py::object& data);
  Matrix(const cuda::PackedMatrix& packed, int device, Kept kept)
      : packed_(packed), device_(device), kept_(std::move(kept)) {}

  const cuda::PackedMatrix& packed() const { return packed_; }
  int device() const { return device_; }
  const Regions& regions() const { return kept_.regions; }
  const char* type() const { return WEIGHT_NAMES[static_cast<int>(packed_.type)]; }

 private:
  cuda::PackedMatrix packed_ = {};
  int device_ = -1;
  Kept kept_;
};

// The device arrays of `rows` draws.
class Sampling {
 public:
  explicit Sampling(const py::dict& arrays);

  const cuda::SamplingArgs& args() const { return args_; }
  int rows() const { return rows_; }
  int device() const { return device_; }
  const Kept& kept() const { return kept_; }

 private:
  cuda::SamplingArgs args_ = {};
  int rows_ = 0, device_ = -1;
  Kept kept_;
};

class Step;

class Model : public std::enable_shared_from_this<Model> {
 public:
  Model(const Config& config, const Types& types, const py::object& weights,
        const py::object& cosines, const py::object& sines);
  Matrix matrix(const std::string& name) const;
  std::shared_ptr<Step> plan(int slots, int max_length, int pages) const;

  const cuda::LlamaModel& llama() const { return llama_; }
  int device() const { return device_; }
  const Kept& kept() const { return kept_; }

 private:
  cuda::PackedMatrix packed(const std::string& name) const;
  void fill_qkv(const std::string& block, cuda::LlamaLayer* layer) const;

  const Config config_;
  Layout layout_;
  const uint8_t* weights_ = nullptr;
  std::vector<cuda::LlamaLayer> layers_;
  cuda::LlamaModel llama_ = {};
  int device_ = -1;
  Kept kept_;
};

class Step {
 public:
  Step(std::shared_ptr<const Model> model, const cuda::StepPlan& plan)
      : model_(std::move(model)), plan_(plan) {}
  void bind(const py::object& pool, const py::object& workspace, const py::object& token_ids,
            const py::object& lengths, const py::object& page_table, const Sampling& sampling);
  void launch(uintptr_t stream) const;

  const cuda::StepPlan& plan() const { return plan_; }
  py::tuple pool_shape() const;
  int launches() const { return cuda::launch_count(model_->llama()); }

 private:
  std::shared_ptr<const Model> model_;
  cuda::StepPlan plan_;
  cuda::StepBatch batch_ = {};
  bfloat16* pool_ = nullptr;
  uint8_t* workspace_ = nullptr;
  Kept kept_;
};

}  // namespace servewright::cuda_module
