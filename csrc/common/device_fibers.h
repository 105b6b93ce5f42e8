// The device vocabulary on the CPU, over csrc/emulator. device.cuh says what the words promise.
//
// What touches a kernel's memory is written here, in headers, so that the sanitizers the kernels
// are compiled with see it; everything else is in the emulator's own files, which they do not see.
#pragma once
#include <math.h>
#include <string.h>

#include <memory>

#include "../emulator/grid.h"

#define SW_KERNEL(threads, blocks_per_sm) inline
#define SW_DEVICE inline
#define SW_UNPAREN_(...) __VA_ARGS__
#define SW_SHARED(T, name, n)        \
  static const char name##_key_ = 0; \
  auto& name =                       \
      *static_cast<T(*)[n]>(::servewright::emulator::shared(&name##_key_, sizeof(T) * (n), #name))
#define SW_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::servewright::emulator::dynamic_shared())
#define SW_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                  \
  ::servewright::device::launch(#kernel, grid, block, shared_bytes, stream, false, \
                                ::servewright::Start::BEHIND, [=] { (kernel)(__VA_ARGS__); })
#define SW_LAUNCH_AT(start, kernel, grid, block, shared_bytes, stream, ...)               \
  ::servewright::device::launch(#kernel, grid, block, shared_bytes, stream, false, start, \
                                [=] { (kernel)(__VA_ARGS__); })
#define SW_LAUNCH_RESIDENT(kernel, grid, block, shared_bytes, stream, ...)        \
  ::servewright::device::launch(#kernel, grid, block, shared_bytes, stream, true, \
                                ::servewright::Start::BEHIND, [=] { (kernel)(__VA_ARGS__); })
// Where a word stands, for reports and to see that threads meet at the same one.
#define SW_LINE ::servewright::emulator::Line line = {__builtin_FILE(), __builtin_LINE()}

namespace servewright::device {

template <class Body>
int launch(const char* kernel, Index3 grid, unsigned block, size_t shared_bytes, void* /*stream*/,
           bool resident, Start start, const Body& body) {  // with the arguments in it
  return emulator::launch(
      {kernel, {grid.x, grid.y, grid.z}, block, shared_bytes, resident, start == Start::BESIDE},
      [](const void* b) { (*static_cast<const Body*>(b))(); }, std::make_shared<Body>(body));
}

inline void wait_previous_launch(SW_LINE) { emulator::wait_previous_launch(line); }
inline void let_next_launch(SW_LINE) { emulator::let_next_launch(line); }

inline unsigned thread_index() { return emulator::here->thread; }
inline unsigned block_size() { return emulator::here->threads; }
inline Index3 block_index() {
  return {emulator::here->block.x, emulator::here->block.y, emulator::here->block.z};
}
inline Index3 grid_size() {
  return {emulator::here->grid.x, emulator::here->grid.y, emulator::here->grid.z};
}

inline void barrier(SW_LINE) { emulator::barrier(line); }
inline void warp_barrier(SW_LINE) { emulator::warp_barrier(line); }
template <class T>
T shuffle(T value, int lane, SW_LINE) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = emulator::shuffle(bits, static_cast<unsigned>(lane) % 32, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T shuffle_xor(T value, int mask, SW_LINE) {
  return shuffle(value, static_cast<int>(thread_index() % 32) ^ mask, line);
}
inline uint32_t vote_ballot(bool value, SW_LINE) { return emulator::ballot(value, line); }
inline bool vote_any(bool value, SW_LINE) { return emulator::ballot(value, line) != 0; }
inline void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             SW_LINE) {
  emulator::mma_bf16_16x8x16(d, a, b, line);
}

template <class V>
V load_vector(const void* p, SW_LINE) {
  emulator::check_access(p, sizeof(V), alignof(V), "load_vector", line);
  return *static_cast<const V*>(p);
}
template <class V>
void store_vector(void* p, const V& value, SW_LINE) {
  emulator::check_access(p, sizeof(V), alignof(V), "store_vector", line);
  *static_cast<V*>(p) = value;
}
inline Vector<uint32_t, 4> load_16(const void* p, SW_LINE) {
  emulator::check_access(p, 16, 16, "load_16", line);
  emulator::check_read_only(p, "load_16", line);
  return *static_cast<const Vector<uint32_t, 4>*>(p);
}

// Between start and end nothing but the two places may be touched: the thread's stack is not the
// hardware's.
inline void land(uint64_t* to, uint64_t first, uint64_t second) {
  to[0] = first;
  to[1] = second;
}
inline void land(void* to, const void* from) {
  const auto* words = static_cast<const uint64_t*>(from);
  land(static_cast<uint64_t*>(to), words ? words[0] : 0, words ? words[1] : 0);
}
inline void copy_async_16(void* shared, const void* global, bool valid, SW_LINE) {
  const void* from = valid ? global : nullptr;
  const bool at_once = emulator::issue({shared, from}, line);
  emulator::start_copying(true);
  if (at_once)
    land(shared, from);
  else  // in flight: whoever looks here, or still writes, is wrong and sees or loses NaN
    land(static_cast<uint64_t*>(shared), ~uint64_t{0}, ~uint64_t{0});
  emulator::end_copying();
}
inline void copy_async_16(void* shared, const void* global, SW_LINE) {
  copy_async_16(shared, global, true, line);
}
inline void commit_copies() { emulator::commit(); }
template <int N>
void wait_copies() {
  for (emulator::Copy copy; emulator::due(N, &copy);) {
    void* const to = copy.to;
    const void* const from = copy.from;
    emulator::start_copying(false);
    land(to, from);
    emulator::end_copying();
  }
}

template <class T>
T atomic_add_relaxed(T* p, T value) {
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
inline float atomic_add_relaxed(float* p, float value) {
  uint32_t* bits = reinterpret_cast<uint32_t*>(p);
  uint32_t old = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
  float before, after;
  do {
    memcpy(&before, &old, 4);
    after = before + value;
    memcpy(&wanted, &after, 4);
  } while (
      !__atomic_compare_exchange_n(bits, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
template <class T>
T atomic_max_relaxed(T* p, T value) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < value &&
         !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline unsigned atomic_add_acq_rel(unsigned* p, unsigned value) {
  return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
}
inline unsigned load_acquire(const unsigned* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release(unsigned* p, unsigned value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
inline void spin_pause(SW_LINE) { emulator::spin(line); }

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float to_float(bfloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline bfloat16 to_bfloat16(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline uint32_t pack_bfloat16(float lo, float hi) {
  return to_bfloat16(lo).bits | uint32_t{to_bfloat16(hi).bits} << 16;
}
inline float half_to_float(uint16_t x) {
  const uint32_t sign = uint32_t{x} >> 15 << 31, exponent = x >> 10 & 31u, fraction = x & 1023u;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent) return bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -small : small;
}
inline uint32_t mask_or(uint32_t word, uint32_t mask, uint32_t bits) {
  return (word & mask) | bits;
}
inline uint32_t lower_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
inline uint32_t upper_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
inline uint32_t nibbles_to_bfloat16(uint32_t word, int shift) {
  return ((word >> shift) & 0x000f000fu) | 0x43004300u;
}
inline float lower_bfloat16(uint32_t pair) { return bit_cast<float>(pair << 16); }
inline float upper_bfloat16(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }
inline uint32_t sub_bfloat16x2(uint32_t a, uint32_t b) {
  return pack_bfloat16(lower_bfloat16(a) - lower_bfloat16(b),
                       upper_bfloat16(a) - upper_bfloat16(b));
}

inline float exp2(float x) { return ::exp2f(x); }
inline double exp2(double x) { return ::exp2(x); }
inline float log2(float x) { return ::log2f(x); }
inline double log2(double x) { return ::log2(x); }
inline double exp(double x) { return ::exp(x); }
inline double log(double x) { return ::log(x); }
inline float rsqrt(float x) { return 1.0f / ::sqrtf(x); }
inline float sqrt(float x) { return ::sqrtf(x); }
inline double sqrt(double x) { return ::sqrt(x); }
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return ::fma(a, b, c); }
inline float floor(float x) { return ::floorf(x); }
inline double floor(double x) { return ::floor(x); }
inline float absolute(float x) { return ::fabsf(x); }
template <class T>
T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T maximum(T a, T b) {
  return a < b ? b : a;
}
inline int popcount(uint32_t x) { return __builtin_popcount(x); }
inline int leading_zeros(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}

}  // namespace servewright::device
