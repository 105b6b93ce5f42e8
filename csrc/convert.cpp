#include "convert.h"

#include <stdexcept>

#include "cpu/dispatch.h"

namespace servewright {
namespace {

template <class T>
py::array_t<T> to_array(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  py::array_t<T> array(std::move(shape));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

}  // namespace

const Kernels& runnable_kernels(const std::string& variant) {
  const Kernels* kernels = find_kernels(variant);
  if (!kernels) throw std::invalid_argument("variant: no kernels are named " + variant);
  if (!is_runnable(*kernels))
    throw std::invalid_argument("variant: this CPU lacks instructions that " + variant + " needs");
  return *kernels;
}

std::unique_ptr<Runner> make_runner(const py::object& config, int num_blocks, int threads,
                                    const std::string& variant) {
  return std::make_unique<Runner>(read_config(config), num_blocks, threads,
                                  runnable_kernels(variant));
}

void load_rows(Runner& runner, const std::string& name, const std::string& type,
               long long first_row, const py::object& rows) {
  const auto array = typed_array<uint8_t>(rows, ("load(" + name + "): rows").c_str(), 2);
  const uint8_t* data = array.data();
  const long long count = array.shape(0), bytes = array.shape(1);
  py::gil_scoped_release release;
  runner.load(name, type, first_row, data, count, bytes);
}

py::tuple run_step(Runner& runner, const py::object& batch) {
  ArrayReader arrays("step");
  const StepInput in = read_batch(batch, &arrays);
  StepOutput out;
  {
    py::gil_scoped_release release;
    runner.step(in, &out);
  }
  const py::ssize_t n = in.samples;
  py::object logits = py::none();
  if (in.return_logits) logits = to_array(out.logits, {n, runner.config().vocab_size});
  return py::make_tuple(to_array(out.token_ids, {n}), to_array(out.logprobs, {n}),
                        to_array(out.top_ids, {n, out.top_width}),
                        to_array(out.top_logprobs, {n, out.top_width}), out.finite, logits);
}

}  // namespace servewright
