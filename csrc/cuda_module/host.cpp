#include "host.h"

#include <stdexcept>

#include "../cuda/step.h"
#include "../cuda/weights.h"
#include "../records.h"

namespace servewright::cuda_module {
namespace {

constexpr int64_t MOST_ROWS = 1 << 24;

[[noreturn]] void refuse(const char* caller, const std::string& what) {
  throw std::invalid_argument(std::string(caller) + ": " + what);
}

int checked_cols(const char* caller, cuda::Weight type, int64_t cols) {
  const int multiple = type == cuda::Weight::BF16 ? 8 : cuda::BLOCK_COLS;
  if (cols < 1 || cols > MOST_ROWS || cols % multiple)
    refuse(caller, "cols must be a multiple of " + std::to_string(multiple) + " in 1..2^24 for " +
                       WEIGHT_NAMES[static_cast<int>(type)] + ", got " + std::to_string(cols));
  return static_cast<int>(cols);
}

int checked_rows(const char* caller, int64_t rows) {
  if (rows < 0 || rows > MOST_ROWS)
    refuse(caller, "rows must be in 0..2^24, got " + std::to_string(rows));
  return static_cast<int>(rows);
}

template <class T>
T* writable(py::array_t<T>& array, const char* name) {
  if (!array.writeable()) refuse(name, "the array is read-only");
  return array.mutable_data();
}

}  // namespace

Types read_types(const py::object& types) {
  Types read;
  try {
    for (const auto& [name, type] : py::dict(types))
      read[name.cast<std::string>()] = type.cast<std::string>();
  } catch (const py::cast_error&) {
    throw std::invalid_argument("types must map names to types, both str");
  }
  return read;
}

std::string unfit_model(const py::object& config, const py::object& types) {
  return unfit(read_config(config), read_types(types));
}

py::tuple layout(const py::object& config, const py::object& types) {
  const Layout found = lay_out(read_config(config), read_types(types));
  py::dict places;
  for (const auto& [name, place] : found.places)
    places[py::str(name)] = py::make_tuple(place.offset, place.bytes);
  return py::make_tuple(found.bytes, places);
}

int64_t row_bytes(const std::string& type, int64_t cols) {
  const cuda::Weight weight = weight_type("row_bytes", type);
  const int width = checked_cols("row_bytes", weight, cols);
  return static_cast<int64_t>(cuda::source_row_bytes(weight, width));
}

int64_t packed_bytes(const std::string& type, int64_t rows, int64_t cols) {
  const cuda::Weight weight = weight_type("packed_bytes", type);
  const int width = checked_cols("packed_bytes", weight, cols);
  return static_cast<int64_t>(
      cuda::packed_bytes(weight, checked_rows("packed_bytes", rows), width));
}

void pack(const std::string& type, int64_t cols, const py::object& rows, const py::object& out,
          int threads) {
  const cuda::Weight weight = weight_type("pack", type);
  const int width = checked_cols("pack", weight, cols);
  const auto source = typed_array<uint8_t>(rows, "pack: rows", 2);
  const int count = checked_rows("pack", source.shape(0));
  const size_t wanted_row = cuda::source_row_bytes(weight, width);
  if (static_cast<size_t>(source.shape(1)) != wanted_row)
    refuse("pack", "rows must have " + std::to_string(wanted_row) + " bytes each, for " +
                       std::to_string(width) + " columns of " + type + ", got " +
                       shape_text(source));
  auto target = typed_array<uint8_t>(out, "pack: out", 1);
  const size_t wanted = cuda::packed_bytes(weight, count, width);
  if (static_cast<size_t>(target.shape(0)) != wanted)
    refuse("pack", "out must have " + std::to_string(wanted) + " bytes, got " + shape_text(target));
  if (threads < 1) refuse("pack", "threads must be 1 or more, got " + std::to_string(threads));
  const uint8_t* from = source.data();
  uint8_t* to = writable(target, "pack: out");
  const py::gil_scoped_release release;
  cuda::pack_weights(weight, count, width, from, to, threads);
}

void fill_rope(const py::object& config, const py::object& cosines, const py::object& sines) {
  const Config c = read_config(config);
  if (const std::string why = servewright::unfit(c); !why.empty()) refuse("fill_rope", why);
  auto cosine_table = typed_array<float>(cosines, "fill_rope: cosines", 2);
  auto sine_table = typed_array<float>(sines, "fill_rope: sines", 2);
  for (const auto& [name, table] : {std::pair("cosines", &cosine_table), {"sines", &sine_table}})
    if (table->shape(1) != c.head_dim / 2 || table->shape(0) != cosine_table.shape(0))
      refuse("fill_rope", std::string(name) + " must be [" + std::to_string(cosine_table.shape(0)) +
                              ", " + std::to_string(c.head_dim / 2) + "], got " +
                              shape_text(*table));
  const int positions = static_cast<int>(cosine_table.shape(0));
  float* to_cosines = writable(cosine_table, "fill_rope: cosines");
  float* to_sines = writable(sine_table, "fill_rope: sines");
  const cuda::Rope rope = {c.rope_dims, c.rope_base, c.rope_scale,
                           c.rope_factors.empty() ? nullptr : c.rope_factors.data()};
  const py::gil_scoped_release release;
  cuda::fill_rope(rope, c.head_dim, positions, to_cosines, to_sines);
}

void check_step(const py::object& batch, const py::object& config, int num_blocks) {
  const Config c = read_config(config);
  if (num_blocks < 1) refuse("check_step", "num_blocks must be 1 or more");
  ArrayReader arrays("step");
  const StepInput in = read_batch(batch, &arrays);
  servewright::check_step(in, c, num_blocks);
}

}  // namespace servewright::cuda_module
