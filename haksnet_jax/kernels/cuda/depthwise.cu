// Depthwise convolution in bfloat16 and its weight gradient on the matrix units of NVIDIA GPUs, Ampere and newer.
//
// A row of a depthwise kernel, applied to neighbouring columns of one channel, is a product with a band matrix: eight
// outputs of a row are sixteen inputs times a 16 x 8 matrix that holds the taps along its diagonal. An instruction
// mma.m16n8k16 computes that for sixteen such stretches of a row, here called segments. Segments lie side by side, above
// each other and, where maps are small, in several images; all meet the same band matrix, whose nonzero entries fit two
// registers of a thread. A row of inputs is loaded once and multiplied with the bands of all kernel rows that it meets.
//
// The instruction wants pairs of neighbouring columns of one channel, and maps are stored with channels last. So a block
// of threads copies its region of sixteen channels to shared memory as one map for each channel, two columns a word, and
// the results take the same way back.
//
// The weight gradient is the transposed product: sixteen input columns times eight gradient columns, summed over the
// segments. The sums along its diagonals are the gradients of the taps.
//
// Names that begin with HAKS_ are numbers which Python writes into the PTX before it is compiled (ptx.py).

#include "target.h"

HAKS_NUMBER(BAND_ROWS)        // kernel rows of a channel in the array of bands
HAKS_NUMBER(FIRST_BAND)       // the first of them that is meant
HAKS_NUMBER(FIRST_BIAS)       // where the bias begins in its array; negative: there is none
HAKS_NUMBER(WHICH)            // of the four convolutions of a cascade
HAKS_NUMBER(BLOCKS)           // whose sums are added
HAKS_NUMBER(BLOCKS_OF_THREE)  // the same of kernels 3 x 3

struct Layout {       // of a region in shared memory; lengths in words of two columns
  int row_words;      // between rows
  int strip_words;    // between strips of eight rows
  int strip_pad;      // after each strip, against bank conflicts
  int image_words;    // between images
  int plane_words;    // between channels
  int rows;           // of an image
  int rows_inverse;   // 2^16 over the rows, rounded up: times it and shifted by 16 is divided by the rows
  int items_inverse;  // 2^20 over the copies of a row, each two columns of eight channels
};

constexpr int kThreads = 256;
constexpr int kChannels = 16;  // of a block; each of its eight warps has two
constexpr int kStrip = 8;      // output rows that a warp holds

DEVICE int height() { return HAKS(HEIGHT); }
DEVICE int width() { return HAKS(WIDTH); }
DEVICE int channels() { return HAKS(CHANNELS); }
DEVICE int batch() { return HAKS(BATCH); }
// Segments of a block: side by side, above each other and in several images, 16 in all; each a power of two.
DEVICE int tiles_log() { return HAKS(TILES_LOG); }
DEVICE int strips_log() { return HAKS(STRIPS_LOG); }
DEVICE int tiles() { return 1 << tiles_log(); }
DEVICE int strips() { return 1 << strips_log(); }
DEVICE int images() { return 16 >> (tiles_log() + strips_log()); }

DEVICE Layout halo_layout() {
  return {HAKS(ROW_WORDS),   HAKS(STRIP_WORDS), HAKS(STRIP_PAD),    HAKS(IMAGE_WORDS),
          HAKS(PLANE_WORDS), HAKS(ROWS),        HAKS(ROWS_INVERSE), HAKS(ITEMS_INVERSE)};
}

DEVICE Layout plain_layout() {
  return {HAKS(PLAIN_ROW_WORDS),   HAKS(PLAIN_STRIP_WORDS), HAKS(PLAIN_STRIP_PAD),    HAKS(PLAIN_IMAGE_WORDS),
          HAKS(PLAIN_PLANE_WORDS), HAKS(PLAIN_ROWS),        HAKS(PLAIN_ROWS_INVERSE), HAKS(PLAIN_ITEMS_INVERSE)};
}

DEVICE int plane(const Layout& layout, int channel) {  // (16 words more for the second eight: other banks)
  return channel * layout.plane_words + (channel >> 3) * 16;
}

// Where segment m lies: its tile, strip and image.
DEVICE int tile_of(int m) { return m & (tiles() - 1); }
DEVICE int strip_of(int m) { return (m >> tiles_log()) & (strips() - 1); }
DEVICE int image_of(int m) { return m >> (tiles_log() + strips_log()); }

DEVICE int segment_words(const Layout& layout, int m) {
  return image_of(m) * layout.image_words + strip_of(m) * layout.strip_words + tile_of(m) * 4;
}

DEVICE int row_offset(const Layout& layout, int row) { return row * layout.row_words + (row >> 3) * layout.strip_pad; }

// Copies a region of sixteen channels to shared memory, a map for each channel; zeros outside the images. A thread has
// kTogether copies in flight.
template <int kTogether>
DEVICE void stage(const Layout& layout, const uint16_t* x, uint32_t* shared, int first_image, int first_row,
                  int first_column, int first_channel) {
  const int items = layout.row_words * 2, rows = layout.rows * images(), total = rows * items;
  const int eight = thread() & 1, known = channels() - first_channel - 8 * eight > 0;
  const uint16_t* base = x + size_t(first_image) * height() * width() * channels() + first_channel + 8 * eight;
  uint32_t* place = shared + plane(layout, 8 * eight);
  for (int first = thread(); first < total; first += kThreads * kTogether) {
    Vector even[kTogether], odd[kTogether];
    int words[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      const int item = first + n * kThreads;
      const int row_of_all = unsigned(item) * layout.items_inverse >> 20;
      const int pair = (item - row_of_all * items) >> 1;
      const int image = unsigned(row_of_all) * layout.rows_inverse >> 16;
      const int row_index = row_of_all - image * layout.rows;
      const int row = first_row + row_index, column = first_column + 2 * pair;
      const bool here = known && row_of_all < rows && unsigned(row) < height() && first_image + image < batch();
      const uint16_t* source = base + ((image * height() + row) * width() + column) * channels();
      even[n] = load_vector(source, here && unsigned(column) < width());
      odd[n] = load_vector(source + channels(), here && unsigned(column + 1) < width());
      words[n] = image * layout.image_words + row_offset(layout, row_index) + pair;
    }
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (first + n * kThreads < total) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          place[words[n] + (2 * p) * layout.plane_words] = low_halves(even[n].word[p], odd[n].word[p]);
          place[words[n] + (2 * p + 1) * layout.plane_words] = high_halves(even[n].word[p], odd[n].word[p]);
        }
      }
    }
  }
}

// What a gradient of the cascade in kernel selection gets from beside the convolution: a map times a weight for each
// position, and what is the same for all channels or all positions. Arrays of four are of the cascade's convolutions.
// The gradient of a GELU's input has a map alone, that input.
struct Addends {
  const uint16_t* map;        // [B, H, W, C]
  const uint16_t* spatial;    // [B, H, W, 4] times
  const float* kernel;        // [B, 4] is the weight
  const uint16_t* of_means;   // [B, H, W, 4] gradient of the means over channels
  const float* of_positions;  // [B, 4, C] gradient of the means over positions
};

DEVICE float one_of_four(const uint16_t* four) {
  const uint32_t pair = load_pair(four + (HAKS(WHICH) & 2), true);
  return HAKS(WHICH) & 1 ? high_number(pair) : low_number(pair);
}

// Adds them to eight channels of a position, which were rounded before.
DEVICE void add(const Addends& addends, Vector& value, int image, size_t position, int channel) {
  const Vector map = load_vector(addends.map + position * channels() + channel, true);
  const float weight = one_of_four(addends.spatial + position * 4) * addends.kernel[image * 4 + HAKS(WHICH)];
  const float of_mean = one_of_four(addends.of_means + position * 4) * (1.0f / channels());
  const float* of_position = addends.of_positions + (image * 4 + HAKS(WHICH)) * channels() + channel;
  const float share = 1.0f / (height() * width());
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float low = of_mean + of_position[2 * p] * share, high = of_mean + of_position[2 * p + 1] * share;
    value.word[p] = rounded_pair(low_number(value.word[p]) + low_number(map.word[p]) * weight + low,
                                 high_number(value.word[p]) + high_number(map.word[p]) * weight + high);
  }
}

// The GELU's factor Phi(x) and its slope, the normal distribution below x and at x. The error function is formula 7.1.26 of
// Abramowitz and Stegun, right to 1.5e-7, which shares its exponential with the slope.
DEVICE void normal(float x, float& below, float& density) {
  const float z = absolute(x) * 0.70710678f, t = reciprocal(1.0f + 0.3275911f * z), power = exponential(-z * z);
  const float last = 1.421413741f + t * (-1.453152027f + t * 1.061405429f);
  const float series = t * (0.254829592f + t * (-0.284496736f + t * last));
  const float beyond = 0.5f * series * power;
  below = x < 0 ? beyond : 1.0f - beyond;
  density = 0.39894228f * power;
}

DEVICE float gelu(float x) {
  float below, density;
  normal(x, below, density);
  return x * below;
}

DEVICE float gelu_slope(float x) {
  float below, density;
  normal(x, below, density);
  return below + x * density;
}

DEVICE Vector activated(const Vector& value) {
  Vector result;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    result.word[p] = rounded_pair(gelu(low_number(value.word[p])), gelu(high_number(value.word[p])));
  }
  return result;
}

// Multiplies eight channels of a position with the GELU's slope at a map's numbers.
DEVICE void multiply_by_slope(const Vector& map, Vector& value) {
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    value.word[p] = rounded_pair(low_number(value.word[p]) * gelu_slope(low_number(map.word[p])),
                                 high_number(value.word[p]) * gelu_slope(high_number(map.word[p])));
  }
}

enum class End { kPlain, kMeans, kAdd, kGelu, kGeluGradient };  // what else is done where results are written

template <int K, End kEnd>
DEVICE void convolve(const uint16_t* x, const uint32_t* bands, const float* bias, const Addends& addends, uint16_t* out,
                     uint16_t* second_out, float* channel_sums, float* position_sums) {
  constexpr bool kMeans = kEnd == End::kMeans;
  uint32_t* shared = shared_memory();
  const Layout layout = halo_layout();
  const int channel_blocks = (channels() + kChannels - 1) / kChannels;
  const int column_block = unsigned(block_x()) / channel_blocks;
  const int first_channel = (block_x() - column_block * channel_blocks) * kChannels;
  const int first_column = column_block * 8 * tiles(), first_row = block_y() * kStrip * strips();
  const int first_image = block_z() * images();
  stage<2>(layout, x, shared, first_image, first_row - K / 2, first_column - 4, first_channel);
  block_barrier();

  const int lane = thread() % 32, warp = thread() / 32, group = lane / 4, member = lane % 4;
  const int loads = segment_words(layout, lane % 16) + lane / 16 * 4;
  for (int channel = warp; channel < kChannels; channel += kThreads / 32) {
    if (first_channel + channel >= channels()) break;
    uint32_t* map = shared + plane(layout, channel);
    const uint32_t* entries =
        bands + ((first_channel + channel) * HAKS(BAND_ROWS) + HAKS(FIRST_BAND)) * 24 + 2 * member - group + 8;
    uint32_t band[K][2];
#pragma unroll
    for (int dy = 0; dy < K; ++dy) {
      band[dy][0] = entries[dy * 24];
      band[dy][1] = entries[dy * 24 + 8];
    }
    const bool biased = kEnd != End::kAdd && kEnd != End::kGeluGradient && HAKS(FIRST_BIAS) >= 0;
    const float start = biased ? bias[HAKS(FIRST_BIAS) + first_channel + channel] : 0.0f;
    float sums[kStrip][4];
#pragma unroll
    for (int t = 0; t < kStrip; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = start;
#pragma unroll
    for (int r = 0; r < kStrip + K - 1; ++r) {
      uint32_t rows[4];
      load_matrices(rows, map + loads + row_offset(layout, r));
#pragma unroll
      for (int dy = 0; dy < K; ++dy) {
        if (r - dy >= 0 && r - dy < kStrip) multiply(sums[r - dy], rows, band[dy]);
      }
    }
    if (kMeans) {
      float total[2] = {0, 0};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = group + 8 * half;
        const int column = first_column + 8 * tile_of(m) + 2 * member, row = first_row + strip_of(m) * kStrip;
#pragma unroll
        for (int t = 0; t < kStrip; ++t) {
          if (row + t < height() && column < width()) total[half] += sums[t][2 * half];
          if (row + t < height() && column + 1 < width()) total[half] += sums[t][2 * half + 1];
        }
      }
      const int per_image = tiles() * strips();  // segments, 1 to 16
      const int members = per_image == 16 ? 8 : per_image;
      for (int distance = 1; distance < 4 * members; distance *= 2) {
        total[0] += shuffle_xor(total[0], distance);
        total[1] += shuffle_xor(total[1], distance);
      }
      if (per_image == 16) total[0] += total[1];
      if (lane % (4 * members) == 0) {
        const int parts = grid_y() * (grid_x() / channel_blocks);
        const int part = block_y() * (grid_x() / channel_blocks) + column_block;
        for (int half = 0; half < (per_image == 16 ? 1 : 2); ++half) {
          const int b = first_image + image_of(group + 8 * half);
          if (b < batch()) {
            position_sums[(size_t(b) * parts + part) * channels() + first_channel + channel] = total[half];
          }
        }
      }
    }
    warp_barrier();  // every thread has read the channel's map: its results can take the place
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t* place = map + segment_words(layout, group + 8 * half) + member;
#pragma unroll
      for (int t = 0; t < kStrip; ++t) {
        place[t * layout.row_words] = rounded_pair(sums[t][2 * half], sums[t][2 * half + 1]);
      }
    }
  }
  block_barrier();

  const int eight = thread() & 1, channel = first_channel + 8 * eight;
  const uint32_t* mine = shared + plane(layout, 8 * eight);
  uint16_t* base = out + size_t(first_image) * height() * width() * channels() + channel;
  // 512 pairs of columns, two threads each: first the columns of a row, then rows and images.
  for (int item = thread() >> 1; item < 64 * kStrip; item += kThreads / 2) {
    const int pair = item & (4 * tiles() - 1), row_of_all = item >> (2 + tiles_log());
    const int row_index = row_of_all & (kStrip * strips() - 1), image = row_of_all >> (3 + strips_log());
    const int row = first_row + row_index, column = first_column + 2 * pair;
    const uint32_t* place = mine + image * layout.image_words + row_offset(layout, row_index) + pair;
    uint32_t words[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) words[c] = place[c * layout.plane_words];
    Vector even, odd;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      even.word[p] = low_halves(words[2 * p], words[2 * p + 1]);
      odd.word[p] = high_halves(words[2 * p], words[2 * p + 1]);
    }
    const bool here = row < height() && first_image + image < batch();
    const int position = (image * height() + row) * width() + column;
    if (here && channel < channels()) {
      const size_t first = size_t(first_image) * height() * width() + position;
      if (kEnd == End::kAdd) {
        if (column < width()) add(addends, even, first_image + image, first, channel);
        if (column + 1 < width()) add(addends, odd, first_image + image, first + 1, channel);
      }
      if (kEnd == End::kGeluGradient) {
        const uint16_t* place = addends.map + first * channels() + channel;
        const Vector of_even = load_vector(place, column < width());
        const Vector of_odd = load_vector(place + channels(), column + 1 < width());
        multiply_by_slope(of_even, even);
        multiply_by_slope(of_odd, odd);
      }
      if (kEnd == End::kGelu) {
        uint16_t* place = second_out + first * channels() + channel;
        if (column < width()) store_vector(place, activated(even));
        if (column + 1 < width()) store_vector(place + channels(), activated(odd));
      }
      if (column < width()) store_vector(base + position * channels(), even);
      if (column + 1 < width()) store_vector(base + (position + 1) * channels(), odd);
    }
    if (kMeans) {
      float of_even = 0, of_odd = 0;
      if (channel < channels()) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          of_even += low_number(words[c]);
          of_odd += high_number(words[c]);
        }
      }
      of_even += shuffle_xor(of_even, 1);
      of_odd += shuffle_xor(of_odd, 1);
      const size_t index =
          ((size_t(first_image + image) * channel_blocks + first_channel / kChannels) * height() + row) * width() +
          column;
      if (here && eight == 0 && column < width()) channel_sums[index] = of_even;
      if (here && eight == 1 && column + 1 < width()) channel_sums[index + 1] = of_odd;
    }
  }
}

template <int K>
DEVICE void weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {
  const Layout layout = halo_layout(), plain = plain_layout();
  uint32_t* shared = shared_memory();
  uint32_t* shared_gradient = shared + plane(layout, kChannels);
  const int first_channel = block_x() * kChannels;
  const unsigned column_blocks = (width() + 8 * tiles() - 1) / (8 * tiles());
  const unsigned row_blocks = (height() + kStrip * strips() - 1) / (kStrip * strips());
  const unsigned regions = column_blocks * row_blocks * ((batch() + images() - 1) / images());
  const int lane = thread() % 32, warp = thread() / 32, group = lane / 4, member = lane % 4;
  constexpr int kOwn = kChannels / (kThreads / 32);  // channels of a warp
  const int loads = segment_words(layout, lane % 8 + lane / 16 * 8) + lane / 8 % 2 * 4;
  const int gradient_loads = segment_words(plain, lane % 16) + lane / 16 * plain.row_words;
  const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
  float sums[kOwn][K][4] = {}, bias_sums[kOwn][4] = {};
  for (unsigned region = block_y(); region < regions; region += grid_y()) {
    const int first_column = region % column_blocks * 8 * tiles();
    const int first_row = region / column_blocks % row_blocks * kStrip * strips();
    const int first_image = region / (column_blocks * row_blocks) * images();
    block_barrier();  // the region before is done with
    stage<2>(layout, x, shared, first_image, first_row - K / 2, first_column - 4, first_channel);
    stage<2>(plain, gradient, shared_gradient, first_image, first_row, first_column, first_channel);
    block_barrier();
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int channel = warp + own * (kThreads / 32);
      const uint32_t* map = shared + plane(layout, channel) + loads;
      const uint32_t* gradient_map = shared_gradient + plane(plain, channel) + gradient_loads;
      uint32_t rows[kStrip][2];
#pragma unroll
      for (int t = 0; t < kStrip; t += 2) {
        uint32_t two[4];
        load_transposed(two, gradient_map + t * plain.row_words);
        rows[t][0] = two[0], rows[t][1] = two[1], rows[t + 1][0] = two[2], rows[t + 1][1] = two[3];
      }
#pragma unroll
      for (int t = 0; t < kStrip; ++t) multiply(bias_sums[own], ones, rows[t]);
#pragma unroll
      for (int r = 0; r < kStrip + K - 1; ++r) {
        uint32_t inputs[4];
        load_transposed(inputs, map + row_offset(layout, r));
#pragma unroll
        for (int dy = 0; dy < K; ++dy) {
          if (r - dy >= 0 && r - dy < kStrip) multiply(sums[own][dy], inputs, rows[r - dy]);
        }
      }
    }
  }
  block_barrier();
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const int channel = warp + own * (kThreads / 32);
    float* scratch = reinterpret_cast<float*>(shared + plane(layout, channel));
    const bool known = first_channel + channel < channels();
    float* place = out + size_t(block_y()) * (K * K + 1) * channels() + first_channel + channel;
#pragma unroll
    for (int dy = 0; dy < K; ++dy) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scratch[(group + 8 * half) * 8 + 2 * member] = sums[own][dy][2 * half];
        scratch[(group + 8 * half) * 8 + 2 * member + 1] = sums[own][dy][2 * half + 1];
      }
      warp_barrier();
      if (lane < K && known) {
        float total = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) total += scratch[(n + lane + 4 - K / 2) * 8 + n];
        place[(dy * K + lane) * channels()] = total;
      }
      warp_barrier();
    }
    float total = bias_sums[own][0] + bias_sums[own][1];  // all rows of the product with ones are alike
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    if (lane == 0 && known) place[K * K * channels()] = total;
  }
}

// The pair that `band_entries` of depthwise_cuda.py describes, of row dy of taps as they are or turned by 180 degrees.
DEVICE uint32_t band_entry(const float* taps, int side, int dy, int pair, bool turned, int channel) {
  float both[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int dx = pair - 8 - (9 - side) / 2 + n, tap = dy * side + dx;
    const bool within = unsigned(dx) < unsigned(side);
    both[n] = within ? taps[(turned ? side * side - 1 - tap : tap) * channels() + channel] : 0.0f;
  }
  return rounded_pair(both[0], both[1]);
}

// Of 3 x 3, 5 x 5, 7 x 7 and 9 x 9, whose taps lie behind each other, as they are, then of all four turned: [C, 48, 24]
// words.
DEVICE void cascade_bands(const float* taps, uint32_t* out) {
  const int index = block_x() * kThreads + thread(), channel = unsigned(index) / (48 * 24);
  if (channel >= channels()) return;
  const int row_of_all = unsigned(index) / 24 % 48, pair = unsigned(index) % 24;
  const bool turned = row_of_all >= 24;
  const int row = turned ? row_of_all - 24 : row_of_all;
  const int which = (row >= 3) + (row >= 8) + (row >= 15);
  const int begin = which < 2 ? (which == 0 ? 0 : 9) : (which == 2 ? 34 : 83);
  out[index] = band_entry(taps + begin * channels(), 3 + 2 * which, row - which * (which + 2), pair, turned, channel);
}

// The same of two kernels 3 x 3: [C, 12, 24] words.
DEVICE void pair_bands(const float* taps, uint32_t* out) {
  const int index = block_x() * kThreads + thread(), channel = unsigned(index) / (12 * 24);
  if (channel >= channels()) return;
  const int row = unsigned(index) / 24 % 12, pair = unsigned(index) % 24;
  out[index] = band_entry(taps + row / 3 % 2 * 9 * channels(), 3, row % 3, pair, row >= 6, channel);
}

// Adds a number that each block wrote, `length` apart: each warp those of every eighth block, in the same order always.
// Threads of a warp add neighbouring numbers.
DEVICE void add_blocks(const float* place, int length, int blocks, bool here, float* out) {
  const int lane = thread() % 32, warp = thread() / 32;
  float total = 0;
#pragma unroll 8
  for (int block = warp; block < blocks; block += kThreads / 32) {
    if (here) total += place[size_t(block) * length];
  }
  float* shared = reinterpret_cast<float*>(shared_memory());
  shared[thread()] = total;
  block_barrier();
  if (warp == 0 && here) {
    for (int n = 1; n < kThreads / 32; ++n) total += shared[n * 32 + lane];
    *out = total;
  }
}

// Adds what the blocks of the four weight gradients wrote, [blocks, k^2 + 1, C] each, to [168, C].
DEVICE void cascade_sums(const float* sums_3, const float* sums_5, const float* sums_7, const float* sums_9, float* out) {
  const int index = block_x() * 32 + thread() % 32;
  const int row = unsigned(index) / channels(), channel = index - row * channels();
  const int which = (row >= 10) + (row >= 36) + (row >= 86);
  const float* sums = which < 2 ? (which == 0 ? sums_3 : sums_5) : (which == 2 ? sums_7 : sums_9);
  const int begin = which < 2 ? (which == 0 ? 0 : 10) : (which == 2 ? 36 : 86), side = 3 + 2 * which;
  add_blocks(sums + (row - begin) * channels() + channel, (side * side + 1) * channels(),
             which == 0 ? HAKS(BLOCKS_OF_THREE) : HAKS(BLOCKS), row < 168, out + index);
}

// The same of two kernels 3 x 3, to [20, C].
DEVICE void pair_sums(const float* sums_1, const float* sums_2, float* out) {
  const int index = block_x() * 32 + thread() % 32;
  const int row = unsigned(index) / channels(), channel = index - row * channels();
  const float* place = row < 10 ? sums_1 + row * channels() : sums_2 + (row - 10) * channels();
  add_blocks(place + channel, 10 * channels(), HAKS(BLOCKS_OF_THREE), row < 20, out + index);
}

#define KERNELS(K)                                                                                                   \
  KERNEL(4) depthwise_##K(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out) {              \
    convolve<K, End::kPlain>(x, bands, bias, {}, out, nullptr, nullptr, nullptr);                                    \
  }                                                                                                                  \
  KERNEL(4)                                                                                                          \
  depthwise_##K##_means(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out,                  \
                        float* channel_sums, float* position_sums) {                                                 \
    convolve<K, End::kMeans>(x, bands, bias, {}, out, nullptr, channel_sums, position_sums);                         \
  }                                                                                                                  \
  KERNEL(2)                                                                                                          \
  depthwise_##K##_weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {                         \
    weight_gradient<K>(x, gradient, out);                                                                            \
  }

KERNELS(3)
KERNELS(5)
KERNELS(7)
KERNELS(9)

// With three blocks on a multiprocessor in place of two.
KERNEL(3) depthwise_3_weight_gradient_by_three(const uint16_t* x, const uint16_t* gradient, float* out) {
  weight_gradient<3>(x, gradient, out);
}

#define ADDING(K)                                                                                                    \
  KERNEL(4)                                                                                                          \
  depthwise_##K##_added(const uint16_t* x, const uint32_t* bands, const uint16_t* map, const uint16_t* spatial,      \
                        const float* kernel, const uint16_t* of_means, const float* of_positions, uint16_t* out) {   \
    const Addends addends = {map, spatial, kernel, of_means, of_positions};                                          \
    convolve<K, End::kAdd>(x, bands, nullptr, addends, out, nullptr, nullptr, nullptr);                              \
  }

ADDING(5)
ADDING(7)
ADDING(9)

KERNEL(4)
depthwise_3_gelu(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out, uint16_t* second_out) {
  convolve<3, End::kGelu>(x, bands, bias, {}, out, second_out, nullptr, nullptr);
}
KERNEL(4)
depthwise_3_gelu_gradient(const uint16_t* x, const uint32_t* bands, const uint16_t* map, uint16_t* out) {
  convolve<3, End::kGeluGradient>(x, bands, nullptr, {map}, out, nullptr, nullptr, nullptr);
}

KERNEL(4) depthwise_cascade_bands(const float* parameters, uint32_t* out) { cascade_bands(parameters, out); }
KERNEL(4) depthwise_pair_bands(const float* parameters, uint32_t* out) { pair_bands(parameters, out); }
KERNEL(4)
depthwise_cascade_sums(const float* sums_3, const float* sums_5, const float* sums_7, const float* sums_9, float* out) {
  cascade_sums(sums_3, sums_5, sums_7, sums_9, out);
}
KERNEL(4) depthwise_pair_sums(const float* sums_1, const float* sums_2, float* out) {
  pair_sums(sums_1, sums_2, out);
}
