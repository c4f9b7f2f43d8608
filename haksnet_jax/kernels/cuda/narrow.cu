// 7 x 7 convolution of four channels, all with all, in bfloat16, and its weight gradient, on the matrix units.
//
// Two neighbouring outputs of a row, eight numbers, meet eight columns of an input row, 32 numbers that lie side by side in
// memory. So a kernel row is a product of those with a 32 x 8 matrix, two instructions mma.m16n8k16 for the 32 outputs of
// sixteen such pairs. The order of the 32 is free: a thread takes pairs of channels as they lie in memory, and all weights
// fit its registers. A warp owns 32 columns and several rows of one image, loads every input row once for all
// outputs that it meets, and shares nothing with other warps: no shared memory, no barriers. All rows are written out,
// and the compiler moves their loads ahead of the products as far as registers reach.
//
// The weight gradient is the transposed product, 32 numbers of the input times 8 of the gradient, summed over the pairs.
// Those for one difference of columns lie at two places of it, one for each column of a pair. Numbers outside an image
// count as zeros in both products.

#include "target.h"

constexpr int kSide = 7;
constexpr int kChannels = 4;
constexpr int kColumns = 32;  // of a warp's outputs

DEVICE int height() { return HAKS(HEIGHT); }
DEVICE int width() { return HAKS(WIDTH); }
DEVICE int batch() { return HAKS(BATCH); }

// weights: [kernel row, instruction, lane, 4], as narrow_conv_cuda.py arranges them.
template <int kRows, typename Out>
DEVICE void convolve(const uint16_t* x, const uint16_t* weights, Out* out) {
  const int lane = thread() % 32, warp = thread() / 32, group = lane / 4, member = lane % 4;
  const int first_row = (block_y() * 4 + warp) * kRows, first_column = block_x() * kColumns;
  if (first_row >= height()) return;

  uint32_t weight[kSide][2][2];
#pragma unroll
  for (int dy = 0; dy < kSide; ++dy) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const HalfVector four = load_half_vector(weights + ((dy * 2 + n) * 32 + lane) * 4, true);
      weight[dy][n][0] = four.word[0], weight[dy][n][1] = four.word[1];
    }
  }

  // Rows `group` and `group` + 8 of the product are neighbouring pairs of columns: of the two channels that a thread takes
  // of every other column, the second pair meets all but the first.
  const int column = first_column + 4 * group - kSide / 2 + member / 2;
  const size_t image = size_t(block_z()) * height() * width() * kChannels;
  const uint16_t* source = x + image + ((first_row - kSide / 2) * width() + column) * kChannels + member % 2 * 2;
  float sums[kRows][4] = {};
#pragma unroll
  for (int r = 0; r < kRows + kSide - 1; ++r) {
    const bool here = unsigned(first_row - kSide / 2 + r) < height();
    uint32_t inputs[5];
#pragma unroll
    for (int n = 0; n < 5; ++n) {
      inputs[n] = load_pair(source + (r * width() + 2 * n) * kChannels, here && unsigned(column + 2 * n) < width());
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t factors[4] = {inputs[n], inputs[n + 1], inputs[n + 2], inputs[n + 3]};
#pragma unroll
      for (int dy = 0; dy < kSide; ++dy) {
        if (r - dy >= 0 && r - dy < kRows) multiply(sums[r - dy], factors, weight[dy][n]);
      }
    }
  }

  // A thread has two channels of the first or the second column of a pair.
  const int first = first_column + 4 * group + member / 2;
  Out* place = out + image + (first_row * width() + first) * kChannels + member % 2 * 2;
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    if (first_row + t >= height()) break;
    if (first < width()) store_pair(place + t * width() * kChannels, sums[t][0], sums[t][1]);
    if (first + 2 < width()) store_pair(place + (t * width() + 2) * kChannels, sums[t][2], sums[t][3]);
  }
}

// Each block writes its sums [7, 7, 4, 4], of the tiles that its warps walk through.
template <int kRows, int kWarps>
DEVICE void weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {
  constexpr int kColumnWords = 40;  // between columns of the sums in shared memory: 32, and 8 against bank conflicts
  constexpr int kRowWords = 8 * kColumnWords;
  const int lane = thread() % 32, warp = thread() / 32, group = lane / 4, member = lane % 4;
  const unsigned column_tiles = (width() + kColumns - 1) / kColumns, row_tiles = (height() + kRows - 1) / kRows;
  const unsigned tiles = column_tiles * row_tiles * batch();
  float sums[kSide][2][4] = {};
  for (unsigned tile = block_x() * kWarps + warp; tile < tiles; tile += grid_x() * kWarps) {
    const unsigned strip = tile / row_tiles;
    const int first_row = (tile - strip * row_tiles) * kRows;
    const unsigned image_index = strip / column_tiles;
    const int first_column = (strip - image_index * column_tiles) * kColumns;
    const size_t image = size_t(image_index) * height() * width() * kChannels;
    // A thread takes four pairs of columns, two apart: the eight columns that the next one meets are mostly the same. Of
    // the input it has two channels of the columns `group` / 2 and 4 + `group` / 2 of eight, of the gradient one channel
    // of the first or the second column.
    const int pair_column = first_column + member % 2 * 2 + member / 2 * 16;
    const int input_column = pair_column - kSide / 2 + group / 2, gradient_column = pair_column + group / 4;
    const uint16_t* input_source =
        x + image + ((first_row - kSide / 2) * width() + input_column) * kChannels + group % 2 * 2;
    const uint16_t* gradient_source =
        gradient + image + (first_row * width() + gradient_column) * kChannels + group / 2 % 2 * 2;

    uint32_t factors[kRows][2];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        words[n] = load_pair(gradient_source + (t * width() + 4 * n) * kChannels,
                             first_row + t < height() && gradient_column + 4 * n < width());
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        factors[t][n] = group % 2 ? high_halves(words[2 * n], words[2 * n + 1])
                                  : low_halves(words[2 * n], words[2 * n + 1]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows + kSide - 1; ++r) {
      const bool here = unsigned(first_row - kSide / 2 + r) < height();
      uint32_t inputs[5];
#pragma unroll
      for (int n = 0; n < 5; ++n) {
        inputs[n] = load_pair(input_source + (r * width() + 4 * n) * kChannels,
                              here && unsigned(input_column + 4 * n) < width());
      }
      uint32_t halves[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        halves[n][0] = low_halves(inputs[n], inputs[n + 1]);
        halves[n][1] = high_halves(inputs[n], inputs[n + 1]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t rows[4] = {halves[half][0], halves[half][1], halves[half + 2][0], halves[half + 2][1]};
#pragma unroll
        for (int dy = 0; dy < kSide; ++dy) {
          if (r - dy >= 0 && r - dy < kRows) multiply(sums[dy][half], rows, factors[r - dy]);
        }
      }
    }
  }

  float* shared = reinterpret_cast<float*>(shared_memory());  // [warp, kernel row, column, input channel, output]
  float* place = shared + warp * kSide * kRowWords + group / 2 * kColumnWords + group % 2 * 16 + 2 * member;
#pragma unroll
  for (int dy = 0; dy < kSide; ++dy) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* there = place + dy * kRowWords + half * 4 * kColumnWords;
      store_pair(there, sums[dy][half][0], sums[dy][half][1]);
      store_pair(there + 8, sums[dy][half][2], sums[dy][half][3]);
    }
  }
  block_barrier();
  for (int index = thread(); index < kSide * kSide * 16; index += kWarps * 32) {
    const int tap = index / 16, dy = tap / kSide, dx = tap % kSide;
    const float* mine = shared + dy * kRowWords + dx * kColumnWords + index / 4 % 4 * 8 + index % 4;
    float total = 0;
#pragma unroll
    for (int n = 0; n < kWarps; ++n) {
      total += mine[n * kSide * kRowWords] + mine[n * kSide * kRowWords + kColumnWords + 4];
    }
    out[block_x() * kSide * kSide * 16 + index] = total;
  }
}

#define CONVOLUTIONS(ROWS)                                                                        \
  KERNEL(2) narrow_##ROWS##_float32(const uint16_t* x, const uint16_t* weights, float* out) {     \
    convolve<ROWS>(x, weights, out);                                                              \
  }                                                                                               \
  KERNEL(2) narrow_##ROWS##_bfloat16(const uint16_t* x, const uint16_t* weights, uint16_t* out) { \
    convolve<ROWS>(x, weights, out);                                                              \
  }

CONVOLUTIONS(8)
CONVOLUTIONS(4)
CONVOLUTIONS(2)

KERNEL(2) narrow_8_weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {
  weight_gradient<8, 8>(x, gradient, out);
}
KERNEL(2) narrow_2_weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {
  weight_gradient<2, 4>(x, gradient, out);
}
