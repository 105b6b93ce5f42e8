// The dataclasses of models/runner.py as plain data: LlamaConfig and StepBatch.
#pragma once
#include <pybind11/pybind11.h>

#include "arrays.h"
#include "model/config.h"
#include "model/step.h"

namespace servewright {

Config read_config(const py::object& config);
// Types, ranks and contiguity are checked; `arrays` keeps what `batch` holds alive.
StepInput read_batch(const py::object& batch, ArrayReader* arrays);
// A SamplingBatch of `in->samples` rows.
void read_sampling(const py::object& sampling, ArrayReader* arrays, StepInput* in);

}  // namespace servewright
