// The largest values of parts of rows, in descending order; of equal ones those that come first.
//
// An entry is a value and its place: no two are equal, so the result is the same in every run. Three kernels:
//
// - `maxima`, by many blocks: of each group of 8 values of a row, where a part is long.
// - `candidates`, a block a part: entries among which the largest are, hardly more than are kept. They are those from a
//   bound on: about the k-th largest of the maxima of 8,192 sets of groups, so that k at least are not below it. Only
//   groups whose maximum is not below it are read again. Where too many values are not below it, as where very many are
//   equal (scores that were rounded to 16 bits, what no sample may be drawn from), the k-th largest maximum is found by
//   counting, then the k-th largest value among the groups above, and of those equal to it the first are taken.
// - `ranked`, by many blocks: an entry goes where as many are larger as it has before it. Nothing is sorted: one block
//   that sorts takes five times as long as many that compare all entries with all.
#include "target.h"

HAKS_NUMBER(VALUES)  // of a row
HAKS_NUMBER(PARTS)   // of a row
HAKS_NUMBER(KEPT)    // of a part
HAKS_NUMBER(ROOM)    // candidates of a part, at least twice as many as are kept; a multiple of 32
HAKS_NUMBER(LONG)    // values of a part from which on it is read by groups
HAKS_NUMBER(GROUPS)  // room for maxima of a row
HAKS_NUMBER(DIRECT)  // whether all values are candidates

constexpr int kWide = 1024;    // threads of the wide kernels
constexpr int kNarrow = 256;   // threads of the other one
constexpr int kWarp = 32;
constexpr int kGroup = 8;      // values
constexpr int kTogether = 8;   // values of a thread that are read at once
constexpr int kSets = 8;       // of a thread
constexpr int kBits = 32;      // of a key
constexpr int kPivots = 3;

// The bits of float32 numbers as integers in the same order (-NaN, -infinity to infinity, NaN), and back.
DEVICE uint32_t ordered(uint32_t bits) { return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u); }
DEVICE uint32_t restored(uint32_t key) { return key ^ (key >> 31 ? 0x80000000u : 0xffffffffu); }

DEVICE uint64_t entry(uint32_t key, int place) { return uint64_t(key) << 32 | ~uint32_t(place); }

struct Part {
  const uint32_t* values;
  int start, length, number;  // the number counts parts of all rows

  DEVICE Part(const uint32_t* rows, const int* bounds) {
    const int row = block_x(), part = block_y();
    start = bounds[part], length = bounds[part + 1] - start, number = row * HAKS(PARTS) + part;
    values = rows + size_t(row) * HAKS(VALUES) + start;
  }
  DEVICE size_t groups() const { return size_t(block_x()) * HAKS(GROUPS) + start / kGroup + block_y(); }
};

DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Maxima, as keys. Eight threads read eight groups together; each is left with the maximum of one.
KERNEL(4) maxima(const uint32_t* rows, const int* bounds, uint32_t* out) {
  const Part part(rows, bounds);
  if (part.length < HAKS(LONG)) return;
  const int member = thread() % kGroup, team = (block_z() * kNarrow + thread()) / kGroup;
  const int first = team * kGroup * kGroup;
  if (block_z() * kNarrow * kGroup >= part.length) return;
  uint32_t keys[kGroup];
#pragma unroll
  for (int n = 0; n < kGroup; ++n) {
    const int place = first + n * kGroup + member;
    keys[n] = place < part.length ? ordered(part.values[place]) : 0;
  }
#pragma unroll
  for (int half = kGroup / 2; half; half /= 2) {
    const bool upper = member & half;
#pragma unroll
    for (int n = 0; n < half; ++n) {
      const uint32_t mine = upper ? keys[n + half] : keys[n], other = upper ? keys[n] : keys[n + half];
      keys[n] = larger(mine, uint32_t(bits_of(shuffle_xor(float_of(int(other)), half))));
    }
  }
  const int group = team * kGroup + member;
  if (group * kGroup < part.length) out[part.groups() + group] = keys[0];
}

// Calls f(bits, number of the value, here), kTogether values of a thread after each other, for all threads of a warp.
template <typename F>
DEVICE void visit(const uint32_t* values, int length, F f) {
  for (int first = 0; first < length; first += kWide * kTogether) {
    uint32_t bits[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      const int place = first + n * kWide + thread();
      bits[n] = place < length ? values[place] : 0;
    }
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (first + n * kWide < length) f(bits[n], first + n * kWide + thread(), first + n * kWide + thread() < length);
    }
  }
}

// A slot for each thread of a warp that asks for one: `count` is raised by their number.
DEVICE int slot_of(bool asks, int* count) {
  const uint32_t asking = votes(asks);
  if (!asking) return 0;
  const int lane = thread() % kWarp;
  const int base = lane == 0 ? shared_add(count, count_bits(asking)) : 0;
  return warp_largest(base) + count_bits(asking & ((1u << lane) - 1));
}

// Adds a block's numbers from 0 to `most` to a place; they are there after the next barrier.
DEVICE void add_up(int mine, int most, int* place) {
  int together = 0;
  for (int bit = 0; most >> bit; ++bit) together += count_bits(votes(mine >> bit & 1)) << bit;
  if (thread() % kWarp == 0) shared_add(place, together);
}

// As many entries as are kept are not below the bound that is returned, and hardly more. Keys of values or of maxima.
template <typename Key>
DEVICE uint32_t bound_of(const uint32_t* values, int length, int* counters, Key key) {
  uint32_t sets[kSets] = {};
  for (int first = thread(); first < length; first += kWide * kTogether) {
    uint32_t bits[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) bits[n] = first + n * kWide < length ? key(values[first + n * kWide]) : 0;
#pragma unroll
    for (int n = 0; n < kTogether; ++n) sets[n % kSets] = larger(sets[n % kSets], bits[n]);
  }
  uint32_t bound = 0;
  for (int bit = kBits - 1; bit >= 0; --bit) {
    const uint32_t next = bound | 1u << bit;
    int mine = 0;
#pragma unroll
    for (int n = 0; n < kSets; ++n) mine += sets[n] >= next;
    add_up(mine, kSets, counters + bit);
    block_barrier();
    const int reached = counters[bit];
    if (reached < HAKS(KEPT)) continue;
    bound = next;
    if (reached <= HAKS(KEPT) + HAKS(KEPT) / 16) break;
  }
  return bound;
}

// Groups, at most as many as there is room for, whose maximum passes. Their number: in `found`, which holds zero before.
template <typename Passes>
DEVICE void take_groups(const uint32_t* maxima, int num_groups, int* groups, int* found, Passes passes) {
  visit(maxima, num_groups, [&](uint32_t key, int group, bool here) {
    const bool is = here && passes(key);
    const int slot = slot_of(is, found);
    if (is && slot < HAKS(ROOM)) groups[slot] = group;
  });
  block_barrier();
}

// Calls f(bits, place, here) as `visit` does, for the values of groups.
template <typename F>
DEVICE void visit_groups(const Part& part, const int* groups, int num_groups, F f) {
  const int end = num_groups * kGroup;
  for (int first = 0; first < end; first += kWide * kTogether) {
    uint32_t bits[kTogether];
    int places[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      const int number = first + n * kWide + thread();
      places[n] = number < end ? groups[number / kGroup] * kGroup + number % kGroup : part.length;
      bits[n] = places[n] < part.length ? part.values[places[n]] : 0;
    }
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (first + n * kWide < end) f(bits[n], places[n], places[n] < part.length);
    }
  }
}

struct Least {
  uint32_t key;  // of the last one that is kept
  int above;     // keys above it: fewer than are kept
};

// The least of the keys that are kept, if it is not below `from`; else `from`. `each` calls a function as `visit` does,
// with keys, at most `most` times a thread.
template <typename Each>
DEVICE Least least_kept(uint32_t from, int most, int* counters, Each each) {
  // As many as are kept are not below `low`, fewer not below `high`. At first there is a look at what follows `from`,
  // since often very many equal it.
  uint64_t low = from, high = uint64_t(1) << kBits, step = 1;
  int above = 0;
  while (high - low > 1) {
    block_barrier();
    if (thread() < kPivots) counters[thread()] = 0;
    block_barrier();
    int mine[kPivots] = {};
    each([&](uint32_t key, int, bool here) {
#pragma unroll
      for (int n = 0; n < kPivots; ++n) mine[n] += here && key >= low + step * (n + 1);
    });
#pragma unroll
    for (int n = 0; n < kPivots; ++n) add_up(mine[n], most, counters + n);
    block_barrier();
    int passed = 0;
    while (passed < kPivots && counters[passed] >= HAKS(KEPT)) ++passed;
    low += step * passed;
    if (passed < kPivots) high = low + step, above = counters[passed];
    step = high - low < kPivots + 1 ? 1 : (high - low) / (kPivots + 1);
  }
  block_barrier();
  return {uint32_t(low), above};
}

// The entries of the first `wanted` values whose key is this one.
DEVICE void take_first(const Part& part, uint32_t key, int wanted, uint64_t* entries, int* of_warps) {
  for (int first = 0, taken = 0; first < part.length && taken < wanted; first += kWide * kGroup) {
    const int start = first + thread() * kGroup;
    uint32_t equal = 0;
#pragma unroll
    for (int n = 0; n < kGroup; ++n) {
      if (start + n < part.length && ordered(part.values[start + n]) == key) equal |= 1u << n;
    }
    const uint32_t earlier = (1u << thread() % kWarp) - 1;  // threads of the warp
    int before = taken, of_warp = 0;
    for (int bit = 0; kGroup >> bit; ++bit) {
      const uint32_t having = votes(count_bits(equal) >> bit & 1);
      before += count_bits(having & earlier) << bit, of_warp += count_bits(having) << bit;
    }
    block_barrier();
    if (thread() % kWarp == 0) of_warps[thread() / kWarp] = of_warp;
    block_barrier();
    for (int warp = 0; warp < kWide / kWarp; ++warp) {
      if (warp < thread() / kWarp) before += of_warps[warp];
      taken += of_warps[warp];
    }
    for (; equal && before < wanted; equal &= equal - 1) entries[before++] = entry(key, start + lowest_bit(equal));
  }
}

// Exactly those that are kept, where too many are not below a bound. `each` is the visit of all values in question.
template <typename Each>
DEVICE void take_exactly(const Part& part, uint32_t bound, int most, uint64_t* entries, int* counters, Each each) {
  const Least least = least_kept(bound, most, counters, each);
  if (thread() == 0) counters[0] = 0;
  block_barrier();
  each([&](uint32_t key, int place, bool here) {
    const bool is = here && key > least.key;
    const int slot = slot_of(is, counters);
    if (is) entries[slot] = entry(key, place);
  });
  take_first(part, least.key, HAKS(KEPT) - least.above, entries + least.above, counters + 1);
}

// Visits with keys in place of bits.
template <typename F>
DEVICE auto of_keys(F f) {
  return [f](uint32_t bits, int place, bool here) { f(ordered(bits), place, here); };
}

WIDE_KERNEL candidates(const uint32_t* rows, const int* bounds, const uint32_t* all_maxima, uint64_t* out, int* sums) {
  const Part part(rows, bounds);
  uint64_t* entries = out + size_t(part.number) * HAKS(ROOM);
  int* counters = reinterpret_cast<int*>(shared_memory());  // of rounds, of entries, of groups
  int* groups = counters + kBits + 2;
  int total = part.length;
  if (total <= HAKS(ROOM)) {
    for (int place = thread(); place < total; place += kWide) entries[place] = entry(ordered(part.values[place]), place);
  } else {
    if (thread() < kBits + 2) counters[thread()] = 0;
    block_barrier();
    int* found = counters + kBits;
    uint32_t bound;
    const auto take = [&](uint32_t key, int place, bool here) {
      const bool is = here && key >= bound;
      const int slot = slot_of(is, found);
      if (is && slot < HAKS(ROOM)) entries[slot] = entry(key, place);
    };
    const auto in_part = [&](auto f) { visit(part.values, part.length, of_keys(f)); };
    if (part.length < HAKS(LONG)) {
      bound = bound_of(part.values, part.length, counters, [](uint32_t bits) { return ordered(bits); });
      in_part(take);
      block_barrier();
      total = found[0];
      if (total > HAKS(ROOM)) {
        total = HAKS(KEPT);
        take_exactly(part, bound, part.length / kWide + 1, entries, counters, in_part);
      }
    } else {
      const uint32_t* maxima = all_maxima + part.groups();
      const int num_groups = (part.length + kGroup - 1) / kGroup;
      bound = bound_of(maxima, num_groups, counters, [](uint32_t key) { return key; });
      take_groups(maxima, num_groups, groups, found + 1, [&](uint32_t key) { return key >= bound; });
      int num_found = found[1];
      const auto in_groups = [&](auto f) { visit_groups(part, groups, num_found, of_keys(f)); };
      if (num_found <= HAKS(ROOM)) in_groups(take);
      block_barrier();
      total = found[0];
      if (num_found > HAKS(ROOM) || total > HAKS(ROOM)) {
        // Fewer groups than are kept have a maximum above the least that is kept of the maxima: no other value is
        // above it, and as many as are kept are not below it.
        const auto of_groups = [&](auto f) { visit(maxima, num_groups, f); };
        const Least least = least_kept(bound, num_groups / kWide + 1, counters, of_groups);
        if (thread() == 0) found[1] = 0;
        block_barrier();
        take_groups(maxima, num_groups, groups, found + 1, [&](uint32_t key) { return key > least.key; });
        num_found = found[1];
        total = HAKS(KEPT);
        take_exactly(part, least.key, num_found * kGroup / kWide + 1, entries, counters, in_groups);
      }
    }
  }
  if (thread() == 0) sums[part.number] = total;
}

// A block ranks as many entries as a warp has threads: each warp compares them with its share of all entries.
WIDE_KERNEL ranked(const uint32_t* rows, const int* bounds, const uint64_t* candidates, const int* sums, uint32_t* top,
                   int* index) {
  const Part part(rows, bounds);
  const int total = HAKS(DIRECT) ? part.length : sums[part.number], kept = HAKS(KEPT);
  const int slot = block_z() * kWarp + thread() % kWarp;
  if (block_z() * kWarp >= (total > kept ? total : kept)) return;
  uint64_t* entries = reinterpret_cast<uint64_t*>(shared_memory());
  int* before = reinterpret_cast<int*>(entries + HAKS(ROOM));
  for (int n = thread(); n < total; n += kWide) {
    entries[n] = HAKS(DIRECT) ? entry(ordered(part.values[n]), n) : candidates[size_t(part.number) * HAKS(ROOM) + n];
  }
  if (thread() < kWarp) before[thread()] = 0;
  block_barrier();
  const int share = (total + kWide / kWarp - 1) / (kWide / kWarp), from = thread() / kWarp * share;
  const int to = from + share < total ? from + share : total;
  const uint64_t mine = slot < total ? entries[slot] : 0;
  int larger_ones = 0;
#pragma unroll 8
  for (int n = from; n < to; ++n) larger_ones += entries[n] > mine;
  if (slot < total) shared_add(before + thread() % kWarp, larger_ones);
  block_barrier();
  if (thread() >= kWarp) return;
  top += size_t(part.number) * kept;
  index += size_t(part.number) * kept;
  if (slot < total) {
    const int rank = before[thread()];
    if (rank < kept) top[rank] = restored(uint32_t(mine >> 32)), index[rank] = part.start + int(~uint32_t(mine));
  } else if (slot < kept) {
    top[slot] = 0xff800000u, index[slot] = 0;  // -infinity
  }
}
