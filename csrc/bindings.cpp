// What Python sees of the kernels: a list, no logic. Faces and docstrings for people are in
// runtime/servewright_runtime/native.py.
#include <pybind11/pybind11.h>

#include "attend.h"
#include "convert.h"
#include "networks.h"
#include "ops.h"

namespace sw = servewright;
namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Fused Llama step on the CPU.";

  m.def("variants", &sw::variants, "(name, is_runnable) of every variant built, best first.");
  m.def("unfit", &sw::unfit_config, py::arg("config"),
        "Why the kernels cannot run a LlamaConfig, or an empty string.");

  py::class_<sw::Runner>(m, "Runner", "A model's weights and KV cache.")
      .def(py::init(&sw::make_runner), py::arg("config"), py::arg("num_blocks"), py::arg("threads"),
           py::arg("variant"))
      .def("load", &sw::load_rows, py::arg("name"), py::arg("tensor_type"), py::arg("first_row"),
           py::arg("rows"), "Pack GGUF rows, uint8 [rows, row_bytes].")
      .def("seal", &sw::Runner::seal, "All tensors are loaded.")
      .def("step", &sw::run_step, py::arg("batch"),
           "Run a StepBatch: (token_ids, logprobs, top_ids, top_logprobs, finite, logits).")
      .def("commit_ahead", &sw::Runner::commit_ahead, py::call_guard<py::gil_scoped_release>(),
           "Commit 2 MiB of the KV cache that coming steps will write: whether more is to be done.")
      .def("close", &sw::Runner::close, py::call_guard<py::gil_scoped_release>(),
           "Free weights and cache.")
      .def_property_readonly("weights_bytes", &sw::Runner::weights_bytes);

  py::class_<sw::KeptNetwork>(m, "Network", "Dense layers with their own copy of the weights.")
      .def(py::init<const std::string&, const py::sequence&, const py::sequence&,
                    const py::sequence&, int>(),
           py::arg("variant"), py::arg("weights"), py::arg("biases"), py::arg("activations"),
           py::arg("threads"))
      .def("run", &sw::KeptNetwork::run, py::arg("x"), "[..., inputs] to [..., outputs], float32.");
  m.def("run_network", &sw::run_network, py::arg("variant"), py::arg("x"), py::arg("weights"),
        py::arg("biases"), py::arg("activations"), py::arg("threads"),
        "The same on the caller's own weights.");

  m.def("pack", &sw::pack_matrix, py::arg("variant"), py::arg("tensor_type"), py::arg("rows"),
        py::arg("cols"), "GGUF rows packed for a variant: uint8 [groups, group_bytes].");
  m.def("project_packed", &sw::project_packed, py::arg("variant"), py::arg("tensor_type"),
        py::arg("packed"), py::arg("rows"), py::arg("x"), py::arg("norm"), py::arg("eps"),
        py::arg("threads"), "x [tokens, cols], normed where norm is given, times packed rows.");
  m.def("dequantise_packed", &sw::dequantise_packed, py::arg("variant"), py::arg("tensor_type"),
        py::arg("packed"), py::arg("rows"), py::arg("cols"), "Packed rows: [rows, cols] float32.");
  m.def("attend", &sw::attend, py::arg("variant"), py::arg("qkv"), py::arg("pool"),
        py::arg("page_table"), py::arg("lengths"), py::arg("cosines"), py::arg("sines"),
        py::arg("heads"), py::arg("interleaved"), py::arg("threads"),
        "RoPE, append to the pool and causal attention: [tokens, heads * head_dim] float32.");
  m.def("sample", &sw::sample, py::arg("variant"), py::arg("logits"), py::arg("sampling"),
        py::arg("threads"), "Draw as a SamplingBatch says: (ids, finite), [rows] each.");

  // Single ops, for tests against float64.
  m.def("project", &sw::op_project, py::arg("variant"), py::arg("tensor_type"), py::arg("rows"),
        py::arg("x"), "x [tokens, cols] float32 times packed GGUF rows: [tokens, rows] float32.");
  m.def("dequantise", &sw::op_dequantise, py::arg("variant"), py::arg("tensor_type"),
        py::arg("rows"), py::arg("cols"), "GGUF rows packed and unpacked: [rows, cols] float32.");
  m.def("quantise", &sw::op_quantise, py::arg("variant"), py::arg("x"), py::arg("weight"),
        py::arg("eps"), "x [tokens, cols], normed if weight is given: (q, scales, sums).");
  m.def("exponentials", &sw::op_exponentials, py::arg("variant"), py::arg("x"),
        py::arg("temperature"), "exp((x - max(x)) / temperature), float64.");
  m.def("scan", &sw::op_scan, py::arg("variant"), py::arg("x"), "(max, argmax, is_finite).");
  m.def("uniform", &sw::uniform, py::arg("seed"), py::arg("draw"), "A number in [0, 1).");
}
