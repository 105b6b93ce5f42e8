// Memory that steps reuse, and the inputs of projections in it.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "../common/kernels.h"

namespace servewright {

// Uninitialised memory that grows and never shrinks, aligned for any vector.
template <class T>
class Buffer {
 public:
  T* ensure(size_t count) {
    if (count > capacity_) {
      if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
      const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
      memory_.reset();
      capacity_ = 0;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = count;
    }
    return memory_.get();
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t capacity_ = 0;
};

// Tokens whose inputs stay in L2 while row groups pass by: what a call of a projection gets at
// most.
constexpr int BLOCK_TOKENS = 128;

class ActivationBuffer {
 public:
  // Room for [tokens, cols] in the forms that are wanted.
  Activations ensure(const Kernels& kernels, int tokens, int cols, bool wants_q8, bool wants_f32) {
    const size_t n = size_t(tokens) * cols, blocks = cols / BLOCK;
    const size_t tiles = (tokens + kernels.tile_tokens - 1) / kernels.tile_tokens;
    const size_t parts = tiles * ((kernels.tile_tokens + MARKS - 1) / MARKS);
    const size_t marks = parts * ((blocks + MARKS - 1) / MARKS) * MARKS * MARKS;
    const size_t bytes = n / BLOCK * ACTIVATION_BYTES + MAX_TILE * BLOCK;
    return Activations{wants_q8 ? q8_.ensure(bytes) : nullptr,
                       wants_q8 ? marks_.ensure(marks) : nullptr,
                       wants_f32 ? f32_.ensure(n) : nullptr, tokens, cols};
  }

 private:
  Buffer<uint8_t> q8_, marks_;
  Buffer<float> f32_;
};

}  // namespace servewright
