// Runs kernels of haksnet_jax/kernels/cuda on a CPU: target.h's instructions, one thread of a block after another.
//
// Each thread of a block is a context of its own that runs until it meets a barrier or an instruction of its warp, and
// goes on when all others have come as far. Slow, deterministic, and as exact as the instructions are described.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#define DEVICE inline
#define KERNEL(blocks) inline void
#define WIDE_KERNEL inline void
#define HAKS_NUMBER(name)
#define HAKS(name) emulation::numbers().at(#name)
#pragma GCC diagnostic ignored "-Wunknown-pragmas"

namespace emulation {

constexpr int kMostThreads = 1024, kWarp = 32;

inline std::map<std::string, int>& numbers() {
  static std::map<std::string, int> all;
  return all;
}

struct Meeting {  // of all threads of a warp or of a block
  int expected = 0, arrived = 0, generation = 0;
};

struct State {
  int thread, block[3], grid[3];
  ucontext_t scheduler, contexts[kMostThreads];
  bool ended[kMostThreads];
  Meeting block_meeting, warp_meetings[kMostThreads / kWarp];
  // What the threads of a warp brought to an instruction; two sets, since a fast thread is at most one ahead.
  const void* operands[kMostThreads / kWarp][2][kWarp];
  int turn[kMostThreads];
  std::vector<uint32_t> shared;
  std::function<void()> body;
};

inline State& state() {
  static State one;
  return one;
}

inline void meet(Meeting& meeting) {
  State& s = state();
  const int generation = meeting.generation, self = s.thread;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) swapcontext(&s.contexts[self], &s.scheduler);
  s.thread = self;
}

// Gives every thread what all 32 brought.
inline const void* const* exchange(const void* mine) {
  State& s = state();
  const int warp = s.thread / kWarp, turn = s.turn[s.thread] ^= 1;
  s.operands[warp][turn][s.thread % kWarp] = mine;
  meet(s.warp_meetings[warp]);
  return s.operands[warp][turn];
}

inline void enter() {
  State& s = state();
  const int self = s.thread;
  s.body();
  s.ended[self] = true;
  swapcontext(&s.contexts[self], &s.scheduler);
}

inline void launch(const int (&grid)[3], int threads, int shared_bytes, std::function<void()> body) {
  State& s = state();
  constexpr size_t kStack = 1 << 17;
  static std::vector<char> stacks;
  stacks.resize(kStack * threads);
  s.body = std::move(body);
  std::copy(grid, grid + 3, s.grid);
  for (int z = 0; z < grid[2]; ++z)
    for (int y = 0; y < grid[1]; ++y)
      for (int x = 0; x < grid[0]; ++x) {
        s.block[0] = x, s.block[1] = y, s.block[2] = z;
        s.shared.assign(shared_bytes / 4, 0x7fc07fc0u);  // NaN: what nobody wrote must not matter
        s.block_meeting = {threads, 0, 0};
        for (auto& meeting : s.warp_meetings) meeting = {kWarp, 0, 0};
        for (int t = 0; t < threads; ++t) {
          s.ended[t] = false, s.turn[t] = 0;
          getcontext(&s.contexts[t]);
          s.contexts[t].uc_stack.ss_sp = stacks.data() + t * kStack;
          s.contexts[t].uc_stack.ss_size = kStack;
          s.contexts[t].uc_link = &s.scheduler;
          makecontext(&s.contexts[t], enter, 0);
        }
        for (int left = threads; left > 0;) {
          left = 0;
          for (int t = 0; t < threads; ++t) {
            if (s.ended[t]) continue;
            s.thread = t;
            swapcontext(&s.scheduler, &s.contexts[t]);
            left += !s.ended[t];
          }
        }
      }
}

inline float number(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint32_t rounded(float value) {  // to the nearest bfloat16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return std::isnan(value) ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Element (row, column) of the matrices that ldmatrix's addresses describe.
inline uint16_t element(const void* const* places, int matrix, int row, int column) {
  return static_cast<const uint16_t*>(places[matrix * 8 + row])[column];
}

inline void check_shared(const void* place, size_t bytes) {
  State& s = state();
  const char* first = reinterpret_cast<const char*>(s.shared.data());
  const char* at = static_cast<const char*>(place);
  if (at < first || at + bytes > first + s.shared.size() * 4 || (at - first) % bytes) {
    std::fprintf(stderr, "shared memory: %td of %zu\n", at - first, s.shared.size() * 4);
    std::abort();
  }
}

}  // namespace emulation

inline int thread() { return emulation::state().thread; }
inline int block_x() { return emulation::state().block[0]; }
inline int block_y() { return emulation::state().block[1]; }
inline int block_z() { return emulation::state().block[2]; }
inline int grid_x() { return emulation::state().grid[0]; }
inline int grid_y() { return emulation::state().grid[1]; }
inline void block_barrier() { emulation::meet(emulation::state().block_meeting); }
inline void warp_barrier() { emulation::exchange(nullptr); }
inline uint32_t* shared_memory() { return emulation::state().shared.data(); }

inline float shuffle_xor(float value, int distance) {
  const void* const* all = emulation::exchange(&value);
  const float result = *static_cast<const float*>(all[thread() % emulation::kWarp ^ distance]);
  warp_barrier();  // `value` must live until all have read it
  return result;
}

inline uint32_t votes(bool yes) {
  const void* const* all = emulation::exchange(&yes);
  uint32_t word = 0;
  for (int lane = 0; lane < emulation::kWarp; ++lane) word |= uint32_t(*static_cast<const bool*>(all[lane])) << lane;
  warp_barrier();
  return word;
}

inline int warp_largest(int value) {
  const void* const* all = emulation::exchange(&value);
  int largest = value;
  for (int lane = 0; lane < emulation::kWarp; ++lane) largest = std::max(largest, *static_cast<const int*>(all[lane]));
  warp_barrier();
  return largest;
}

inline int count_bits(uint32_t word) { return __builtin_popcount(word); }
inline int lowest_bit(uint32_t word) { return word ? __builtin_ctz(word) : -1; }
inline void shared_largest(int* place, int value) {
  emulation::check_shared(place, 4);
  *place = std::max(*place, value);
}

inline int shared_add(int* place, int value) {
  emulation::check_shared(place, 4);
  const int before = *place;
  *place += value;
  return before;
}

inline int bits_of(float value) {
  int bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float sum(float a, float b) { return a + b; }
inline float product(float a, float b) { return a * b; }
inline float quotient(float a, float b) { return a / b; }
inline float absolute(float x) { return std::fabs(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float exponential(float x) { return std::exp(x); }

struct Vector {
  uint32_t word[4];
};

inline Vector load_vector(const uint16_t* place, bool here) {
  Vector value = {{0, 0, 0, 0}};
  if (here) std::memcpy(&value, place, sizeof(value));
  return value;
}

struct HalfVector {
  uint32_t word[2];
};

inline HalfVector load_half_vector(const uint16_t* place, bool here) {
  HalfVector value = {{0, 0}};
  if (here) std::memcpy(&value, place, sizeof(value));
  return value;
}

inline uint32_t load_pair(const uint16_t* place, bool here) {
  uint32_t value = 0;
  if (here) std::memcpy(&value, place, sizeof(value));
  return value;
}

inline void store_pair(float* place, float low, float high) { place[0] = low, place[1] = high; }

inline void store_vector(uint16_t* place, const Vector& value) { std::memcpy(place, &value, sizeof(value)); }

inline uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
inline uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
inline float low_number(uint32_t word) { return emulation::number(word & 0xffffu); }
inline float high_number(uint32_t word) { return emulation::number(word >> 16); }
inline uint32_t rounded_pair(float low, float high) {
  return emulation::rounded(low) | emulation::rounded(high) << 16;
}
inline void store_word(uint16_t* place, uint32_t word) { std::memcpy(place, &word, 4); }
inline void store_pair(uint16_t* place, float low, float high) { store_word(place, rounded_pair(low, high)); }

inline void load_matrices(uint32_t (&out)[4], const uint32_t* place) {
  emulation::check_shared(place, 16);
  const void* const* all = emulation::exchange(place);
  const int lane = thread() % 32, row = lane / 4, column = lane % 4 * 2;
  for (int n = 0; n < 4; ++n) {
    out[n] = emulation::element(all, n, row, column) | uint32_t(emulation::element(all, n, row, column + 1)) << 16;
  }
}

inline void load_transposed(uint32_t (&out)[4], const uint32_t* place) {
  emulation::check_shared(place, 16);
  const void* const* all = emulation::exchange(place);
  const int lane = thread() % 32, column = lane / 4, row = lane % 4 * 2;
  for (int n = 0; n < 4; ++n) {
    out[n] = emulation::element(all, n, row, column) | uint32_t(emulation::element(all, n, row + 1, column)) << 16;
  }
}

// The fragments of mma.m16n8k16 as PTX ISA describes them ("Matrix Fragments for mma.m16n8k16 with floating point type").
inline void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  const void* const* all = emulation::exchange(&mine);
  const auto of = [&](int lane) { return static_cast<const Operands*>(all[lane]); };
  const auto half = [](uint32_t word, int k) { return k % 2 ? high_number(word) : low_number(word); };
  const int lane = thread() % 32, group = lane / 4, member = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i >= 2 ? 8 : 0), column = member * 2 + i % 2;
    double total = sums[i];
    for (int k = 0; k < 16; ++k) {
      const float left = half(of(row % 8 * 4 + k % 8 / 2)->a[(row >= 8) + 2 * (k >= 8)], k);
      const float right = half(of(column * 4 + k % 8 / 2)->b[k >= 8], k);
      total += double(left) * right;
    }
    sums[i] = float(total);
  }
  warp_barrier();
}
