// The device vocabulary for nvcc. device.cuh says what the words promise; here each is one
// instruction or a documented intrinsic. Source: PTX ISA 9.0, sections 9.7 (cp.async, mma, atom,
// ld.acquire, st.release, griddepcontrol) and 8 (memory consistency model); CUDA C++ programming
// guide 4.5 (programmatic dependent launch).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SW_KERNEL(threads, blocks_per_sm) __global__ __launch_bounds__(threads, blocks_per_sm)
#define SW_DEVICE __device__ __forceinline__
#define SW_SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define SW_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char sw_dynamic_shared_[]; \
  T* const name = reinterpret_cast<T*>(sw_dynamic_shared_)
#define SW_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                 \
  ::servewright::device::launch(kernel, grid, block, shared_bytes, stream, false, \
                                ::servewright::Start::BEHIND, __VA_ARGS__)
#define SW_LAUNCH_AT(start, kernel, grid, block, shared_bytes, stream, ...)              \
  ::servewright::device::launch(kernel, grid, block, shared_bytes, stream, false, start, \
                                __VA_ARGS__)
#define SW_LAUNCH_RESIDENT(kernel, grid, block, shared_bytes, stream, ...)       \
  ::servewright::device::launch(kernel, grid, block, shared_bytes, stream, true, \
                                ::servewright::Start::BEHIND, __VA_ARGS__)

namespace servewright::device {

// More dynamic shared memory than this must be asked for.
constexpr size_t DEFAULT_SHARED_BYTES = 48 << 10;
// Code for an older architecture does not wait, so it must not start early: also where such PTX was
// compiled for a newer device.
constexpr int WAITS_SINCE = 90;

template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), Index3 grid, unsigned block, size_t shared_bytes,
                  void* stream, bool resident, Start start, Arguments&&... arguments) {
  if (shared_bytes > DEFAULT_SHARED_BYTES) {
    const cudaError_t refused = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (refused != cudaSuccess) return static_cast<int>(refused);
  }
  cudaLaunchAttribute attribute[1] = {};
  unsigned attributes = 0;
  if (resident) {
    attribute[0].id = cudaLaunchAttributeCooperative;
    attribute[0].val.cooperative = 1;
    attributes = 1;
  }
  if (start == Start::BESIDE) {
    cudaFuncAttributes code = {};
    const cudaError_t unknown = cudaFuncGetAttributes(&code, kernel);
    if (unknown != cudaSuccess) return static_cast<int>(unknown);
    if (code.ptxVersion >= WAITS_SINCE) {
      attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute[0].val.programmaticStreamSerializationAllowed = 1;
      attributes = 1;
    }
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attribute;
  config.numAttrs = attributes;
  return static_cast<int>(
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

SW_DEVICE void wait_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
SW_DEVICE void let_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

SW_DEVICE unsigned thread_index() { return threadIdx.x; }
SW_DEVICE unsigned block_size() { return blockDim.x; }
SW_DEVICE Index3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
SW_DEVICE Index3 grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }

constexpr unsigned WHOLE_WARP = 0xffffffffu;

SW_DEVICE void barrier() { __syncthreads(); }
SW_DEVICE void warp_barrier() { __syncwarp(); }
template <class T>
SW_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(WHOLE_WARP, value, lane);
}
template <class T>
SW_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(WHOLE_WARP, value, mask);
}
SW_DEVICE bool vote_any(bool value) { return __any_sync(WHOLE_WARP, value) != 0; }
SW_DEVICE uint32_t vote_ballot(bool value) { return __ballot_sync(WHOLE_WARP, value); }

SW_DEVICE void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

SW_DEVICE Vector<uint32_t, 4> load_16(const void* p) {
  const uint4 v = __ldg(static_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}
template <class V>
SW_DEVICE V load_vector(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
SW_DEVICE void store_vector(void* p, const V& value) {
  *static_cast<V*>(p) = value;
}

SW_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
SW_DEVICE void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}
SW_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
SW_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
SW_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

template <class T>
SW_DEVICE T atomic_add_relaxed(T* p, T value) {
  return atomicAdd(p, value);
}
SW_DEVICE uint64_t atomic_add_relaxed(uint64_t* p, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p),
                   static_cast<unsigned long long>(value));
}
SW_DEVICE unsigned atomic_max_relaxed(unsigned* p, unsigned value) { return atomicMax(p, value); }
SW_DEVICE uint64_t atomic_max_relaxed(uint64_t* p, uint64_t value) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p),
                   static_cast<unsigned long long>(value));
}
SW_DEVICE unsigned atomic_add_acq_rel(unsigned* p, unsigned value) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(p), "r"(value)
               : "memory");
  return old;
}
SW_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
SW_DEVICE void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
SW_DEVICE void spin_pause() { __nanosleep(20); }

template <class To, class From>
SW_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
SW_DEVICE float to_float(bfloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
SW_DEVICE bfloat16 to_bfloat16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
SW_DEVICE uint32_t pack_bfloat16(float lo, float hi) {
  return bit_cast<uint32_t>(__floats2bfloat162_rn(lo, hi));
}
SW_DEVICE float half_to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
// By hand: the compiler makes two lop3 of two constants.
SW_DEVICE uint32_t mask_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(bits));
  return out;
}
SW_DEVICE uint32_t lower_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
SW_DEVICE uint32_t upper_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }
SW_DEVICE uint32_t nibbles_to_bfloat16(uint32_t word, int shift) {
  return mask_or(word >> shift, 0x000f000fu, 0x43004300u);  // 0x4300: 128, its last bit worth 1
}
SW_DEVICE uint32_t sub_bfloat16x2(uint32_t a, uint32_t b) {
  return bit_cast<uint32_t>(__hsub2_rn(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b)));
}
SW_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SW_DEVICE float log2(float x) { return ::log2f(x); }
SW_DEVICE double exp2(double x) { return ::exp2(x); }
SW_DEVICE double log2(double x) { return ::log2(x); }
SW_DEVICE double exp(double x) { return ::exp(x); }
SW_DEVICE double log(double x) { return ::log(x); }
SW_DEVICE float rsqrt(float x) { return ::rsqrtf(x); }
SW_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }
SW_DEVICE double sqrt(double x) { return __dsqrt_rn(x); }
SW_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SW_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
SW_DEVICE float floor(float x) { return ::floorf(x); }
SW_DEVICE double floor(double x) { return ::floor(x); }
SW_DEVICE float absolute(float x) { return ::fabsf(x); }
template <class T>
SW_DEVICE T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SW_DEVICE T maximum(T a, T b) {
  return a < b ? b : a;
}
SW_DEVICE int popcount(uint32_t x) { return __popc(x); }
SW_DEVICE int leading_zeros(uint32_t x) { return __clz(static_cast<int>(x)); }
SW_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

}  // namespace servewright::device
