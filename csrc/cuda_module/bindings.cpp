// What Python sees of the CUDA half: a list, no logic. Faces and docstrings for people are in
// runtime/servewright_runtime/_cuda.pyi. With -DSW_FIBERS this is the module _cuda_emulated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cuda/weights.h"
#include "../records.h"
#include "host.h"
#include "model.h"
#include "ops.h"
#include "prefill.h"
#include "runtime.h"

namespace cm = servewright::cuda_module;
namespace py = pybind11;

#if defined(SW_FIBERS)
#define SW_MODULE _cuda_emulated
#else
#define SW_MODULE _cuda
#endif

PYBIND11_MODULE(SW_MODULE, m) {
  m.doc() = "Fused Llama kernels on CUDA.";
  py::register_local_exception<cm::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  m.attr("EMULATED") = cm::EMULATED;
  py::list types;
  for (const char* name : cm::WEIGHT_NAMES) types.append(name);
  m.attr("WEIGHT_TYPES") = py::tuple(types);
  m.attr("PAGE_POSITIONS") = servewright::cuda::PAGE_POSITIONS;
  m.attr("PACK_ROWS") = servewright::cuda::TILE_ROWS;
  m.attr("MAX_SLOTS") = servewright::cuda::MAX_DECODE_TOKENS;
  m.attr("MAX_TOP_LOGPROBS") = servewright::cuda::MAX_TOP_LOGPROBS;

  m.def("device_problem", &cm::device_problem, py::arg("device"));
  m.def("unfit", &cm::unfit_model, py::arg("config"), py::arg("types"));
  m.def("layout", &cm::layout, py::arg("config"), py::arg("types"));
  m.def("row_bytes", &cm::row_bytes, py::arg("tensor_type"), py::arg("cols"));
  m.def("packed_bytes", &cm::packed_bytes, py::arg("tensor_type"), py::arg("rows"),
        py::arg("cols"));
  m.def("pack", &cm::pack, py::arg("tensor_type"), py::arg("cols"), py::arg("rows"), py::arg("out"),
        py::arg("threads") = 1);
  m.def("fill_rope", &cm::fill_rope, py::arg("config"), py::arg("cosines"), py::arg("sines"));
  m.def("check_step", &cm::check_step, py::arg("batch"), py::arg("config"), py::arg("num_blocks"));

  py::class_<cm::Matrix>(m, "Matrix", py::module_local())
      .def(py::init<const std::string&, int64_t, int64_t, const py::object&>(),
           py::arg("tensor_type"), py::arg("rows"), py::arg("cols"), py::arg("data"))
      .def_property_readonly("type", &cm::Matrix::type)
      .def_property_readonly("rows", [](const cm::Matrix& w) { return w.packed().rows; })
      .def_property_readonly("cols", [](const cm::Matrix& w) { return w.packed().cols; });

  py::class_<cm::Sampling>(m, "Sampling", py::module_local())
      .def(py::init([](const py::object& arrays) { return cm::Sampling(py::dict(arrays)); }),
           py::arg("arrays"))
      .def_property_readonly("rows", &cm::Sampling::rows)
      .def_property_readonly("top_width", [](const cm::Sampling& s) { return s.args().top_width; });

  py::class_<cm::Step, std::shared_ptr<cm::Step>>(m, "Step", py::module_local())
      .def("bind", &cm::Step::bind, py::kw_only(), py::arg("pool"), py::arg("workspace"),
           py::arg("token_ids"), py::arg("lengths"), py::arg("page_table"), py::arg("sampling"))
      .def("launch", &cm::Step::launch, py::arg("stream"))
      .def_property_readonly("slots", [](const cm::Step& s) { return s.plan().tokens; })
      .def_property_readonly("max_length", [](const cm::Step& s) { return s.plan().max_length; })
      .def_property_readonly("pages", [](const cm::Step& s) { return s.plan().pages; })
      .def_property_readonly("pool_shape", &cm::Step::pool_shape)
      .def_property_readonly("workspace_bytes",
                             [](const cm::Step& s) { return s.plan().workspace_bytes; })
      .def_property_readonly("tickets_bytes",
                             [](const cm::Step& s) { return s.plan().tickets_bytes; })
      .def_property_readonly("logits_offset", [](const cm::Step& s) { return s.plan().logits; })
      .def_property_readonly("logits_stride",
                             [](const cm::Step& s) { return s.plan().logits_stride; })
      .def_property_readonly("launches", &cm::Step::launches);

  py::class_<cm::Model, std::shared_ptr<cm::Model>>(m, "Model", py::module_local())
      .def(py::init([](const py::object& config, const py::object& types, const py::object& weights,
                       const py::object& cosines, const py::object& sines) {
             return std::make_shared<cm::Model>(servewright::read_config(config),
                                                cm::read_types(types), weights, cosines, sines);
           }),
           py::arg("config"), py::arg("types"), py::arg("weights"), py::arg("cosines"),
           py::arg("sines"))
      .def("matrix", &cm::Model::matrix, py::arg("name"))
      .def("plan", &cm::Model::plan, py::arg("slots"), py::arg("max_length"), py::arg("pages"));

  m.def("embed", &cm::embed, py::arg("matrix"), py::arg("token_ids"), py::arg("out"),
        py::arg("stream"));
  m.def("project_normed", &cm::project_normed, py::arg("matrix"), py::arg("x"), py::arg("norm"),
        py::arg("eps"), py::arg("out"), py::arg("stream"));
  m.def("project_residual", &cm::project_residual, py::arg("matrix"), py::arg("inp"), py::arg("x"),
        py::arg("stream"));
  m.def("gate_up", &cm::gate_up, py::arg("gate"), py::arg("up"), py::arg("x"), py::arg("norm"),
        py::arg("eps"), py::arg("out"), py::arg("stream"));
  m.def("attention_workspace", &cm::attention_workspace, py::arg("heads"), py::arg("kv_heads"),
        py::arg("head_dim"), py::arg("max_length"), py::arg("tokens"));
  m.def("attention", &cm::attention, py::arg("qkv"), py::arg("cosines"), py::arg("sines"),
        py::arg("pool"), py::arg("page_table"), py::arg("lengths"), py::arg("tickets"),
        py::arg("partials"), py::arg("out"), py::arg("max_length"), py::arg("interleaved"),
        py::arg("stream"));
  m.def("sampling_workspace", &cm::sampling_workspace, py::arg("vocab"), py::arg("rows"));
  m.def("mlp_workspace", &cm::mlp_workspace, py::arg("widths"), py::arg("tokens"));
  m.def("mlp", &cm::mlp, py::arg("x"), py::arg("weights"), py::arg("biases"),
        py::arg("activations"), py::arg("out"), py::arg("workspace"), py::arg("stream"));
  m.def("sample", &cm::sample, py::arg("logits"), py::arg("vocab"), py::arg("sampling"),
        py::arg("workspace"), py::arg("stream"));

  m.def("dequantise", &cm::dequantise, py::arg("matrix"), py::arg("out"), py::arg("stream"));
  m.def("rope_append", &cm::rope_append, py::arg("qkv"), py::arg("cosines"), py::arg("sines"),
        py::arg("pool"), py::arg("pages"), py::arg("first_position"), py::arg("q_rotated"),
        py::arg("interleaved"), py::arg("stream"));
  m.def("prefill_attention", &cm::prefill_attention, py::arg("q_rotated"), py::arg("pool"),
        py::arg("pages"), py::arg("first_position"), py::arg("out"), py::arg("stream"));
  m.def("residual_norm", &cm::residual_norm, py::arg("x"), py::arg("delta"), py::arg("weight"),
        py::arg("eps"), py::arg("out"), py::arg("stream"));
  m.def("silu_mul", &cm::silu_mul, py::arg("inp"), py::arg("out"), py::arg("stream"));
}
