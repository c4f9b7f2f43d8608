// A 3 x 3 convolution of the first P channels of a map in bfloat16, the others as they are, and its weights' gradient, on
// the matrix units of NVIDIA GPUs, Ampere and newer.
//
// A block owns 8 rows of 32 columns. Their first P channels and a border of one lie in shared memory, position after
// position, where an instruction mma.m16n8k16 meets 16 neighbouring positions and two groups of eight terms: eight
// channels of one of the nine neighbours each. The weights' gradient sums over positions instead, with both factors
// turned as they are loaded.

#include "target.h"

HAKS_NUMBER(ACROSS)  // regions of an image side by side
HAKS_NUMBER(REGIONS)  // of an image

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 8, kColumns = 32;  // of a region; each warp has a row of it
constexpr int kHaloRows = kRows + 2, kHaloColumns = kColumns + 2;
constexpr int kTaps = 9;

DEVICE int height() { return HAKS(HEIGHT); }
DEVICE int width() { return HAKS(WIDTH); }
DEVICE int channels() { return HAKS(CHANNELS); }

// Units of 16 bytes, eight channels, between neighbouring positions in shared memory: an odd number, so that eight of
// them lie in different banks.
template <int kChannels>
constexpr int kPitch = kChannels / 8 | 1;

template <int P>
struct Part {
  static constexpr int kEights = P / 8, kGroups = kTaps * kEights, kSteps = (kGroups + 1) / 2;
  static constexpr int kHaloWords = kHaloRows * kHaloColumns * kPitch<P> * 4;
  static constexpr int kFactorWords = kSteps * kEights * 64;
};

struct Region {
  int image, row, column;
};

DEVICE Region region(int number) {  // of all images
  const int image = unsigned(number) / unsigned(HAKS(REGIONS)), of_image = number - image * HAKS(REGIONS);
  const int down = unsigned(of_image) / unsigned(HAKS(ACROSS));
  return {image, down * kRows, (of_image - down * HAKS(ACROSS)) * kColumns};
}

DEVICE const uint16_t* pixel(const uint16_t* x, const Region& at, int row, int column) {
  return x + (size_t(at.image) * height() * width() + (at.row + row) * width() + at.column + column) * channels();
}

DEVICE bool in_image(const Region& at, int row, int column) {
  return unsigned(at.row + row) < unsigned(height()) && unsigned(at.column + column) < unsigned(width());
}

// kCount channels of the region, with `kBorder` around it, to shared memory; zeros outside the image.
template <int kCount, int kBorder>
DEVICE void stage(uint32_t* shared, const uint16_t* x, const Region& at) {
  constexpr int kEights = kCount / 8, kAcross = kColumns + 2 * kBorder;
  constexpr int kItems = (kRows + 2 * kBorder) * kAcross * kEights;
#pragma unroll 4
  for (int item = thread(); item < kItems; item += kThreads) {
    const int place = item / kEights, eight = item - place * kEights, down = place / kAcross;
    const int row = down - kBorder, column = place - down * kAcross - kBorder;
    const bool here = in_image(at, row, column);
    const Vector value = load_vector(here ? pixel(x, at, row, column) + eight * 8 : x, here);
    *reinterpret_cast<Vector*>(shared + (place * kPitch<kCount> + eight) * 4) = value;
  }
}

// Words from the halo's first position to what group `group` of terms meets at the region's position (row, column).
template <int P>
DEVICE int neighbour(int group, int row, int column) {
  const int tap = group / Part<P>::kEights, eight = group - tap * Part<P>::kEights, down = tap / 3;
  return (((row + down) * kHaloColumns + column + tap - 3 * down) * kPitch<P> + eight) * 4;
}

template <int P>
DEVICE void convolve(const uint16_t* x, const uint32_t* factors, uint16_t* out) {
  using Of = Part<P>;
  uint32_t* halo = shared_memory();
  uint32_t* weights = halo + Of::kHaloWords;
  const Region at = region(block_x());
  stage<P, 1>(halo, x, at);
  for (int n = thread() * 4; n < Of::kFactorWords; n += kThreads * 4) {
    *reinterpret_cast<Vector*>(weights + n) = load_vector(reinterpret_cast<const uint16_t*>(factors + n), true);
  }
  constexpr int kOthers = 3 * Of::kEights, kItems = kRows * kColumns * kOthers;
#pragma unroll 4
  for (int item = thread(); item < kItems; item += kThreads) {
    const int place = item / kOthers, channel = P + (item - place * kOthers) * 8;
    const int row = place / kColumns, column = place % kColumns;
    if (in_image(at, row, column)) {
      store_vector(out + (pixel(x, at, row, column) - x) + channel, load_vector(pixel(x, at, row, column) + channel, true));
    }
  }
  block_barrier();

  const int lane = thread() % 32, row = thread() / 32;
  float sums[2][Of::kEights][4] = {};
#pragma unroll
  for (int step = 0; step < Of::kSteps; ++step) {
    // (Where the groups are odd in number, the last factor is zero.)
    const int last = Of::kGroups - 1, second = 2 * step + 1 < last ? 2 * step + 1 : last;
    const int from = lane < 16 ? neighbour<P>(2 * step, row, lane % 16) : neighbour<P>(second, row, lane % 16);
    uint32_t left[2][4];
    load_matrices(left[0], halo + from);
    load_matrices(left[1], halo + from + 16 * kPitch<P> * 4);
#pragma unroll
    for (int n = 0; n < Of::kEights; ++n) {
      const uint32_t* pair = weights + (step * Of::kEights + n) * 64 + lane * 2;
      const uint32_t right[2] = {pair[0], pair[1]};
      multiply(sums[0][n], left[0], right);
      multiply(sums[1][n], left[1], right);
    }
  }
#pragma unroll
  for (int half = 0; half < 4; ++half) {
    const int column = half * 8 + lane / 4;
    if (!in_image(at, row, column)) continue;
    uint16_t* place = out + (pixel(x, at, row, column) - x) + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Of::kEights; ++n) {
      const float(&of)[4] = sums[half / 2][n];
      store_pair(place + n * 8, of[half % 2 * 2], of[half % 2 * 2 + 1]);
    }
  }
}

// Sums over positions of what the nine neighbours hold times the gradient, for kOuts of its P channels. kAcross warps
// share the rows of the result, the others the rows of the region.
template <int P, int kOuts, int kAcross>
DEVICE void weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) {
  using Of = Part<P>;
  constexpr int kOutEights = kOuts / 8, kOwn = (Of::kSteps + kAcross - 1) / kAcross, kShares = kWarps / kAcross;
  uint32_t* halo = shared_memory();
  uint32_t* rows = halo + Of::kHaloWords;
  const int lane = thread() % 32, warp = thread() / 32, own = warp % kAcross, share = warp / kAcross;
  const int first_out = block_y() * kOuts;
  float sums[kOwn][kOutEights][4] = {};
  for (int number = block_x(); number < HAKS(BATCH) * HAKS(REGIONS); number += grid_x()) {
    const Region at = region(number);
    block_barrier();  // the region before is done with
    stage<P, 1>(halo, x, at);
    stage<kOuts, 0>(rows, gradient + first_out, at);
    block_barrier();
    for (int row = share; row < kRows; row += kShares) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t right[(kOutEights + 1) / 2][4];
#pragma unroll
        for (int n = 0; n < (kOutEights + 1) / 2; ++n) {  // two eights: positions 0 to 7 and 8 to 15 of each
          const int eight = 2 * n + lane / 16 < kOutEights ? 2 * n + lane / 16 : 2 * n;
          const int place = row * kColumns + half * 16 + lane % 16;
          load_transposed(right[n], rows + (place * kPitch<kOuts> + eight) * 4);
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const int step = own + i * kAcross;
          if (step >= Of::kSteps) break;
          const int group = 2 * step + lane / 8 % 2, column = half * 16 + lane / 16 * 8 + lane % 8;
          uint32_t left[4];
          load_transposed(left, halo + neighbour<P>(group < Of::kGroups ? group : Of::kGroups - 1, row, column));
#pragma unroll
          for (int n = 0; n < kOutEights; ++n) {
            const uint32_t pair[2] = {right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]};
            multiply(sums[i][n], left, pair);
          }
        }
      }
    }
  }
  out += size_t(block_x() * kShares + share) * kTaps * P * P;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int step = own + i * kAcross;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int group = 2 * step + half;
      if (group >= Of::kGroups) continue;
      float* place = out + (group * 8 + lane / 4) * P + first_out + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kOutEights; ++n) store_pair(place + n * 8, sums[i][n][2 * half], sums[i][n][2 * half + 1]);
    }
  }
}

#define KERNELS(P, OUTS, ACROSS)                                                                          \
  KERNEL(2) partial_conv_##P(const uint16_t* x, const uint32_t* factors, uint16_t* out) {                 \
    convolve<P>(x, factors, out);                                                                         \
  }                                                                                                       \
  KERNEL(2) partial_conv_##P##_weight_gradient(const uint16_t* x, const uint16_t* gradient, float* out) { \
    weight_gradient<P, OUTS, ACROSS>(x, gradient, out);                                                   \
  }

KERNELS(8, 8, 1)
KERNELS(16, 16, 4)
KERNELS(32, 32, 8)
KERNELS(40, 40, 8)
KERNELS(64, 32, 8)
