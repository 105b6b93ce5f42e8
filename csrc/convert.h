// What crosses between Python and the runner. Everything Python passes is checked on this way,
// before the GIL is released.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "model/runner.h"
#include "records.h"

namespace servewright {

std::unique_ptr<Runner> make_runner(const py::object& config, int num_blocks, int threads,
                                    const std::string& variant);
void load_rows(Runner& runner, const std::string& name, const std::string& type,
               long long first_row, const py::object& rows);
// (token_ids, logprobs, top_ids, top_logprobs, finite, logits or None)
py::tuple run_step(Runner& runner, const py::object& batch);

// The kernels of that name; throws std::invalid_argument if there are none or this CPU lacks them.
const Kernels& runnable_kernels(const std::string& variant);

}  // namespace servewright
