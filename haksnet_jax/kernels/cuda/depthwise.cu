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

template <int K, bool kMeans>
DEVICE void convolve(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out, float* channel_sums,
                     float* position_sums) {
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
    const uint32_t* entries = bands + (first_channel + channel) * K * 24 + 2 * member - group + 8;
    uint32_t band[K][2];
#pragma unroll
    for (int dy = 0; dy < K; ++dy) {
      band[dy][0] = entries[dy * 24];
      band[dy][1] = entries[dy * 24 + 8];
    }
    const float start = bias[first_channel + channel];
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
DEVICE void weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out, float* bias_out) {
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
    const size_t index = size_t(block_y()) * K * K * channels() + first_channel + channel;
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
        out[index + (dy * K + lane) * channels()] = total;
      }
      warp_barrier();
    }
    float total = bias_sums[own][0] + bias_sums[own][1];  // all rows of the product with ones are alike
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    if (lane == 0 && known) bias_out[size_t(block_y()) * channels() + first_channel + channel] = total;
  }
}

#define KERNELS(K)                                                                                                   \
  KERNEL(4) depthwise_##K(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out) {              \
    convolve<K, false>(x, bands, bias, out, nullptr, nullptr);                                                       \
  }                                                                                                                  \
  KERNEL(4)                                                                                                          \
  depthwise_##K##_means(const uint16_t* x, const uint32_t* bands, const float* bias, uint16_t* out,                  \
                        float* channel_sums, float* position_sums) {                                                 \
    convolve<K, true>(x, bands, bias, out, channel_sums, position_sums);                                             \
  }                                                                                                                  \
  KERNEL(2)                                                                                                          \
  depthwise_##K##_weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out, float* bias_out) {        \
    weight_gradient<K>(x, gradient, out, bias_out);                                                                  \
  }

KERNELS(3)
KERNELS(5)
KERNELS(7)
KERNELS(9)
