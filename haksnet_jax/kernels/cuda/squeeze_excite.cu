// The gate of a squeeze-excite block, sigmoid(excite relu(squeeze means)), and its gradient, in float32.
//
// All of it is small (T's last stage, an image: 32 KB of sums and two matrices of 64 KB), so what counts is how often a
// thread waits for memory, and its instructions: what does not depend on sums is asked for before them, 32 vectors at
// once. One image may be given to several blocks: each computes what all need, and a share of the results. The
// parameters lie behind each other: squeeze [C, C / 4], excite [C / 4, C], and the biases of both.

#include "target.h"

// (Logarithms and inverses, since the driver's compiler does not divide numbers that it knows.)
HAKS_NUMBER(PARTS_LOG)        // of blocks that share an image
HAKS_NUMBER(SLICES_LOG)       // of threads that share four parameters' gradients, at most 8
HAKS_NUMBER(WEIGHT_BLOCKS)    // blocks that compute parameters' gradients
HAKS_NUMBER(CHANNEL_INVERSE)  // for a division by C / 4 (`divided`), and by a quarter of the other widths:
HAKS_NUMBER(HIDDEN_INVERSE)
HAKS_NUMBER(PART_INVERSE)
HAKS_NUMBER(CHANNEL_SHARERS_LOG)  // of threads that add up one of C columns, and of the other widths
HAKS_NUMBER(HIDDEN_SHARERS_LOG)
HAKS_NUMBER(PART_SHARERS_LOG)

constexpr int kThreads = 256, kWarps = kThreads / 32, kMembers = 8;
constexpr int kSumsAtOnce = 12, kSqueezeAtOnce = 16, kExciteAtOnce = 4;  // vectors that a thread asks for
constexpr int kUnits = 2, kVectorsOfLane = 4;  // rows of a warp at once; 32 lanes have 512 channels, the most

struct alignas(16) Quad {
  float of[4];
};

struct Parameters {
  const float *squeeze, *excite, *squeeze_bias, *excite_bias;
};

DEVICE Parameters split(const float* all) {
  const int size = HAKS(CHANNELS) * (HAKS(CHANNELS) / 4);
  return {all, all + size, all + 2 * size, all + 2 * size + HAKS(CHANNELS) / 4};
}

DEVICE Quad load_quad(const float* place, bool here) {  // zeros where it is not here
  const Vector words = load_vector(reinterpret_cast<const uint16_t*>(place), here);
  return {{float_of(words.word[0]), float_of(words.word[1]), float_of(words.word[2]), float_of(words.word[3])}};
}

DEVICE Quad& quad_at(float* shared) { return *reinterpret_cast<Quad*>(shared); }

DEVICE float dot(const Quad& a, const Quad& b) {
  return a.of[0] * b.of[0] + a.of[1] * b.of[1] + a.of[2] * b.of[2] + a.of[3] * b.of[3];
}

template <int distances>  // sums over as many neighbouring threads, which all of them get
DEVICE float warp_sum(float value) {
#pragma unroll
  for (int distance = distances / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

// By a number from 1 to 128, of which `inverse` is 2^30's quotient, rounded up: exact up to 2^23.
DEVICE int divided(int value, int inverse) { return int(uint64_t(value) * inverse >> 30); }

// A matrix whose columns are added up, and a thread's share of that: four columns of every step-th row.
struct Share {
  const float* place;  // of its first row
  int rows, columns, stride, first, step, column;
};

DEVICE Share share_of(const float* matrix, int rows, int columns, int stride, int inverse) {
  const int most = divided(kThreads, inverse), step = rows < most ? rows : most;
  const int first = divided(thread(), inverse), column = 4 * (thread() - first * (columns / 4));
  return {matrix + first * stride + column, rows, columns, stride, first < step ? first : rows, step, column};
}

template <int count>
DEVICE void load_rows(Quad (&quads)[count], const Share& share, int passed) {
  const float* place = share.place + size_t(passed) * share.stride;
#pragma unroll
  for (int n = 0; n < count; ++n) {
    quads[n] = load_quad(place + n * share.step * share.stride, share.first + passed + n * share.step < share.rows);
  }
}

// The thread's sum, of which `quads` holds the first rows; rows count as often as `factors` says, or once without it.
template <int count>
DEVICE Quad own_sum(Quad (&quads)[count], const Share& share, const float* factors) {
  Quad total = {};
#pragma unroll 1
  for (int passed = 0;;) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      const int row = share.first + passed + n * share.step;
      const int known = row < share.rows ? row : share.rows - 1;  // (where there is no row, `quads` are zeros)
      const float factor = factors == nullptr ? 1.0f : factors[known];
#pragma unroll
      for (int i = 0; i < 4; ++i) total.of[i] += factor * quads[n].of[i];
    }
    passed += count * share.step;
    if (passed >= share.rows) return total;
    load_rows(quads, share, passed);
  }
}

// Numbers that are needed later, asked for early, which shared memory holds meanwhile.
template <int count>
DEVICE void load_some(float (&values)[count], const float* from, int length) {
#pragma unroll
  for (int n = 0; n < count; ++n) {
    if (thread() + n * kThreads < length) values[n] = from[thread() + n * kThreads];
  }
}

template <int count>
DEVICE void store_some(const float (&values)[count], float* shared, int length) {
#pragma unroll
  for (int n = 0; n < count; ++n) {
    if (thread() + n * kThreads < length) shared[thread() + n * kThreads] = values[n];
  }
}

// Adds what the threads have and calls finish(column, sum) for each column; `room` is as large as _ROOM in Python says.
// Begins and ends so that what a thread wrote to shared memory before is known to all.
template <class Finish>
DEVICE void add_threads(const Quad& own, const Share& share, int sharers_log, float* room, Finish finish) {
  const int stride = share.columns + 4;  // eight rows' neighbouring quads lie in different banks
  if (share.first < share.rows) quad_at(room + share.first * stride + share.column) = own;
  block_barrier();
  const int sharers = 1 << sharers_log, sharer = thread() & (sharers - 1);
#pragma unroll 1
  for (int begun = 0; begun < share.columns; begun += kThreads >> sharers_log) {
    const int column = begun + (thread() >> sharers_log);
    float total = 0;
    if (column < share.columns) {
#pragma unroll 4
      for (int row = sharer; row < share.step; row += sharers) total += room[row * stride + column];
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      if (distance < sharers) total += shuffle_xor(total, distance);
    }
    if (column < share.columns && sharer == 0) finish(column, total);
  }
  block_barrier();
}

// row_sums [B, H, C] to gate [B, C], and what the gradient needs: means [B, C] and hidden [B, C / 4] behind the ReLU.
KERNEL(1)
squeeze_excite(const float* row_sums, const float* all_parameters, float* gate, float* means, float* hidden) {
  const int channels = HAKS(CHANNELS), width = channels / 4, columns = channels >> HAKS(PARTS_LOG);
  const int image = block_y(), part = block_x();
  const Parameters parameters = split(all_parameters);
  const Share of_means = share_of(row_sums + size_t(image) * HAKS(HEIGHT) * channels, HAKS(HEIGHT), channels, channels,
                                  HAKS(CHANNEL_INVERSE));
  const Share of_hidden = share_of(parameters.squeeze, channels, width, width, HAKS(HIDDEN_INVERSE));
  const Share of_gate = share_of(parameters.excite + part * columns, width, columns, channels, HAKS(PART_INVERSE));
  Quad sums[kSumsAtOnce], squeeze[kSqueezeAtOnce], excite[kExciteAtOnce];
  float squeeze_bias[1], excite_bias[2];
  load_some(squeeze_bias, parameters.squeeze_bias, width);
  load_some(excite_bias, parameters.excite_bias + part * columns, columns);
  load_rows(sums, of_means, 0);
  load_rows(squeeze, of_hidden, 0);
  load_rows(excite, of_gate, 0);
  float* own_means = reinterpret_cast<float*>(shared_memory());
  float *own_hidden = own_means + channels, *own_gate = own_hidden + width, *room = own_gate + columns;
  store_some(squeeze_bias, own_hidden, width);
  store_some(excite_bias, own_gate, columns);

  Quad own = own_sum(sums, of_means, nullptr);
  add_threads(own, of_means, HAKS(CHANNEL_SHARERS_LOG), room, [&](int channel, float sum) {
    const float mean = quotient(sum, float(HAKS(HEIGHT) * HAKS(WIDTH)));
    own_means[channel] = mean;
    if (part == 0) means[image * channels + channel] = mean;
  });
  own = own_sum(squeeze, of_hidden, own_means);
  add_threads(own, of_hidden, HAKS(HIDDEN_SHARERS_LOG), room, [&](int unit, float sum) {
    const float value = sum + own_hidden[unit];
    const float positive = value < 0 ? 0.0f : value;  // NaN stays NaN
    own_hidden[unit] = positive;
    if (part == 0) hidden[image * width + unit] = positive;
  });
  own = own_sum(excite, of_gate, own_hidden);
  add_threads(own, of_gate, HAKS(PART_SHARERS_LOG), room, [&](int column, float sum) {
    gate[image * channels + part * columns + column] = quotient(1.0f, 1.0f + expf(-(sum + own_gate[column])));
  });
}

// Rows of excite that a warp multiplies with, each spread over its lanes.
DEVICE void load_units(Quad (&rows)[kUnits][kVectorsOfLane], const float* excite, int first, int units) {
  const int lane = thread() % 32;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int unit = first + u * kWarps;
#pragma unroll
    for (int n = 0; n < kVectorsOfLane; ++n) {
      const int channel = 4 * (lane + 32 * n);
      rows[u][n] = load_quad(excite + unit * HAKS(CHANNELS) + channel, unit < units && channel < HAKS(CHANNELS));
    }
  }
}

// row_sums [B, H, C] of the gate's gradient to the gradients of what the sigmoid and the ReLU are of.
KERNEL(1)
squeeze_excite_back(const float* row_sums, const float* gate, const float* hidden, const float* all_parameters,
                    float* of_logits, float* of_hidden) {
  const int channels = HAKS(CHANNELS), width = channels / 4, units = width >> HAKS(PARTS_LOG);
  const int image = block_y(), part = block_x(), warp = thread() / 32, lane = thread() % 32;
  const float* excite = split(all_parameters).excite + part * units * channels;
  const Share of_gate = share_of(row_sums + size_t(image) * HAKS(HEIGHT) * channels, HAKS(HEIGHT), channels, channels,
                                 HAKS(CHANNEL_INVERSE));
  const int first_unit = image * width + part * units;
  Quad sums[kSumsAtOnce], rows[kUnits][kVectorsOfLane];
  float some_gate[2], some_hidden[1];
  load_some(some_gate, gate + image * channels, channels);
  load_some(some_hidden, hidden + first_unit, units);
  load_rows(sums, of_gate, 0);
  load_units(rows, excite, warp, units);
  float* own_logits = reinterpret_cast<float*>(shared_memory());
  float *own_hidden = own_logits + channels, *room = own_hidden + width;
  store_some(some_gate, own_logits, channels);
  store_some(some_hidden, own_hidden, units);

  const Quad own = own_sum(sums, of_gate, nullptr);
  add_threads(own, of_gate, HAKS(CHANNEL_SHARERS_LOG), room, [&](int channel, float sum) {
    const float value = own_logits[channel], of_logit = sum * value * (1 - value);
    own_logits[channel] = of_logit;
    if (part == 0) of_logits[image * channels + channel] = of_logit;
  });
#pragma unroll 1
  for (int first = warp; first < units; first += kUnits * kWarps) {
    float totals[kUnits] = {};
#pragma unroll
    for (int n = 0; n < kVectorsOfLane; ++n) {
      const int channel = 4 * (lane + 32 * n);
      if (channel >= channels) continue;
      const Quad logits = quad_at(own_logits + channel);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) totals[u] += dot(rows[u][n], logits);
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * kWarps;
      const float total = warp_sum<32>(totals[u]);
      if (lane == 0 && unit < units) of_hidden[first_unit + unit] = own_hidden[unit] > 0 ? total : 0.0f;
    }
    load_units(rows, excite, first + kUnits * kWarps, units);
  }
}

// Four neighbouring parameters' gradients: sums over the images of a row of `right`, times a number of `left` if any.
struct Terms {
  const float *left, *right;
  int left_stride, right_stride;
};

DEVICE Terms terms_of(int parameter, const float* means, const float* hidden, const float* of_logits,
                      const float* of_hidden) {
  const int channels = HAKS(CHANNELS), width = channels / 4, size = channels * width;
  if (parameter < size) {
    const int channel = divided(parameter / 4, HAKS(HIDDEN_INVERSE));
    return {means + channel, of_hidden + (parameter - channel * width), channels, width};
  }
  parameter -= size;
  if (parameter < size) {
    const int unit = divided(parameter / 4, HAKS(CHANNEL_INVERSE));
    return {hidden + unit, of_logits + (parameter - unit * channels), width, channels};
  }
  parameter -= size;
  if (parameter < width) return {nullptr, of_hidden + parameter, 0, width};
  return {nullptr, of_logits + (parameter - width), 0, channels};
}

DEVICE void parameters_gradient(const float* means, const float* hidden, const float* of_logits,
                                const float* of_hidden, float* of_parameters) {
  constexpr int kAtOnce = 8;
  const int width = HAKS(CHANNELS) / 4, count = 2 * HAKS(CHANNELS) * width + HAKS(CHANNELS) + width;
  const int slices = 1 << HAKS(SLICES_LOG), quads = kThreads / slices, slice = thread() >> (8 - HAKS(SLICES_LOG));
  const int parameter = 4 * (block_x() * quads + (thread() & (quads - 1)));
  const bool known = parameter < count;
  const Terms terms = terms_of(known ? parameter : 0, means, hidden, of_logits, of_hidden);
  Quad total = {};
#pragma unroll 1
  for (int first = slice; first < HAKS(BATCH); first += kAtOnce * slices) {
    Quad right[kAtOnce];
    float left[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int image = first + n * slices;
      const bool here = known && image < HAKS(BATCH);
      right[n] = load_quad(terms.right + size_t(image) * terms.right_stride, here);
      left[n] = terms.left == nullptr ? 1.0f : here ? terms.left[size_t(image) * terms.left_stride] : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total.of[i] += left[n] * right[n].of[i];
    }
  }
  float* room = reinterpret_cast<float*>(shared_memory());
  if (slices > 1) {
    quad_at(room + 4 * thread()) = total;
    block_barrier();
    if (slice > 0) return;
    for (int other = 1; other < slices; ++other) {
      const Quad more = quad_at(room + 4 * (thread() + other * quads));
#pragma unroll
      for (int i = 0; i < 4; ++i) total.of[i] += more.of[i];
    }
  }
  if (known) *reinterpret_cast<Quad*>(of_parameters + parameter) = total;
}

// Eight threads share one mean's gradient, a row of squeeze times the gradient behind it; a block has 32 channels.
DEVICE void means_gradient(int block, const float* of_hidden, const float* squeeze, float* of_sums) {
  const int width = HAKS(CHANNELS) / 4, blocks_of_image = HAKS(CHANNELS) / 32, member = thread() % kMembers;
  const int image = divided(8 * block, HAKS(CHANNEL_INVERSE));  // (C / 4 is eight times blocks_of_image)
  const int channel = (block - image * blocks_of_image) * 32 + thread() / kMembers;
  float total = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int unit = 4 * (member + n * kMembers);
    const bool here = unit < width;  // of at most 128
    total += dot(load_quad(squeeze + channel * width + unit, here), load_quad(of_hidden + image * width + unit, here));
  }
  total = warp_sum<kMembers>(total);
  if (member == 0) of_sums[image * HAKS(CHANNELS) + channel] = quotient(total, float(HAKS(HEIGHT) * HAKS(WIDTH)));
}

// The gradients of the parameters, in their order, and of the sums [B, C] that the means were made of.
KERNEL(4)
squeeze_excite_ends(const float* means, const float* hidden, const float* of_logits, const float* of_hidden,
                    const float* all_parameters, float* of_sums, float* of_parameters) {
  if (block_x() < HAKS(WEIGHT_BLOCKS)) {
    parameters_gradient(means, hidden, of_logits, of_hidden, of_parameters);
  } else {
    means_gradient(block_x() - HAKS(WEIGHT_BLOCKS), of_hidden, split(all_parameters).squeeze, of_sums);
  }
}
