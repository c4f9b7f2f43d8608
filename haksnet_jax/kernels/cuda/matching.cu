// Anchors and objects, axis-parallel boxes both: the best object of each anchor, the best overlap of each object, and the
// anchors that objects claim for having it.
//
// A warp has 128 anchors, neighbours in the grid, and compares them with those objects alone that meet the box around
// them: with all others their overlap is 0. Both kernels compute an overlap in the same arithmetic, so equal ones are
// equal. Every result is the same in every run.
#include "target.h"

HAKS_NUMBER(ANCHORS)
HAKS_NUMBER(ANCHOR_LISTS)  // 1: all problems have the same anchors
HAKS_NUMBER(OBJECTS)
HAKS_NUMBER(POSITIVE)  // bits of the overlap from which an anchor is positive
HAKS_NUMBER(NEGATIVE)  // below which it is negative
HAKS_NUMBER(CLAIMED)   // from which an object claims its best anchors

constexpr int kThreads = 256, kEach = 4;  // anchors of a thread

struct alignas(16) Sides {
  float x1, y1, x2, y2;
};

DEVICE float area(const Sides& box) {
  return product(fmaxf(sum(box.x2, -box.x1), 0.0f), fmaxf(sum(box.y2, -box.y1), 0.0f));
}

DEVICE float overlap(const Sides& a, float area_a, const Sides& b, float area_b) {
  const float width = sum(fminf(a.x2, b.x2), -fmaxf(a.x1, b.x1)), height = sum(fminf(a.y2, b.y2), -fmaxf(a.y1, b.y1));
  const float shared = product(fmaxf(width, 0.0f), fmaxf(height, 0.0f));
  return quotient(shared, fmaxf(sum(sum(area_a, area_b), -shared), 1e-6f));
}

DEVICE bool meet(const Sides& a, const Sides& b) { return a.x2 > b.x1 && b.x2 > a.x1 && a.y2 > b.y1 && b.y2 > a.y1; }

struct Anchors {  // of a thread
  int first;      // anchor n is first + 32 n
  bool here[kEach];
  Sides sides[kEach];
  float areas[kEach];

  DEVICE Anchors(const Sides* anchors, int problem) {
    first = block_y() * kThreads * kEach + (thread() >> 5) * 32 * kEach + (thread() & 31);
    const Sides* list = anchors + size_t(HAKS(ANCHOR_LISTS) == 1 ? 0 : problem) * HAKS(ANCHORS);
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      here[n] = at(n) < HAKS(ANCHORS);
      sides[n] = list[here[n] ? at(n) : 0];
      areas[n] = area(sides[n]);
    }
  }

  DEVICE int at(int n) const { return first + 32 * n; }

  // The box around the warp's anchors that are chosen; of none, one that meets nothing.
  DEVICE Sides around(const bool (&chosen)[kEach]) const {
    Sides box = {INFINITY, INFINITY, -INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      if (chosen[n]) {
        box.x1 = fminf(box.x1, sides[n].x1), box.y1 = fminf(box.y1, sides[n].y1);
        box.x2 = fmaxf(box.x2, sides[n].x2), box.y2 = fmaxf(box.y2, sides[n].y2);
      }
    }
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) {
      box.x1 = fminf(box.x1, shuffle_xor(box.x1, distance)), box.y1 = fminf(box.y1, shuffle_xor(box.y1, distance));
      box.x2 = fmaxf(box.x2, shuffle_xor(box.x2, distance)), box.y2 = fmaxf(box.y2, shuffle_xor(box.y2, distance));
    }
    return box;
  }
};

// best: -1 of those that are no candidates, and of all where no object is valid. best_object: -1 of the same.
// of_objects [problem, block, object]: the largest overlap with a candidate of the block, 0 without candidates.
KERNEL(4)
best_overlaps(const Sides* anchors, const uint8_t* candidates, const Sides* objects, const uint8_t* valid, float* best,
              int* best_object, float* of_objects) {
  const int problem = block_x(), num_objects = HAKS(OBJECTS), lane = thread() & 31;
  candidates += size_t(problem) * HAKS(ANCHORS);
  best += size_t(problem) * HAKS(ANCHORS);
  best_object += size_t(problem) * HAKS(ANCHORS);
  objects += size_t(problem) * num_objects;
  valid += size_t(problem) * num_objects;
  of_objects += (size_t(problem) * grid_y() + block_y()) * num_objects;
  int* largest = reinterpret_cast<int*>(shared_memory());  // bits of numbers that are not negative: in the same order
  for (int object = thread(); object < num_objects; object += kThreads) largest[object] = 0;
  block_barrier();

  const Anchors mine(anchors, problem);
  bool chosen[kEach];
  float overlaps[kEach];
  int which[kEach];
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    chosen[n] = mine.here[n] && candidates[mine.at(n)];
    overlaps[n] = 0.0f, which[n] = -1;
  }
  const Sides box = mine.around(chosen);
  int first_valid = -1;
  for (int first = 0; first < num_objects; first += 32) {
    const int object = first + lane;
    const bool counts = object < num_objects && valid[object];
    const uint32_t all = votes(counts);
    if (first_valid < 0 && all) first_valid = first + lowest_bit(all);
    for (uint32_t hits = votes(counts && meet(objects[object], box)); hits; hits &= hits - 1) {
      const int hit = first + lowest_bit(hits);
      const Sides sides = objects[hit];
      const float object_area = area(sides);
      float most = 0.0f;
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        const float value = chosen[n] ? overlap(mine.sides[n], mine.areas[n], sides, object_area) : 0.0f;
        if (value > overlaps[n]) overlaps[n] = value, which[n] = hit;  // the first of equal ones stays
        most = fmaxf(most, value);
      }
      const int largest_bits = warp_largest(bits_of(most));
      if (lane == 0) shared_largest(largest + hit, largest_bits);
    }
  }
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    if (!mine.here[n]) continue;
    const bool has = chosen[n] && first_valid >= 0;
    best[mine.at(n)] = has ? overlaps[n] : -1.0f;
    best_object[mine.at(n)] = !has ? -1 : which[n] < 0 ? first_valid : which[n];
  }
  block_barrier();
  for (int object = thread(); object < num_objects; object += kThreads) of_objects[object] = float_of(largest[object]);
}

// claims [problem, object]: the overlap that an object's best candidates have, infinite where it claims none.
KERNEL(4)
assign(const Sides* anchors, const uint8_t* candidates, const Sides* objects, const float* claims, const float* best,
       const int* best_object, int* assigned, float* iou, uint8_t* positive, uint8_t* negative) {
  const int problem = block_x(), num_objects = HAKS(OBJECTS), lane = thread() & 31;
  const size_t start = size_t(problem) * HAKS(ANCHORS);
  objects += size_t(problem) * num_objects;
  claims += size_t(problem) * num_objects;
  const float from = fmaxf(float_of(HAKS(CLAIMED)), 0.0f);

  const Anchors mine(anchors, problem);
  bool chosen[kEach], able[kEach], any = false;
  float overlaps[kEach];
  int claimed_by[kEach];
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    chosen[n] = mine.here[n] && candidates[start + mine.at(n)];
    overlaps[n] = mine.here[n] ? best[start + mine.at(n)] : -1.0f;
    able[n] = chosen[n] && overlaps[n] >= from;  // no object has a better overlap with it, so others claim it no more
    any |= able[n];
    claimed_by[n] = -1;
  }
  if (votes(any)) {
    const Sides box = mine.around(able);
    for (int first = 0; first < num_objects; first += 32) {
      const int object = first + lane;
      const float claim = object < num_objects ? claims[object] : INFINITY;
      // An object that meets no candidate at all has the same overlap with all of them: 0.
      const bool near = claim < INFINITY && (claim <= 0.0f || meet(objects[object], box));
      for (uint32_t hits = votes(near); hits; hits &= hits - 1) {
        const int hit = first + lowest_bit(hits);
        const Sides sides = objects[hit];
        const float object_area = area(sides), claimed = claims[hit];
#pragma unroll
        for (int n = 0; n < kEach; ++n) {
          if (able[n] && overlap(mine.sides[n], mine.areas[n], sides, object_area) == claimed) claimed_by[n] = hit;
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    if (!mine.here[n]) continue;
    const size_t place = start + mine.at(n);
    const bool claimed = claimed_by[n] >= 0;
    const int object = claimed ? claimed_by[n] : best_object[place];
    assigned[place] = object < 0 ? 0 : object;
    iou[place] = fmaxf(overlaps[n], 0.0f);
    positive[place] = claimed || overlaps[n] >= float_of(HAKS(POSITIVE));
    negative[place] = chosen[n] && overlaps[n] < float_of(HAKS(NEGATIVE)) && !claimed;
  }
}
