// GGUF rows to packed groups (layout: Matrix in common/kernels.h), and back for the embedding.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../common/kernels.h"

namespace servewright {

const char* type_name(TensorType type);
bool is_quantised(TensorType type);

// Bytes of a GGUF row, and of a packed group. cols is a multiple of BLOCK for quantised types.
size_t row_bytes(TensorType type, int cols);
size_t group_bytes(TensorType type, int cols, int lanes);

// Packs GGUF rows [first_row, first_row + rows) of `w` from `source`. Rows are written once.
void pack_rows(const Kernels& kernels, const Matrix& w, uint8_t* data, int first_row, int rows,
               const uint8_t* source);

// Row `row` of a packed matrix as floats, [cols].
void unpack_row(const Kernels& kernels, const Matrix& w, int row, float* out);

}  // namespace servewright
