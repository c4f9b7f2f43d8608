// The largest values of parts of rows, in descending order; of equal ones those that come first.
//
// A block a part. An entry is a value and its place: no two are equal, so the result is the same in every run. Entries
// from a bound on are collected and sorted. The bound is the k-th largest of the maxima of 4,096 interleaved groups: k
// entries at least are not below it, and hardly more unless very many values are equal or nearly so. Then the bound is
// raised, by counting.
#include "target.h"

HAKS_NUMBER(VALUES)  // of a row
HAKS_NUMBER(PARTS)   // of a row
HAKS_NUMBER(KEPT)    // of a part, at most 2,048

constexpr int kWide = 1024;     // threads
constexpr int kTogether = 16;   // values of a thread that are read at once
constexpr int kGroups = 4;      // of a thread
constexpr int kRoom = 1 << 13;  // entries that can be sorted
constexpr int kPivots = 7;

// The bits of float32 numbers as integers in the same order (-NaN, -infinity to infinity, NaN), and back.
DEVICE uint32_t ordered(uint32_t bits) { return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u); }
DEVICE uint32_t restored(uint32_t key) { return key ^ (key >> 31 ? 0x80000000u : 0xffffffffu); }

DEVICE uint64_t entry(uint32_t bits, int place) { return uint64_t(ordered(bits)) << 32 | ~uint32_t(place); }

// Calls f(bits, place, n) for the values of this thread, n counting those that are read together.
template <typename F>
DEVICE void visit(const uint32_t* values, int length, F f) {
  for (int first = thread(); first < length; first += kWide * kTogether) {
    uint32_t bits[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) bits[n] = first + n * kWide < length ? values[first + n * kWide] : 0;
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (first + n * kWide < length) f(bits[n], first + n * kWide, n);
    }
  }
}

// Sorts a power of two of entries, the largest first (bitonic sort). A warp's pairs nearer than 64 are its own.
DEVICE void sort(uint64_t* entries, int size) {
  block_barrier();
  for (int width = 2, last = 1; width <= size; width *= 2) {
    for (int distance = width / 2; distance; last = distance, distance /= 2) {
      if (distance > 32 || last > 32) {
        block_barrier();
      } else {
        warp_barrier();
      }
      for (int pair = thread(); pair < size / 2; pair += kWide) {
        const int low = 2 * pair - (pair & (distance - 1));
        const uint64_t a = entries[low], b = entries[low + distance];
        if ((a < b) == ((low & width) == 0)) entries[low] = b, entries[low + distance] = a;
      }
    }
  }
  block_barrier();
}

// Raises the bound by as many eighths of the way to `beyond` as leave `kept` entries, and lowers `beyond` to the next.
DEVICE void raise(uint64_t& bound, uint64_t& beyond, const uint32_t* values, int length, int kept, int* counts) {
  const uint64_t step = beyond - bound < 8 ? 1 : (beyond - bound) / 8;
  int mine[kPivots] = {};
  visit(values, length, [&](uint32_t bits, int place, int) {
    const uint64_t other = entry(bits, place);
#pragma unroll
    for (int n = 0; n < kPivots; ++n) mine[n] += other >= bound + step * (n + 1);
  });
#pragma unroll
  for (int n = 0; n < kPivots; ++n) shared_add(counts + n, mine[n]);
  block_barrier();
  int passed = 0;
  while (passed < kPivots && counts[passed] >= kept) ++passed;
  bound += step * passed;
  if (passed < kPivots) beyond = bound + step;
}

WIDE_KERNEL largest(const uint32_t* values, const int* bounds, uint32_t* top, int* index) {
  const int problem = block_x(), part = block_y(), kept = HAKS(KEPT);
  const int start = bounds[part], length = bounds[part + 1] - start;
  values += size_t(problem) * HAKS(VALUES) + start;
  top += (size_t(problem) * HAKS(PARTS) + part) * kept;
  index += (size_t(problem) * HAKS(PARTS) + part) * kept;
  uint64_t* entries = reinterpret_cast<uint64_t*>(shared_memory());
  int* counts = reinterpret_cast<int*>(entries + kRoom);

  int total = length;
  if (length <= kRoom) {
    visit(values, length, [&](uint32_t bits, int place, int) { entries[place] = entry(bits, place); });
  } else {
    uint32_t most[kGroups] = {};
    visit(values, length, [&](uint32_t bits, int, int n) {
      const uint32_t key = ordered(bits);
      most[n % kGroups] = key > most[n % kGroups] ? key : most[n % kGroups];
    });
#pragma unroll
    for (int n = 0; n < kGroups; ++n) entries[n * kWide + thread()] = uint64_t(most[n]) << 32;
    sort(entries, kWide * kGroups);
    // As many entries as are kept are not below the bound, and fewer are not below `beyond`.
    uint64_t bound = entries[kept - 1], beyond = ~uint64_t(0);
    for (;;) {
      block_barrier();
      if (thread() <= kPivots) counts[thread()] = 0;
      block_barrier();
      visit(values, length, [&](uint32_t bits, int place, int) {
        const uint64_t mine = entry(bits, place);
        if (mine >= bound) {
          const int slot = shared_add(counts + kPivots, 1);
          if (slot < kRoom) entries[slot] = mine;
        }
      });
      block_barrier();
      total = counts[kPivots];
      if (total <= kRoom) break;
      raise(bound, beyond, values, length, kept, counts);
    }
  }

  int size = 2;
  while (size < total) size *= 2;
  for (int slot = total + thread(); slot < size; slot += kWide) entries[slot] = 0;
  sort(entries, size);
  for (int slot = thread(); slot < kept; slot += kWide) {
    const bool is = slot < total;
    top[slot] = is ? restored(uint32_t(entries[slot] >> 32)) : 0xff800000u;  // -infinity
    index[slot] = is ? start + int(~uint32_t(entries[slot])) : 0;
  }
}
