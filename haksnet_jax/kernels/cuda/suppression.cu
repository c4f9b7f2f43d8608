// Non-maximum suppression of boxes sorted by score: who would suppress whom, axis-parallel boxes or oriented ones, and
// who is left.
//
// Both of up to some thousand boxes of several problems, in whose rows those that count come first. Words of who
// suppresses whom lie as [problem, column / 32, row]: bit n of word c says that box 32 c + n, if it is kept, suppresses
// the box of that row, which comes after it.
#include "target.h"

HAKS_NUMBER(BOXES)      // of a problem
HAKS_NUMBER(THRESHOLD)  // bits of the IoU above which a box is suppressed
HAKS_NUMBER(MOST)       // boxes that are kept

constexpr int kRows = 256, kColumns = 128;  // of a block
constexpr int kWide = 1024;                 // threads of a block of greedy

struct alignas(16) Sides {
  float x1, y1, x2, y2;
};

// Of a box whose sides are exchanged at least 0: nothing overlaps it anyway.
DEVICE float area(const Sides& box) { return fmaxf(product(sum(box.x2, -box.x1), sum(box.y2, -box.y1)), 0.0f); }

DEVICE float shared_area(const Sides& a, const Sides& b) {  // not above 0 where they have nothing in common
  const float width = sum(fminf(a.x2, b.x2), -fmaxf(a.x1, b.x1)), height = sum(fminf(a.y2, b.y2), -fmaxf(a.y1, b.y1));
  return product(fmaxf(width, 0.0f), height);
}

template <bool kGroups>
DEVICE void horizontal(const float* boxes, const int* groups, const int* counts, uint32_t* words) {
  const int n = HAKS(BOXES), problem = block_x(), first_row = block_y() * kRows, first_column = block_z() * kColumns;
  const int rows = counts[problem], row = first_row + thread();
  if (first_row >= rows || first_column >= first_row + kRows) return;
  const float threshold = float_of(HAKS(THRESHOLD));
  const float certain = threshold * (1 + 0x1p-20f), possible = threshold * (1 - 0x1p-20f);
  boxes += size_t(problem) * 4 * n;
  if (kGroups) groups += size_t(problem) * n;
  words += size_t(problem) * ((n + 31) / 32) * n;
  const auto sides = [&](int box) { return Sides{boxes[box], boxes[n + box], boxes[2 * n + box], boxes[3 * n + box]}; };

  Sides* columns = reinterpret_cast<Sides*>(shared_memory());
  float* areas = reinterpret_cast<float*>(columns + kColumns);
  int* column_groups = reinterpret_cast<int*>(areas + kColumns);
  if (thread() < kColumns) {
    const int column = first_column + thread() < n ? first_column + thread() : n - 1;
    columns[thread()] = sides(column);
    areas[thread()] = area(columns[thread()]);
    if (kGroups) column_groups[thread()] = groups[column];
  }
  block_barrier();
  if (row >= rows) return;

  const Sides mine = sides(row);
  const float my_area = area(mine);
  const int my_group = kGroups ? groups[row] : 0;
  for (int first = 0; first < kColumns && first_column + first <= row; first += 32) {
    // shared / both > threshold without a division, but for quotients so near to it that rounding decides.
    uint32_t word = 0, perhaps = 0;
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      const float shared = shared_area(columns[first + k], mine);
      const float both = sum(sum(areas[first + k], my_area), -shared);
      const bool same = !kGroups || column_groups[first + k] == my_group;
      if (same && shared > both * certain + 1e-30f) word |= 1u << k;
      if (same && shared >= both * possible - 1e-30f) perhaps |= 1u << k;
    }
    const int diagonal = row - first_column - first;
    const uint32_t before = diagonal < 32 ? (1u << diagonal) - 1 : ~0u;  // only boxes before this one suppress it
    for (uint32_t unsure = perhaps & ~word & before; unsure; unsure &= unsure - 1) {
      const int k = lowest_bit(unsure);
      const float shared = shared_area(columns[first + k], mine);
      const float both = sum(sum(areas[first + k], my_area), -shared);
      word |= uint32_t(both > 0 && quotient(shared, both) > threshold) << k;
    }
    words[size_t(first_column + first) / 32 * n + row] = word & before;
  }
}

KERNEL(4)
horizontal_words(const float* boxes, const int* counts, uint32_t* words) {
  horizontal<false>(boxes, nullptr, counts, words);
}

KERNEL(4)
horizontal_words_of_groups(const float* boxes, const int* counts, const int* groups, uint32_t* words) {
  horizontal<true>(boxes, groups, counts, words);
}

// Oriented boxes: geometry/rotated_iou.py says why the overlap is computed so; names are the same here.
struct Frame {  // of the box that would suppress
  float cx, cy, w, h, angle, cos_high, cos_low, sin_high, sin_low;
};
constexpr int kFrame = 9;  // numbers

DEVICE float upper_bits(float x) { return float_of(bits_of(x) & -(1 << 12)); }
DEVICE float clamped(float x, float most) { return fminf(fmaxf(x, -most), most); }
DEVICE float half_diagonal(float w, float h) { return 0.5f * sqrtf(w * w + h * h); }

struct Exact {  // a difference and what rounding took from it
  float value, error;
};

DEVICE Exact difference(float x, float y) {
  const float value = sum(x, -y), z = sum(value, -x);
  return {value, sum(sum(x, -sum(value, -z)), -sum(y, z))};
}

// Twice the integral of the clamped line from (x0, y0) to (x1, y1) between `left` and `right`, x0 and x1 clamped.
DEVICE float edge(float x0, float y0, float x1, float y1, float left, float right, float slope, float inverse, float b) {
  const float y_left = y0 + (left - x0) * slope, y_right = y1 + (right - x1) * slope;
  const float c_left = clamped(y_left, b), c_right = clamped(y_right, b);
  const float overshoots = (y_left - c_left) + (y_right - c_right);
  return (right - left) * (c_left + c_right) + (c_right - c_left) * overshoots * inverse;
}

DEVICE float rotated_iou(const Frame& one, float cx, float cy, float w, float h, float angle) {
  const Exact dx = difference(cx, one.cx), dy = difference(cy, one.cy);
  const float dx_high = upper_bits(dx.value), dy_high = upper_bits(dy.value);
  const float dx_low = sum(sum(dx.value, -dx_high), dx.error), dy_low = sum(sum(dy.value, -dy_high), dy.error);
  const float cos1 = one.cos_high + one.cos_low, sin1 = one.sin_high + one.sin_low;
  const float x = (dx_high * one.cos_high + dy_high * one.sin_high) +
                  (dx_high * one.cos_low + dy_high * one.sin_low + dx_low * cos1 + dy_low * sin1);
  const float y = (dy_high * one.cos_high - dx_high * one.sin_high) +
                  (dy_high * one.cos_low - dx_high * one.sin_low + dy_low * cos1 - dx_low * sin1);

  const Exact angles = difference(angle, one.angle);
  const float quarters = rintf(angles.value * 0x1.45f306p-1f);  // 2 / pi
  // pi / 2 in three numbers of 12 bits, whose products with a count are exact.
  float turn = sum(angles.value, -product(quarters, 0x1.922p+0f));
  turn = sum(turn, product(quarters, 0x1.2aep-18f));
  turn = sum(turn, product(quarters, 0x1.deap-31f));
  turn = sum(turn, angles.error);
  const bool exchanged = int(quarters) & 1;
  const float half_w = 0.5f * (exchanged ? h : w), half_h = 0.5f * (exchanged ? w : h);
  const float square = turn * turn;
  const float sin =
      turn * (1 + square * (-1 / 6.0f + square * (1 / 120.0f + square * (-1 / 5040.0f + square * (1 / 362880.0f)))));
  const float cos = 1 + square * (-1 / 2.0f + square * (1 / 24.0f + square * (-1 / 720.0f + square * (1 / 40320.0f))));
  const float tan = quotient(sin, cos);
  const float cot = fabsf(sin) < 1e-9f ? 0.0f : quotient(1.0f, tan);

  const float ux = half_w * cos, uy = half_w * sin, vx = -half_h * sin, vy = half_h * cos;
  const float x_m = x - ux, x_p = x + ux, y_m = y - uy, y_p = y + uy;
  const float x_mm = x_m - vx, x_mp = x_m + vx, x_pm = x_p - vx, x_pp = x_p + vx;
  const float y_mm = y_m - vy, y_mp = y_m + vy, y_pm = y_p - vy, y_pp = y_p + vy;
  const float a = 0.5f * one.w, b = 0.5f * one.h;
  const float c_mm = clamped(x_mm, a), c_mp = clamped(x_mp, a), c_pm = clamped(x_pm, a), c_pp = clamped(x_pp, a);
  const float twice =
      edge(x_mp, y_mp, x_pp, y_pp, c_mp, c_pp, tan, cot, b) + edge(x_pm, y_pm, x_mm, y_mm, c_pm, c_mm, tan, cot, b) +
      edge(x_pp, y_pp, x_pm, y_pm, c_pp, c_pm, -cot, -tan, b) + edge(x_mm, y_mm, x_mp, y_mp, c_mm, c_mp, -cot, -tan, b);
  const float area1 = one.w * one.h, area2 = w * h;
  const float shared = fminf(fmaxf(0.5f * twice, 0.0f), fminf(area1, area2)), both = area1 + area2 - shared;
  return both > 0 ? quotient(shared, both) : 0.0f;
}

// As `horizontal`. Circles around boxes tell most pairs apart; the others are compared one after another.
template <bool kGroups>
DEVICE void rotated(const float* frames, const int* groups, const int* counts, uint32_t* words) {
  const int n = HAKS(BOXES), problem = block_x(), first_row = block_y() * kRows, first_column = block_z() * kColumns;
  const int rows = counts[problem], row = first_row + thread();
  if (first_row >= rows || first_column >= first_row + kRows) return;
  const float threshold = float_of(HAKS(THRESHOLD));
  frames += size_t(problem) * kFrame * n;
  if (kGroups) groups += size_t(problem) * n;
  words += size_t(problem) * ((n + 31) / 32) * n;

  float* columns = reinterpret_cast<float*>(shared_memory());  // [number of a frame, column], then as much as radii
  float* radii = columns + kFrame * kColumns;
  int* column_groups = reinterpret_cast<int*>(radii + kColumns);
  if (thread() < kColumns) {
    const int column = first_column + thread() < n ? first_column + thread() : n - 1;
#pragma unroll
    for (int k = 0; k < kFrame; ++k) columns[k * kColumns + thread()] = frames[size_t(k) * n + column];
    radii[thread()] = half_diagonal(columns[2 * kColumns + thread()], columns[3 * kColumns + thread()]);
    if (kGroups) column_groups[thread()] = groups[column];
  }
  block_barrier();
  if (row >= rows) return;

  const auto mine = [&](int k) { return frames[size_t(k) * n + row]; };
  const float cx = mine(0), cy = mine(1), w = mine(2), h = mine(3), angle = mine(4);
  const float radius = half_diagonal(w, h);
  const int my_group = kGroups ? groups[row] : 0;
  for (int first = 0; first < kColumns && first_column + first <= row; first += 32) {
    uint32_t word = 0, near = 0;
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      const float dx = columns[first + k] - cx, dy = columns[kColumns + first + k] - cy;
      const float reach = radii[first + k] + radius;
      const bool same = !kGroups || column_groups[first + k] == my_group;
      // Rounding counts for less than the factor. What is too large to be squared is compared.
      if (same && !(dx * dx + dy * dy > reach * reach * 1.0001f)) near |= 1u << k;
    }
    const int diagonal = row - first_column - first;
    near &= diagonal < 32 ? (1u << diagonal) - 1 : ~0u;  // only boxes before this one suppress it
    for (; near; near &= near - 1) {
      const int k = lowest_bit(near), at = first + k;
      const auto of = [&](int number) { return columns[number * kColumns + at]; };
      const Frame frame = {of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8)};
      word |= uint32_t(rotated_iou(frame, cx, cy, w, h, angle) > threshold) << k;
    }
    words[size_t(first_column + first) / 32 * n + row] = word;
  }
}

KERNEL(4)
rotated_words(const float* frames, const int* counts, uint32_t* words) {
  rotated<false>(frames, nullptr, counts, words);
}

KERNEL(4)
rotated_words_of_groups(const float* frames, const int* counts, const int* groups, uint32_t* words) {
  rotated<true>(frames, groups, counts, words);
}

// A block a problem. 32 boxes at a time are settled by the warp that holds them, and all boxes behind look at the word
// of those that were kept. A thread holds kTogether boxes, and reads kAhead of their words before they are needed.
template <int kTogether, int kAhead>
DEVICE void settle(const uint32_t* words, const int* order, const int* counts, int* index, int* totals) {
  const int n = HAKS(BOXES), most = HAKS(MOST), problem = block_x();
  const int rows = counts[problem], chunks = (rows + 31) / 32, lane = thread() & 31, warp = thread() >> 5;
  words += size_t(problem) * ((n + 31) / 32) * n;
  order += size_t(problem) * n;
  index += size_t(problem) * most;
  uint32_t* kept_words = shared_memory();  // of this chunk and the one before
  uint32_t* lefts = kept_words + 2;        // boxes of each warp

  uint32_t out = 0;  // bit r: box thread() + kWide r is suppressed, or none that counts
#pragma unroll
  for (int r = 0; r < kTogether; ++r) out |= uint32_t(thread() + r * kWide >= rows) << r;
  uint32_t ahead[kAhead][kTogether];
  const auto read = [&](int first) {
#pragma unroll
    for (int q = 0; q < kAhead; ++q)
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
        const int row = thread() + r * kWide, chunk = first + q;
        ahead[q][r] = row < rows && chunk <= row >> 5 ? words[size_t(chunk) * n + row] : 0;
      }
  };

  int total = 0;
  read(0);
  for (int first = 0; first < chunks && total < most; first += kAhead) {
    uint32_t now[kAhead][kTogether];
#pragma unroll
    for (int q = 0; q < kAhead; ++q)
#pragma unroll
      for (int r = 0; r < kTogether; ++r) now[q][r] = ahead[q][r];
    read(first + kAhead);
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const int chunk = first + q;
      if (chunk < chunks && total < most) {  // of all threads alike
        if (warp == (chunk & 31)) {
          const bool alive = !(out >> (chunk >> 5) & 1);
          uint32_t before_me = 0;  // (a mask, not a condition, which would become an index and put the words in memory)
#pragma unroll
          for (int r = 0; r < kTogether; ++r) before_me |= now[q][r] & -uint32_t(chunk >> 5 == r);
          // Each pass settles those whose suppressors are settled, the first box at once.
          uint32_t kept = votes(alive), last;
          do {
            last = kept;
            kept = votes(alive && !(before_me & kept));
          } while (kept != last);
          const int place = total + count_bits(kept & ((1u << lane) - 1));
          const bool mine = (kept >> lane & 1) && place < most;
          kept = votes(mine);
          if (mine) index[place] = order[chunk * 32 + lane];
          if (lane == 0) kept_words[chunk & 1] = kept;
        }
        block_barrier();
        const uint32_t kept = kept_words[chunk & 1];
        total += count_bits(kept);
#pragma unroll
        for (int r = 0; r < kTogether; ++r) out |= uint32_t((now[q][r] & kept) != 0) << r;
      }
    }
  }

  for (int place = total + thread(); place < most; place += kWide) index[place] = 0;
  int left = 0;
#pragma unroll
  for (int r = 0; r < kTogether; ++r) left += count_bits(votes(!(out >> r & 1)));
  if (lane == 0) lefts[warp] = left;
  block_barrier();
  if (thread() == 0) {
    left = 0;
    for (int w = 0; w < kWide / 32; ++w) left += lefts[w];
    totals[2 * problem] = total;
    totals[2 * problem + 1] = left - total;  // kept out by the limit alone
  }
}

WIDE_KERNEL greedy_2(const uint32_t* words, const int* order, const int* counts, int* index, int* totals) {
  settle<2, 8>(words, order, counts, index, totals);
}

WIDE_KERNEL greedy_4(const uint32_t* words, const int* order, const int* counts, int* index, int* totals) {
  settle<4, 4>(words, order, counts, index, totals);
}

WIDE_KERNEL greedy_8(const uint32_t* words, const int* order, const int* counts, int* index, int* totals) {
  settle<8, 2>(words, order, counts, index, totals);
}
