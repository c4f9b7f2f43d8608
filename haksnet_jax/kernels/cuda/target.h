// What the kernels ask of the machine: a GPU's instructions, or an emulation of them by a CPU (tests/cuda_emulation.h).
#pragma once

#ifdef HAKS_EMULATION
#include "cuda_emulation.h"
#else

#include <cstddef>
#include <cstdint>

#define DEVICE __device__ __forceinline__
#define KERNEL(blocks) extern "C" __global__ void __launch_bounds__(256, blocks)
#define WIDE_KERNEL extern "C" __global__ void __launch_bounds__(1024, 1)

// A number that Python writes in place of its name into the PTX.
#define HAKS(name) haks_##name()
#define HAKS_NUMBER(name)                              \
  DEVICE int haks_##name() {                           \
    int value;                                         \
    asm("mov.u32 %0, HAKS_" #name "_;" : "=r"(value)); \
    return value;                                      \
  }
HAKS_NUMBER(HEIGHT)
HAKS_NUMBER(WIDTH)
HAKS_NUMBER(CHANNELS)
HAKS_NUMBER(BATCH)
HAKS_NUMBER(TILES_LOG)
HAKS_NUMBER(STRIPS_LOG)
HAKS_NUMBER(ROW_WORDS)
HAKS_NUMBER(STRIP_WORDS)
HAKS_NUMBER(STRIP_PAD)
HAKS_NUMBER(IMAGE_WORDS)
HAKS_NUMBER(PLANE_WORDS)
HAKS_NUMBER(ROWS)
HAKS_NUMBER(ROWS_INVERSE)
HAKS_NUMBER(ITEMS_INVERSE)
HAKS_NUMBER(PLAIN_ROW_WORDS)
HAKS_NUMBER(PLAIN_STRIP_WORDS)
HAKS_NUMBER(PLAIN_STRIP_PAD)
HAKS_NUMBER(PLAIN_IMAGE_WORDS)
HAKS_NUMBER(PLAIN_PLANE_WORDS)
HAKS_NUMBER(PLAIN_ROWS)
HAKS_NUMBER(PLAIN_ROWS_INVERSE)
HAKS_NUMBER(PLAIN_ITEMS_INVERSE)

DEVICE int thread() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }
DEVICE int grid_y() { return gridDim.y; }
DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int distance) { return __shfl_xor_sync(0xffffffffu, value, distance); }

DEVICE uint32_t votes(bool yes) { return __ballot_sync(0xffffffffu, yes); }  // bit n: the answer of thread n of a warp
DEVICE int warp_largest(int value) { return __reduce_max_sync(0xffffffffu, value); }
DEVICE int count_bits(uint32_t word) { return __popc(word); }
DEVICE int lowest_bit(uint32_t word) { return __ffs(word) - 1; }
DEVICE void shared_largest(int* place, int value) { atomicMax(place, value); }
DEVICE int shared_add(int* place, int value) { return atomicAdd(place, value); }  // what was there before

DEVICE int bits_of(float value) { return __float_as_int(value); }
DEVICE float float_of(int bits) { return __int_as_float(bits); }
// Each rounded by itself, as by a CPU: compilers fuse a * b + c, and then equal overlaps differ.
DEVICE float sum(float a, float b) { return __fadd_rn(a, b); }
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }

DEVICE uint32_t* shared_memory() {
  extern __shared__ __align__(16) uint32_t shared[];
  return shared;
}

struct Vector {  // eight numbers in bfloat16
  uint32_t word[4];
};

DEVICE Vector load_vector(const uint16_t* place, bool here) {  // zeros where it is not here
  Vector value = {{0, 0, 0, 0}};
  asm("{\n"
      ".reg .pred here;\n"
      "setp.ne.s32 here, %5, 0;\n"
      "@here ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(value.word[0]), "+r"(value.word[1]), "+r"(value.word[2]), "+r"(value.word[3])
      : "l"(place), "r"(int(here)));
  return value;
}

struct HalfVector {  // four numbers in bfloat16
  uint32_t word[2];
};

DEVICE HalfVector load_half_vector(const uint16_t* place, bool here) {  // zeros where it is not here
  HalfVector value = {{0, 0}};
  asm("{\n"
      ".reg .pred here;\n"
      "setp.ne.s32 here, %3, 0;\n"
      "@here ld.global.nc.v2.u32 {%0, %1}, [%2];\n"
      "}"
      : "+r"(value.word[0]), "+r"(value.word[1])
      : "l"(place), "r"(int(here)));
  return value;
}

DEVICE uint32_t load_pair(const uint16_t* place, bool here) {  // of numbers in bfloat16
  uint32_t value = 0;
  asm("{\n"
      ".reg .pred here;\n"
      "setp.ne.s32 here, %2, 0;\n"
      "@here ld.global.nc.u32 %0, [%1];\n"
      "}"
      : "+r"(value)
      : "l"(place), "r"(int(here)));
  return value;
}

DEVICE void store_pair(float* place, float low, float high) {
  *reinterpret_cast<float2*>(place) = make_float2(low, high);
}

DEVICE void store_vector(uint16_t* place, const Vector& value) {
  *reinterpret_cast<uint4*>(place) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }
DEVICE float low_number(uint32_t word) { return __uint_as_float(word << 16); }
DEVICE float high_number(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

DEVICE uint32_t rounded_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

DEVICE void store_word(uint16_t* place, uint32_t word) { *reinterpret_cast<uint32_t*>(place) = word; }
DEVICE void store_pair(uint16_t* place, float low, float high) { store_word(place, rounded_pair(low, high)); }

// Four matrices of 8 x 8 numbers of 16 bits; thread n says where row n % 8 of matrix n / 8 lies.
DEVICE void load_matrices(uint32_t (&out)[4], const uint32_t* place) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(place));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

DEVICE void load_transposed(uint32_t (&out)[4], const uint32_t* place) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(place));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// sums [16, 8] += a [16, 16] b [16, 8], spread over the threads of a warp as PTX describes for m16n8k16.
DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE float absolute(float x) { return fabsf(x); }
DEVICE float reciprocal(float x) { return __fdividef(1.0f, x); }  // right to two units in the last place
DEVICE float exponential(float x) { return __expf(x); }

#endif
