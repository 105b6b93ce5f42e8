#include "pack.h"

#include <cmath>
#include <cstring>

namespace servewright {
namespace {

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000u | rest << 13;
  } else {
    const float magnitude = std::ldexp(float(rest & 0x3ff) + (rest >> 10 ? 1024.0f : 0.0f),
                                       rest >> 10 ? int(rest >> 10) - 25 : -24);
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

uint16_t read_half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

int scale_count(TensorType type) { return type == Q4_1 ? 2 : 1; }
int quant_bytes(TensorType type) { return type == Q8_0 ? BLOCK : BLOCK / 2; }
int float_bytes(TensorType type) { return type == F32 ? 4 : 2; }

}  // namespace

const char* type_name(TensorType type) {
  static const char* const names[TENSOR_TYPES] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"};
  return names[type];
}

bool is_quantised(TensorType type) { return type == Q8_0 || type == Q4_0 || type == Q4_1; }

size_t row_bytes(TensorType type, int cols) {
  if (!is_quantised(type)) return size_t(cols) * float_bytes(type);
  return size_t(cols / BLOCK) * (2 * scale_count(type) + quant_bytes(type));
}

// The same bytes in another order.
size_t group_bytes(TensorType type, int cols, int lanes) { return row_bytes(type, cols) * lanes; }

void pack_rows(const Kernels& kernels, const Matrix& w, uint8_t* data, int first_row, int rows,
               const uint8_t* source) {
  const int lanes = kernels.lanes;
  const size_t source_row = row_bytes(w.type, w.cols);
  for (int i = 0; i < rows; ++i, source += source_row) {
    const int lane = (first_row + i) % lanes;
    uint8_t* group = data + (first_row + i) / lanes * w.group_bytes;
    if (!is_quantised(w.type)) {
      const int bytes = float_bytes(w.type);
      for (int k = 0; k < w.cols; ++k)
        std::memcpy(group + (size_t(k) * lanes + lane) * bytes, source + size_t(k) * bytes, bytes);
      continue;
    }
    const int scales = scale_count(w.type), quants = quant_bytes(w.type);
    const uint8_t* from = source;
    for (int b = 0; b < w.cols / BLOCK; ++b) {
      for (int s = 0; s < scales; ++s, from += 2, group += 2 * lanes)
        std::memcpy(group + 2 * lane, from, 2);
      for (int q = 0; q < quants; q += 4, from += 4, group += 4 * lanes) {
        uint32_t four;
        std::memcpy(&four, from, 4);
        if (w.type == Q8_0 && kernels.unsigned_q8) four ^= 0x80808080u;
        std::memcpy(group + 4 * lane, &four, 4);
      }
    }
  }
}

void unpack_row(const Kernels& kernels, const Matrix& w, int row, float* out) {
  const int lanes = kernels.lanes, lane = row % lanes;
  const uint8_t* group = w.data + row / lanes * w.group_bytes;
  if (!is_quantised(w.type)) {
    const int bytes = float_bytes(w.type);
    for (int k = 0; k < w.cols; ++k) {
      const uint8_t* at = group + (size_t(k) * lanes + lane) * bytes;
      if (w.type == F32) {
        std::memcpy(out + k, at, 4);
      } else if (w.type == F16) {
        out[k] = half_to_float(read_half(at));
      } else {
        const uint32_t bits = uint32_t(read_half(at)) << 16;
        std::memcpy(out + k, &bits, 4);
      }
    }
    return;
  }
  const int quants = quant_bytes(w.type);
  for (int b = 0; b < w.cols / BLOCK; ++b, out += BLOCK) {
    const float scale = half_to_float(read_half(group + 2 * lane));
    group += 2 * lanes;
    float min = 0.0f;
    if (w.type == Q4_1) {
      min = half_to_float(read_half(group + 2 * lane));
      group += 2 * lanes;
    }
    for (int q = 0; q < quants; q += 4, group += 4 * lanes)
      for (int j = 0; j < 4; ++j) {
        const uint8_t byte = group[4 * lane + j];
        if (w.type == Q8_0) {
          out[q + j] = scale * float(int8_t(kernels.unsigned_q8 ? byte ^ 0x80 : byte));
        } else if (w.type == Q4_0) {
          out[q + j] = scale * float((byte & 15) - 8);
          out[q + j + 16] = scale * float((byte >> 4) - 8);
        } else {
          out[q + j] = scale * float(byte & 15) + min;
          out[q + j + 16] = scale * float(byte >> 4) + min;
        }
      }
  }
}

}  // namespace servewright
