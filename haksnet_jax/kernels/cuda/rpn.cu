// The RPN's head on Hopper's matrix units: a 3 x 3 convolution of 256 channels, and 21 outputs of each position.
//
// A block computes 24 x 8 positions of one level: three groups of four warps, of eight rows each. The features around
// them are copied to shared memory once, in planes of eight channels, where the products of the nine taps read them from
// nine places; factors come in steps of 32 channels of a tap. The hidden layer stays in registers, in float32; what is
// multiplied of it are two numbers in bfloat16, which together have 16 bits, and so it is with the factors of the outputs.

#include "hopper.h"

HAKS_NUMBER(CELLS)  // of an image, all levels

constexpr int kLevels = 5;
constexpr int kChannels = 256;
constexpr int kThreads = 384;
constexpr int kGroups = kThreads / 128;
constexpr int kTileRows = 8 * kGroups, kTileColumns = 8;
constexpr int kBandColumns = kTileColumns + 2, kBand = (kTileRows + 2) * kBandColumns;
constexpr int kPlane = kBand * 16;  // bytes
constexpr int kTaps = 9;
constexpr int kPlanes = 4;  // of a step
constexpr int kChunks = kChannels / (8 * kPlanes), kSteps = kChunks * kTaps;
constexpr int kStages = 4, kAhead = 2, kStage = kPlanes * kChannels * 16;
constexpr int kAnchors = 3, kOutputs = 7 * kAnchors, kOutputColumns = 32;
constexpr int kOutputPlane = kOutputColumns * 16;
constexpr int kOutputFactors = kChannels * kOutputColumns * 2;  // bytes of the upper or the lower parts
constexpr int kFeatures = kChannels / 8 * kPlane;

struct Barriers {
  Barrier features[kChunks], full[kStages], empty[kStages], outputs;
};

struct Level {
  int height, width, across, first_tile, first_cell, tiles;
};

struct Tile {
  const uint16_t* x;  // of the image
  Level level;
  int row, column;  // of its first position
};

DEVICE void request_features(uint8_t* features, const Tile& tile, int chunk, Barrier* arrived) {
#pragma unroll
  for (int first = 0; first < kBand * kPlanes; first += kThreads) {
    const int number = first + thread();
    if (number >= kBand * kPlanes) break;
    const int place = number / kPlanes, plane = chunk * kPlanes + number % kPlanes;
    const int row = tile.row + place / kBandColumns - 1, column = tile.column + place % kBandColumns - 1;
    const bool here = unsigned(row) < unsigned(tile.level.height) && unsigned(column) < unsigned(tile.level.width);
    const size_t from = here ? (size_t(row) * tile.level.width + column) * kChannels + plane * 8 : 0;
    request_copy(features + plane * kPlane + place * 16, tile.x + from, here);
  }
  arrive_after_copies(arrived);
}

template <int kBytes>
DEVICE void request_block(uint8_t* place, const uint16_t* from, Barrier* arrived) {
#pragma unroll
  for (int first = 0; first < kBytes; first += kThreads * 16) {
    const int at = first + thread() * 16;
    if (at < kBytes) request_copy(place + at, from + at / 2, true);
  }
  arrive_after_copies(arrived);
}

KERNEL_OF(384) rpn_head(const uint16_t* p2, const uint16_t* p3, const uint16_t* p4, const uint16_t* p5,
                        const uint16_t* p6, const int* levels, const uint16_t* factors, const float* bias,
                        const uint16_t* output_factors, const float* output_bias, float* logits, float* deltas) {
  uint8_t* features = reinterpret_cast<uint8_t*>(shared_memory());
  uint8_t* stages = features + kFeatures;
  uint8_t* outputs = stages + kStages * kStage;
  Barriers* barriers = reinterpret_cast<Barriers*>(outputs + 2 * kOutputFactors);

  Tile tile;
  int which = kLevels - 1;
  while (which > 0 && block_x() < levels[6 * which + 3]) --which;
  const int* about = levels + 6 * which;
  tile.level = {about[0], about[1], about[2], about[3], about[4], about[5]};
  const int number = block_x() - tile.level.first_tile;
  tile.row = number / tile.level.across * kTileRows, tile.column = number % tile.level.across * kTileColumns;
  tile.x = which == 0 ? p2 : which == 1 ? p3 : which == 2 ? p4 : which == 3 ? p5 : p6;
  tile.x += size_t(block_y()) * tile.level.height * tile.level.width * kChannels;

  if (thread() == 0) {
    for (int n = 0; n < kChunks; ++n) set_up(barriers->features + n, kThreads);
    for (int n = 0; n < kStages; ++n) set_up(barriers->full + n, kThreads), set_up(barriers->empty + n, kThreads / 32);
    set_up(&barriers->outputs, kThreads);
  }
  block_barrier();
  request_features(features, tile, 0, barriers->features);
  for (int n = 0; n < kAhead; ++n) {
    request_block<kStage>(stages + n * kStage, factors + n * (kStage / 2), barriers->full + n);
  }

  const int group = thread() / 128;
  const Operand x = operand(features, kPlane, kBandColumns * 16);
  const Operand taps = operand(stages, kChannels * 16, 128);
  float low[64], high[64];  // hidden channels, half of them each
#pragma unroll
  for (int n = 0; n < 64; ++n) low[n] = high[n] = 0.0f;
  for (int chunk = 0, step = 0; chunk < kChunks; ++chunk) {
    await(barriers->features + chunk, 0);
    if (chunk + 1 < kChunks) request_features(features, tile, chunk + 1, barriers->features + chunk + 1);
    if (chunk == kChunks / 2) request_block<2 * kOutputFactors>(outputs, output_factors, &barriers->outputs);
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap, ++step) {
      const int stage = step % kStages, next = step + kAhead;
      if (next < kSteps) {  // where the step before the last one was
        const int freed = next % kStages;
        if (step >= kStages - kAhead) await(barriers->empty + freed, next / kStages - 1);
        request_block<kStage>(stages + freed * kStage, factors + size_t(next) * (kStage / 2), barriers->full + freed);
      }
      await(barriers->full + stage, step / kStages);
      show_to_products();
      const int row = group * 8 + tap / 3;
      const Operand a = moved(x, chunk * kPlanes * kPlane + (row * kBandColumns + tap % 3) * 16);
      const Operand b = moved(taps, stage * kStage);
      pin(low), pin(high);
      begin_products();
#pragma unroll
      for (int k = 0; k < kPlanes; k += 2) {
        multiply<false, false>(low, moved(a, k * kPlane), moved(b, k * kChannels * 16), true);
        multiply<false, false>(high, moved(a, k * kPlane), moved(b, k * kChannels * 16 + 128 * 16), true);
      }
      end_products();
      await_products();
      pin(low), pin(high);
      arrive(barriers->empty + stage);
    }
  }

  await(&barriers->outputs, 0);
  const int lane = thread() % 32, pair = lane % 4 * 2;
  // Which row of which core matrix this thread points at: two planes of two times eight outputs, or of both parts.
  const uint8_t* mine = outputs + lane / 8 % 2 * kOutputPlane + lane % 8 * 16;
  const uint8_t* two_eights = mine + lane / 16 * (8 * 16);
  const uint8_t* two_parts = mine + lane / 16 * kOutputFactors + 16 * 16;
  float out[3][4] = {};
#pragma unroll
  for (int j = 0; j < kChannels / 16; ++j) {
    uint32_t whole[4], rest[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float* sums = j < 8 ? low + 8 * j : high + 8 * (j - 8);
      const float* biases = bias + j * 16 + n / 2 * 8 + pair;
      float first = sum(sums[2 * n], biases[0]), second = sum(sums[2 * n + 1], biases[1]);
      first = first < 0.0f ? 0.0f : first, second = second < 0.0f ? 0.0f : second;
      whole[n] = rounded_pair(first, second);
      rest[n] = rounded_pair(first - low_number(whole[n]), second - high_number(whole[n]));
    }
    uint32_t upper[4], lower[4], last[4];
    load_matrices(upper, reinterpret_cast<const uint32_t*>(two_eights + 2 * j * kOutputPlane));
    load_matrices(lower, reinterpret_cast<const uint32_t*>(two_eights + 2 * j * kOutputPlane + kOutputFactors));
    load_matrices(last, reinterpret_cast<const uint32_t*>(two_parts + 2 * j * kOutputPlane));
#pragma unroll
    for (int n = 0; n < 3; ++n) {
      const uint32_t above[2] = {n < 2 ? upper[2 * n] : last[0], n < 2 ? upper[2 * n + 1] : last[1]};
      const uint32_t below[2] = {n < 2 ? lower[2 * n] : last[2], n < 2 ? lower[2 * n + 1] : last[3]};
      multiply(out[n], whole, above);
      multiply(out[n], whole, below);
      multiply(out[n], rest, above);
    }
  }

  const int column = tile.column + lane / 4, first_row = tile.row + group * 8 + thread() % 128 / 32 * 2;
  const size_t cells = size_t(block_y()) * HAKS(CELLS) + tile.level.first_cell;
#pragma unroll
  for (int n = 0; n < 12; ++n) {
    const int row = first_row + n / 2 % 2, which = n / 4 * 8 + pair + n % 2;
    if (row >= tile.level.height || column >= tile.level.width || which >= kOutputs) continue;
    const size_t cell = cells + row * tile.level.width + column;
    const float value = out[n / 4][n % 4] + output_bias[which];
    if (which < kAnchors) {
      logits[cell * kAnchors + which] = value;
    } else {
      deltas[cell * (6 * kAnchors) + which - kAnchors] = value;
    }
  }
}
