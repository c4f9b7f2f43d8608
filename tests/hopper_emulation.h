// hopper.h's instructions on a CPU, beside cuda_emulation.h.
#pragma once

#include "cuda_emulation.h"

#define KERNEL_OF(threads) inline void

inline int thread_anew() { return thread(); }
inline uint32_t high_product(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

inline void request_copy(uint8_t* place, const uint16_t* from, bool here) {
  emulation::check_shared(place, 16);
  if (here) std::memcpy(place, from, 16);
  else std::memset(place, 0, 16);
}
inline void await_copies() {}
inline void show_to_products() {}

namespace emulation {

inline Meeting& group_meeting(int which) {  // of the named barriers
  static Meeting all[16];
  if (all[which].expected == 0) all[which].expected = 128;
  return all[which];
}

inline void yield() {
  State& s = state();
  const int self = s.thread;
  swapcontext(&s.contexts[self], &s.scheduler);
  s.thread = self;
}

}  // namespace emulation

inline void group_barrier(int which) { emulation::meet(emulation::group_meeting(which)); }

struct Barrier {
  uint16_t arrivals, arrived;
  uint32_t rounds;
};

inline void set_up(Barrier* barrier, int arrivals) { *barrier = {uint16_t(arrivals), 0, 0}; }
inline void arrive_after_copies(Barrier* barrier) {
  if (++barrier->arrived == barrier->arrivals) barrier->arrived = 0, ++barrier->rounds;
}
inline void arrive(Barrier* barrier) {
  warp_barrier();
  if (thread() % 32 == 0) arrive_after_copies(barrier);
}
// (the machine knows the last bit of the round alone: a thread more than one round behind would wait for ever)
inline void await(Barrier* barrier, int round) {
  while ((barrier->rounds & 1) == uint32_t(round & 1)) emulation::yield();
}

struct Operand {
  const uint8_t* place;
  int along_sum, along_rows;
};

inline Operand operand(const uint8_t* place, int along_sum, int along_rows) { return {place, along_sum, along_rows}; }
inline Operand moved(Operand from, int bytes) { return {from.place + bytes, from.along_sum, from.along_rows}; }
template <typename Registers>
inline void pin(Registers&) {}
inline void begin_products() {}
inline void end_products() {}
inline void await_products() { warp_barrier(); }

namespace emulation {

template <bool kTurn>
inline float entry(const Operand& of, int row, int k) {
  const int inner = kTurn ? (k % 8 * 8 + row % 8) : (row % 8 * 8 + k % 8);
  const uint8_t* place = of.place + row / 8 * of.along_rows + k / 8 * of.along_sum + inner * 2;
  check_shared(place, 2);
  uint16_t bits;
  std::memcpy(&bits, place, 2);
  return number(bits);
}

// The sums of a thread, as PTX ISA describes the fragment of wgmma.m64nNk16's result; `left` is of a row and a term.
template <bool kTurnB, int kSums, typename Left>
inline void multiply_rows(float (&sums)[kSums], Left left, Operand b, bool add) {
  const int lane = thread() % 32, warp = thread() / 32 % 4;
  for (int n = 0; n < kSums; ++n) {
    const int row = warp * 16 + lane / 4 + (n & 2) * 4, column = n / 4 * 8 + lane % 4 * 2 + (n & 1);
    double total = add ? sums[n] : 0.0;
    for (int k = 0; k < 16; ++k) total += double(left(row, k)) * entry<kTurnB>(b, column, k);
    sums[n] = float(total);
  }
}

}  // namespace emulation

template <bool kTurnA, bool kTurnB, int kSums>
inline void multiply(float (&sums)[kSums], Operand a, Operand b, bool add) {
  emulation::multiply_rows<kTurnB>(sums, [&](int row, int k) { return emulation::entry<kTurnA>(a, row, k); }, b, add);
}

template <bool kTurnB, int kSums>
inline void multiply(float (&sums)[kSums], const uint32_t (&a)[4], Operand b, bool add) {
  const void* const* all = emulation::exchange(a);
  const auto left = [&](int row, int k) {
    const auto words = static_cast<const uint32_t*>(all[row % 8 * 4 + k % 8 / 2]);
    const uint32_t word = words[(row % 16 >= 8) + 2 * (k >= 8)];
    return k % 2 ? high_number(word) : low_number(word);
  };
  emulation::multiply_rows<kTurnB>(sums, left, b, add);
  warp_barrier();
}
