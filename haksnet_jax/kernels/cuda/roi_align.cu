// Rotated RoIAlign over up to four pyramid levels, 2 x 2 samples a bin, and its gradient to the levels.
//
// Both kernels compute a sample's place and weights from its box with the same operations, each rounded by itself, once
// for all channels. Sums are float32, in an order that no scheduling changes, and rounded once. A warp has 256
// channels, eight a thread.
#include "hopper.h"  // (copies to shared memory, which every GPU from Ampere on has)

HAKS_NUMBER(BOXES)  // of an image
HAKS_NUMBER(BIN_ROWS)
HAKS_NUMBER(BIN_COLUMNS)
HAKS_NUMBER(BINS_INVERSE)  // 2^32 / (rows * columns), rounded up; 0: of one bin
HAKS_NUMBER(COLUMNS_INVERSE)
HAKS_NUMBER(ROW_STEP)  // bits of a quarter of a bin, in heights of a box
HAKS_NUMBER(COLUMN_STEP)
HAKS_NUMBER(HEIGHT_A)  // of the levels, 0 where there is none
HAKS_NUMBER(HEIGHT_B)
HAKS_NUMBER(HEIGHT_C)
HAKS_NUMBER(HEIGHT_D)
HAKS_NUMBER(WIDTH_A)
HAKS_NUMBER(WIDTH_B)
HAKS_NUMBER(WIDTH_C)
HAKS_NUMBER(WIDTH_D)

constexpr int kLevels = 4, kEach = 8;  // channels of a thread
constexpr int kSlice = 32 * kEach;     // channels of a warp

struct alignas(16) Frame {  // a box in the units of its level
  float x, y, width, height, cos, sin;
  float level;  // -1: gives zeros
  float unused;
};

struct Size {
  int height, width;
};

DEVICE Size size_of(int level) {
  return level == 0   ? Size{HAKS(HEIGHT_A), HAKS(WIDTH_A)}
         : level == 1 ? Size{HAKS(HEIGHT_B), HAKS(WIDTH_B)}
         : level == 2 ? Size{HAKS(HEIGHT_C), HAKS(WIDTH_C)}
                      : Size{HAKS(HEIGHT_D), HAKS(WIDTH_D)};
}

DEVICE int quotient(int number, int inverse) { return inverse ? int(high_product(number, inverse)) : number; }

struct Sample {  // the four features around it
  int y_low, y_high, x_low, x_high;
  float y_share, x_share;  // of the high ones
  bool inside;

  DEVICE float weight(int neighbour) const {
    const float row = neighbour & 2 ? y_share : sum(1.0f, -y_share);
    const float column = neighbour & 1 ? x_share : sum(1.0f, -x_share);
    return product(product(row, column), 0.25f);
  }
  DEVICE int y(int neighbour) const { return neighbour & 2 ? y_high : y_low; }
  DEVICE int x(int neighbour) const { return neighbour & 1 ? x_high : x_low; }
};

// From the box's middle, in units of its side.
DEVICE float sample_offset(int bin, int sample, int bins, int step) {
  return product(float(2 * (2 * bin + sample) + 1 - 2 * bins), float_of(step));
}

DEVICE float clipped(float position, int size) { return fminf(fmaxf(position, 0.0f), float(size - 1)); }

DEVICE Sample sample_of(const Frame& box, Size size, int bin, int which) {
  const int row = quotient(bin, HAKS(COLUMNS_INVERSE)), column = bin - row * HAKS(BIN_COLUMNS);
  const float down = product(sample_offset(row, which >> 1, HAKS(BIN_ROWS), HAKS(ROW_STEP)), box.height);
  const float right = product(sample_offset(column, which & 1, HAKS(BIN_COLUMNS), HAKS(COLUMN_STEP)), box.width);
  const float x = sum(sum(product(right, box.cos), -product(down, box.sin)), box.x);
  const float y = sum(sum(product(right, box.sin), product(down, box.cos)), box.y);
  Sample sample;
  sample.inside = box.level >= 0 && y >= -1 && y <= float(size.height) && x >= -1 && x <= float(size.width);
  const float y_inside = clipped(sample.inside ? y : 0.0f, size.height);
  const float x_inside = clipped(sample.inside ? x : 0.0f, size.width);
  sample.y_low = int(y_inside), sample.x_low = int(x_inside);
  sample.y_high = sample.y_low + 1 < size.height ? sample.y_low + 1 : sample.y_low;
  sample.x_high = sample.x_low + 1 < size.width ? sample.x_low + 1 : sample.x_low;
  sample.y_share = sum(y_inside, -float(sample.y_low)), sample.x_share = sum(x_inside, -float(sample.x_low));
  return sample;
}

// Eight channels of a row.
template <typename T>
struct Numbers;

template <>
struct Numbers<uint16_t> {  // in bfloat16
  Vector vector;

  DEVICE static Numbers load(const uint16_t* place, bool here) { return {load_vector(place, here)}; }
  DEVICE static Numbers rounded(const float (&sums)[kEach]) {
    Numbers numbers;
#pragma unroll
    for (int i = 0; i < 4; ++i) numbers.vector.word[i] = rounded_pair(sums[2 * i], sums[2 * i + 1]);
    return numbers;
  }
  DEVICE void store(uint16_t* place) const { store_vector(place, vector); }
  DEVICE void request(const uint16_t* place) {  // to here, in shared memory
    request_copy(reinterpret_cast<uint8_t*>(this), place, true);
  }
  DEVICE void add_to(float (&sums)[kEach], float weight) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[2 * i] += weight * low_number(vector.word[i]);
      sums[2 * i + 1] += weight * high_number(vector.word[i]);
    }
  }
};

template <>
struct Numbers<float> {
  Vector halves[2];

  DEVICE static Numbers load(const float* place, bool here) {
    return {{load_vector(reinterpret_cast<const uint16_t*>(place), here),
             load_vector(reinterpret_cast<const uint16_t*>(place + 4), here)}};
  }
  DEVICE static Numbers rounded(const float (&sums)[kEach]) {
    Numbers numbers;
#pragma unroll
    for (int i = 0; i < kEach; ++i) numbers.halves[i / 4].word[i % 4] = bits_of(sums[i]);
    return numbers;
  }
  DEVICE void store(float* place) const {
    store_vector(reinterpret_cast<uint16_t*>(place), halves[0]);
    store_vector(reinterpret_cast<uint16_t*>(place + 4), halves[1]);
  }
  DEVICE void request(const float* place) {
    request_copy(reinterpret_cast<uint8_t*>(this), reinterpret_cast<const uint16_t*>(place), true);
    request_copy(reinterpret_cast<uint8_t*>(this) + 16, reinterpret_cast<const uint16_t*>(place + 4), true);
  }
  DEVICE void add_to(float (&sums)[kEach], float weight) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) sums[i] += weight * float_of(halves[i / 4].word[i % 4]);
  }
};

constexpr int kBins = 8;      // of a warp: a thread computes one sample
constexpr int kTerms = 16;    // of a bin: its samples' neighbours
constexpr int kTogether = 8;  // of them, whose rows are asked for before the first is needed

struct alignas(8) Term {
  uint32_t place;  // in the image's map, in bytes
  float weight;
};

// Sums of a bin; kInside: of one whose samples all lie inside. What others have the weight 0 for is not read.
template <typename T, bool kInside>
DEVICE Numbers<T> sum_of_bin(const uint8_t* map, const Term* terms) {
  float sums[kEach] = {};
#pragma unroll
  for (int start = 0; start < kTerms; start += kTogether) {
    Numbers<T> rows[kTogether];
    float weights[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const Term term = terms[start + k];
      weights[k] = term.weight;
      rows[k] = Numbers<T>::load(reinterpret_cast<const T*>(map + term.place), kInside || term.weight != 0);
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) rows[k].add_to(sums, weights[k]);
  }
  return Numbers<T>::rounded(sums);
}

template <typename T>
DEVICE void pool(const Frame* frames, const T* a, const T* b, const T* c, const T* d, T* pooled) {
  const int bins = HAKS(BIN_ROWS) * HAKS(BIN_COLUMNS), all = HAKS(BOXES) * bins, channels = HAKS(CHANNELS);
  const int image = block_z();
  const int warp = thread() >> 5, lane = thread() & 31, channel = block_y() * kSlice + lane * kEach;
  const int first = (block_x() * 8 + warp) * kBins;
  Term* terms = reinterpret_cast<Term*>(shared_memory()) + warp * kBins * kTerms;
  const T** maps = reinterpret_cast<const T**>(shared_memory() + 8 * kBins * kTerms * 2) + warp * kBins;

  const int mine = lane >> 2, which = lane & 3;
  bool inside = false;
  if (first + mine < all) {
    const int box = quotient(first + mine, HAKS(BINS_INVERSE));
    const Frame frame = frames[size_t(image) * HAKS(BOXES) + box];
    const int level = frame.level < 0 ? 0 : int(frame.level);
    const Size size = size_of(level);
    const Sample sample = sample_of(frame, size, first + mine - box * bins, which);
    inside = sample.inside;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t place = uint32_t(sample.y(n) * size.width + sample.x(n)) * (channels * uint32_t(sizeof(T)));
      terms[mine * kTerms + n * 4 + which] = {place, inside ? sample.weight(n) : 0.0f};
    }
    const T* map = level == 0 ? a : level == 1 ? b : level == 2 ? c : d;
    if (which == 0) maps[mine] = map + size_t(image) * size.height * size.width * channels;
  }
  const uint32_t insides = votes(inside);
  warp_barrier();
  pooled += (size_t(image) * all + first) * channels + channel;
  const int read = channel < channels ? channel : 0;
  for (int bin = 0; bin < kBins && first + bin < all; ++bin) {
    const uint8_t* map = reinterpret_cast<const uint8_t*>(maps[bin] + read);
    const bool whole = (insides >> bin * 4 & 15) == 15;
    const Term* mine = terms + bin * kTerms;
    const Numbers<T> numbers = whole ? sum_of_bin<T, true>(map, mine) : sum_of_bin<T, false>(map, mine);
    if (channel < channels) numbers.store(pooled + size_t(bin) * channels);
  }
}

KERNEL(4)
pool_bfloat16(const Frame* frames, const uint16_t* a, const uint16_t* b, const uint16_t* c, const uint16_t* d,
              uint16_t* pooled) {
  pool(frames, a, b, c, d, pooled);
}

KERNEL(2)
pool_float32(const Frame* frames, const float* a, const float* b, const float* c, const float* d, float* pooled) {
  pool(frames, a, b, c, d, pooled);
}

// The gradient: a block has a tile of a level, a warp a column of its features. The boxes of the image that may meet the
// tile are listed in their order, and then those of their bins that may. 32 bins at a time, their rows of the gradient
// and their weights for each of the tile's features, added up over a bin's samples, meet in shared memory, and each
// feature takes from the rows that it has a weight for. So no two blocks add to one number, and additions come in the
// order of boxes and bins.
constexpr int kTileHeight = 4, kTileWidth = 8, kFeatures = kTileHeight * kTileWidth;
constexpr int kWarps = kTileWidth, kThreads = 32 * kWarps;
constexpr int kBoxes = 512;          // looked at together
constexpr int kRows = 32;            // of the gradient at a time
constexpr int kStride = kRows + 1;   // of the weights of a feature: threads with one row meet in different banks
constexpr int kLevelRows = 1 << 16;  // rows of a level in a Reach, one level below the other
constexpr float kMargin = 0.02f, kLonger = 1 + 1e-5f;  // far more than rounding moves a sample

struct alignas(16) Reach {  // features that a box may meet, the last ones included
  int left, right, top, bottom;
};

struct Tile {
  int level, y, x;  // the first feature
  Size size;

  // Whether samples meet it that lie at most so far from a place.
  DEVICE bool meets(float center_x, float center_y, float far_x, float far_y) const {
    far_x = far_x * kLonger + kMargin, far_y = far_y * kLonger + kMargin;
    const float left = center_x - far_x, right = center_x + far_x, top = center_y - far_y, bottom = center_y + far_y;
    return right >= -1 && left <= float(size.width) && bottom >= -1 && top <= float(size.height) &&
           clipped(right, size.width) >= float(x - 1) && clipped(left, size.width) < float(x + kTileWidth) &&
           clipped(bottom, size.height) >= float(y - 1) && clipped(top, size.height) < float(y + kTileHeight);
  }

  DEVICE bool meets_box(const Reach& reach) const {
    const int top = level * kLevelRows + y;
    return reach.right >= x && reach.left < x + kTileWidth && reach.bottom >= top && reach.top < top + kTileHeight;
  }

  DEVICE bool meets_bin(const Frame& box, int bin) const {
    const int row = quotient(bin, HAKS(COLUMNS_INVERSE)), column = bin - row * HAKS(BIN_COLUMNS);
    const float across = box.width * float_of(HAKS(COLUMN_STEP)), along = box.height * float_of(HAKS(ROW_STEP));
    const float right = float(4 * column + 2 - 2 * HAKS(BIN_COLUMNS)) * across;
    const float down = float(4 * row + 2 - 2 * HAKS(BIN_ROWS)) * along;
    const float x_far = fabsf(across * box.cos) + fabsf(along * box.sin);
    const float y_far = fabsf(across * box.sin) + fabsf(along * box.cos);
    const float x_middle = right * box.cos - down * box.sin + box.x;
    const float y_middle = right * box.sin + down * box.cos + box.y;
    return meets(x_middle, y_middle, x_far, y_far);
  }
};

DEVICE int tiles_of(Size size) {
  return ((size.height + kTileHeight - 1) / kTileHeight) * ((size.width + kTileWidth - 1) / kTileWidth);
}

// How many of the block's threads say yes before this one; and all that do.
struct Place {
  int before, total;
};

struct alignas(16) Counts {  // of four warps
  int of[4];
};

DEVICE Place place_among(const Counts* counts, uint32_t votes) {
  const int warp = thread() >> 5;
  Place place = {count_bits(votes & ((1u << (thread() & 31)) - 1)), 0};
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    const int count = counts[other / 4].of[other % 4];
    place.before += other < warp ? count : 0;
    place.total += count;
  }
  return place;
}

// A sample's share of a row or column: 0 where it has none.
DEVICE float share(int at, int low, float share_of_high) {
  return at == low ? sum(1.0f, -share_of_high) : at == low + 1 ? share_of_high : 0.0f;
}

// The weights of a sample's neighbours in its bin, whose four samples as many threads hold: sums over the samples. They
// are the same to the bit for all samples that have a feature in common, since a + b is b + a.
DEVICE void add_up_bin(const Sample& sample, float (&weights)[4]) {
  const int place = sample.inside ? sample.y_low << 16 | sample.x_low : -(1 << 20);  // (beside every map)
  float others[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int low = bits_of(shuffle_xor(float_of(place), n));
    const float y_share = shuffle_xor(sample.y_share, n), x_share = shuffle_xor(sample.x_share, n);
#pragma unroll
    for (int neighbour = 0; neighbour < 4; ++neighbour) {
      const float row = share(sample.y(neighbour), low >> 16, y_share);
      const float weight = product(product(row, share(sample.x(neighbour), low & 0xffff, x_share)), 0.25f);
      if (n == 0) weights[neighbour] = weight;
      if (n == 1) weights[neighbour] = sum(weights[neighbour], weight);
      if (n == 2) others[neighbour] = weight;
      if (n == 3) weights[neighbour] = sum(weights[neighbour], sum(others[neighbour], weight));
    }
  }
}

template <typename T>
DEVICE void spread(const Frame* frames, const Reach* reaches, const T* gradient, T* a, T* b, T* c, T* d) {
  const int bins = HAKS(BIN_ROWS) * HAKS(BIN_COLUMNS), channels = HAKS(CHANNELS);
  const int warp = thread() >> 5, lane = thread() & 31, channel = block_y() * kSlice + lane * kEach;
  const bool has_channels = channel < channels;

  const int image = block_z();
  int number = block_x();
  Tile tile = {0, 0, 0, size_of(0)};
#pragma unroll
  for (int level = kLevels - 1; level > 0; --level) {  // large features, which may have most boxes each, begin first
    const int some = tiles_of(size_of(level));
    if (tile.level == 0 && number < some) tile.level = level, tile.size = size_of(level);
    if (tile.level == 0) number -= some;
  }
  const int tile_columns = (tile.size.width + kTileWidth - 1) / kTileWidth;
  tile.y = number / tile_columns * kTileHeight, tile.x = number % tile_columns * kTileWidth;

  Numbers<T>* rows = reinterpret_cast<Numbers<T>*>(shared_memory());   // [row, thread of a warp]
  float* weights = reinterpret_cast<float*>(rows + kRows * 32);        // [feature of the tile, row]
  int* boxes = reinterpret_cast<int*>(weights + kFeatures * kStride);  // that may meet the tile
  int* met = boxes + kBoxes;                                           // bins of them that may
  Counts* box_counts = reinterpret_cast<Counts*>(met + kThreads);
  Counts* bin_counts = box_counts + kWarps / 4;
  frames += size_t(image) * HAKS(BOXES);
  reaches += size_t(image) * HAKS(BOXES);
  gradient += size_t(image) * HAKS(BOXES) * bins * channels + channel;

  float* my_weights = weights + warp * kStride;
  float sums[kTileHeight][kEach] = {};
  bool cleared = false;
  for (int first_box = 0; first_box < HAKS(BOXES); first_box += kBoxes) {
    constexpr int kWords = kBoxes / kThreads;  // of a warp: its boxes follow one another
    const int my_boxes = first_box + warp * 32 * kWords + lane;
    uint32_t box_votes[kWords];
    int count = 0;
#pragma unroll
    for (int n = 0; n < kWords; ++n) {
      const int box = my_boxes + 32 * n;
      box_votes[n] = votes(box < HAKS(BOXES) && tile.meets_box(reaches[box]));
      count += count_bits(box_votes[n]);
    }
    if (lane == 0) box_counts[warp / 4].of[warp % 4] = count;
    block_barrier();
    Place box_place = place_among(box_counts, 0);
    const int num_boxes = box_place.total;
#pragma unroll
    for (int n = 0; n < kWords; ++n) {
      const int before = count_bits(box_votes[n] & ((1u << lane) - 1));
      if (box_votes[n] >> lane & 1) boxes[box_place.before + before] = my_boxes + 32 * n;
      box_place.before += count_bits(box_votes[n]);
    }
    if (num_boxes && !cleared) {
      for (int i = thread(); i < kFeatures * kStride / 4; i += kThreads) {
        store_vector(reinterpret_cast<uint16_t*>(weights) + i * 8, {{0, 0, 0, 0}});
      }
      cleared = true;
    }
    block_barrier();

    for (int first_bin = 0; first_bin < num_boxes * bins; first_bin += kThreads) {
      const int at = first_bin + thread(), rank = quotient(at, HAKS(BINS_INVERSE)), bin = at - rank * bins;
      const int box = rank < num_boxes ? boxes[rank] : 0;
      const uint32_t bin_votes = votes(rank < num_boxes && tile.meets_bin(frames[box], bin));
      if (lane == 0) bin_counts[warp / 4].of[warp % 4] = count_bits(bin_votes);
      block_barrier();
      const Place place = place_among(bin_counts, bin_votes);
      if (bin_votes >> lane & 1) met[place.before] = box * bins + bin;
      block_barrier();

      for (int first = 0; first < place.total; first += kRows) {
        for (int row = warp; row < kRows && first + row < place.total && has_channels; row += kWarps) {
          rows[row * 32 + lane].request(gradient + size_t(met[first + row]) * channels);
        }
        if (warp < 4) {  // four threads a bin, of a sample each
          const int row = warp * 8 + (lane >> 2);
          const bool here = first + row < place.total;
          const int mine = met[here ? first + row : 0], owner = quotient(mine, HAKS(BINS_INVERSE));
          Sample sample = sample_of(frames[owner], tile.size, mine - owner * bins, lane & 3);
          sample.inside &= here;
          float of_bin[4];
          add_up_bin(sample, of_bin);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int y = sample.y(n) - tile.y, x = sample.x(n) - tile.x;
            if (sample.inside && y >= 0 && y < kTileHeight && x >= 0 && x < kTileWidth) {
              weights[(y * kTileWidth + x) * kStride + row] = of_bin[n];
            }
          }
        }
        await_copies();
        block_barrier();

#pragma unroll
        for (int row = 0; row < kTileHeight; ++row) {
          const float* of_feature = my_weights + row * kTileWidth * kStride;
          for (uint32_t left = votes(of_feature[lane] != 0); left; left &= left - 1) {
            const int which = lowest_bit(left);
            rows[which * 32 + lane].add_to(sums[row], of_feature[which]);
          }
        }
        warp_barrier();
#pragma unroll
        for (int row = 0; row < kTileHeight; ++row) my_weights[row * kTileWidth * kStride + lane] = 0;
        block_barrier();
      }
    }
  }

  T* map = tile.level == 0 ? a : tile.level == 1 ? b : tile.level == 2 ? c : d;
  const int x = tile.x + warp;
  map += ((size_t(image) * tile.size.height + tile.y) * tile.size.width + x) * channels + channel;
#pragma unroll
  for (int row = 0; row < kTileHeight; ++row) {
    const bool here = tile.y + row < tile.size.height && x < tile.size.width && has_channels;
    if (here) Numbers<T>::rounded(sums[row]).store(map);
    map += tile.size.width * channels;
  }
}

KERNEL(4)
spread_bfloat16(const Frame* frames, const Reach* reaches, const uint16_t* gradient, uint16_t* a, uint16_t* b,
                uint16_t* c, uint16_t* d) {
  spread(frames, reaches, gradient, a, b, c, d);
}

KERNEL(2)
spread_float32(const Frame* frames, const Reach* reaches, const float* gradient, float* a, float* b, float* c,
               float* d) {
  spread(frames, reaches, gradient, a, b, c, d);
}
