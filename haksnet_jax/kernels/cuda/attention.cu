// What kernel selection makes of the sums that the blocks of its four convolutions leave: the means over the channels, of
// which a convolution 7 x 7 makes the weights of each position, and from the means over the positions the weights of the
// four kernels, the softmax of two dense layers, 4 C -> 4 and 4 -> 4, with a ReLU between. And the layers' gradient.
//
// All of it is little work, and a launch costs as much as the work does: one forward, one for the gradient. They also
// arrange the weights of the convolution 7 x 7, and add what blocks left of its gradient. The first blocks forward have an
// image's layers each, then one has that convolution's weights, the others have positions. Gradients of the layers'
// parameters are sums over images: a block has some of the parameters and all images, and computes for itself what it
// needs of them.
//
// All sums are float32, in the same order in every run.

#include "target.h"

HAKS_NUMBER(BLOCKS)          // which left sums over positions, for each image
HAKS_NUMBER(CHANNEL_BLOCKS)  // which left sums over channels, for each position
HAKS_NUMBER(PARTS_LOG)       // so many threads, a power of two, add the blocks' sums of a channel
HAKS_NUMBER(FIRST)           // where the layers' parameters begin in their array, and those of the convolution 7 x 7 behind
HAKS_NUMBER(FUSION_BLOCKS)   // which left sums of the gradient of its kernel

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kLayersBehind = 24;  // parameters of the layers behind the first kernel: 4, 4 x 4, 4
constexpr int kImages = 128;       // whose layers' gradients a block holds at once
constexpr int kColumns = 128;      // of a block: rows of the first layer's kernel
constexpr int kParts = kThreads / kColumns;
constexpr int kSide = 7, kFour = 4;  // of the convolution's kernel [7, 7, 4, 4]
constexpr int kFusion = kSide * kSide * kFour * kFour;

DEVICE int columns() { return 4 * HAKS(CHANNELS); }
DEVICE int positions() { return HAKS(HEIGHT) * HAKS(WIDTH); }

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) value += shuffle_xor(value, distance);
  return value;
}

DEVICE const float* one_of(const float* a, const float* b, const float* c, const float* d, int which) {
  return which < 2 ? (which == 0 ? a : b) : (which == 2 ? c : d);
}

// One position: from sums [B, CHANNEL_BLOCKS, H, W] of each convolution to means [B, H, W, 4].
DEVICE void channel_means(const float* sums_3, const float* sums_5, const float* sums_7, const float* sums_9,
                          uint16_t* means) {
  const int blocks = (positions() + kThreads - 1) / kThreads, index = block_x() - HAKS(BATCH) - 1;
  const int image = unsigned(index) / blocks, position = (index - image * blocks) * kThreads + thread();
  if (position >= positions()) return;
  const size_t first = size_t(image) * HAKS(CHANNEL_BLOCKS) * positions() + position;
  float totals[4] = {};
#pragma unroll 4
  for (int block = 0; block < HAKS(CHANNEL_BLOCKS); ++block) {
    const size_t place = first + size_t(block) * positions();
    totals[0] += sums_3[place];
    totals[1] += sums_5[place];
    totals[2] += sums_7[place];
    totals[3] += sums_9[place];
  }
  const float channels = HAKS(CHANNELS);
  uint16_t* place = means + (size_t(image) * positions() + position) * 4;
  store_pair(place, quotient(totals[0], channels), quotient(totals[1], channels));
  store_pair(place + 2, quotient(totals[2], channels), quotient(totals[3], channels));
}

// One image: from sums [B, BLOCKS, C] of each convolution to means [B, 4 C], the hidden layer [B, 4] and weights [B, 4].
DEVICE void kernel_weights(const float* sums_3, const float* sums_5, const float* sums_7, const float* sums_9,
                           const float* parameters, float* means, float* hidden_out, float* weights_out) {
  const int image = block_x(), lane = thread() % 32, warp = thread() / 32;
  const int items = columns() << HAKS(PARTS_LOG), parts = 1 << HAKS(PARTS_LOG);
  const float* kernel_1 = parameters + HAKS(FIRST);
  float* of_items = reinterpret_cast<float*>(shared_memory());
  float* of_warps = of_items + items;                          // [warps, 4]
  float* bias_1 = of_warps + 4 * kWarps;                       // here for when the sums are there
  const float *kernel_2 = bias_1 + 4, *bias_2 = kernel_2 + 16;
  if (thread() < kLayersBehind) bias_1[thread()] = kernel_1[4 * columns() + thread()];
  float products[4] = {};
  for (int item = thread(); item < items; item += kThreads) {
    const int part = unsigned(item) / columns(), column = item - part * columns();
    const int which = unsigned(column) / HAKS(CHANNELS), channel = column - which * HAKS(CHANNELS);
    const float* sums = one_of(sums_3, sums_5, sums_7, sums_9, which);
    const float* place = sums + size_t(image) * HAKS(BLOCKS) * HAKS(CHANNELS) + channel;
    float total = 0;
#pragma unroll 8
    for (int block = part; block < HAKS(BLOCKS); block += parts) total += place[size_t(block) * HAKS(CHANNELS)];
    of_items[item] = total;
#pragma unroll
    for (int i = 0; i < 4; ++i) products[i] += total * kernel_1[column * 4 + i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float total = warp_sum(products[i]);
    if (lane == 0) of_warps[warp * 4 + i] = total;
  }
  block_barrier();
  for (int column = thread(); column < columns(); column += kThreads) {
    float total = 0;
    for (int part = 0; part < parts; ++part) total += of_items[part * columns() + column];
    means[size_t(image) * columns() + column] = quotient(total, positions());
  }
  if (warp > 0) return;
  float hidden[4], logits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = quotient(warp_sum(of_warps[lane * 4 + i]), positions()) + bias_1[i];
    hidden[i] = sum < 0 ? 0.0f : sum;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    logits[j] = bias_2[j];
#pragma unroll
    for (int i = 0; i < 4; ++i) logits[j] += hidden[i] * kernel_2[i * 4 + j];
  }
  float largest = logits[0], total = 0;
#pragma unroll
  for (int j = 1; j < 4; ++j) largest = logits[j] > largest ? logits[j] : largest;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    logits[j] = exponential(logits[j] - largest);
    total += logits[j];
  }
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      hidden_out[image * 4 + i] = hidden[i];
      weights_out[image * 4 + i] = quotient(logits[i], total);
    }
  }
}

// Pairs of numbers of [7, 2, 32, 4], as `arranged` of narrow_conv_cuda.py describes them, of the convolution's kernel as it
// is, and turned by 180 degrees with its inputs as outputs.
DEVICE void arrange(const float* kernel, uint16_t* as_is, uint16_t* turned) {
  constexpr int kPairs = kSide * 2 * 32 * 2;
  for (int n = thread(); n < 2 * kPairs; n += kThreads) {
    const int index = n % kPairs, half = index % 2, lane = index / 2 % 32, instruction = index / 64 % 2;
    const int row = index / 128, column = 4 * half + 2 * instruction + lane % 4 / 2 - lane / 16;
    const int output = lane / 4 % 4, input = lane % 2 * 2;
    float pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tap = row * kSide + column;
      const int place = n < kPairs ? (tap * kFour + input + i) * kFour + output
                                   : ((kSide * kSide - 1 - tap) * kFour + output) * kFour + input + i;
      pair[i] = unsigned(column) < kSide ? kernel[place] : 0.0f;
    }
    store_pair((n < kPairs ? as_is : turned) + 2 * index, pair[0], pair[1]);
  }
}

WIDE_KERNEL attention(const float* positions_3, const float* positions_5, const float* positions_7,
                      const float* positions_9, const float* channels_3, const float* channels_5,
                      const float* channels_7, const float* channels_9, const float* parameters,
                      uint16_t* means_over_channels, float* means, float* hidden, float* weights,
                      uint16_t* fusion, uint16_t* fusion_turned) {
  if (block_x() < HAKS(BATCH)) {
    kernel_weights(positions_3, positions_5, positions_7, positions_9, parameters, means, hidden, weights);
  } else if (block_x() == HAKS(BATCH)) {
    arrange(parameters + HAKS(FIRST) + 4 * columns() + kLayersBehind, fusion, fusion_turned);
  } else {
    channel_means(channels_3, channels_5, channels_7, channels_9, means_over_channels);
  }
}

// From the blocks' sums of the weights' gradients [B, 4, BLOCKS] to the gradients of the means [B, 4 C] and of the layers'
// parameters.
DEVICE void layers_gradient(const float* of_weights, const float* weights, const float* hidden, const float* means,
                            const float* parameters, float* of_means, float* of_parameters) {
  const int lane = thread() % 32, warp = thread() / 32, part = thread() / kColumns;
  const int column = block_x() * kColumns + thread() % kColumns;
  const bool known = column < columns();
  const float* kernel_1 = parameters + HAKS(FIRST);
  const float* kernel_2 = kernel_1 + 4 * columns() + 4;
  float* gradients = reinterpret_cast<float*>(shared_memory());  // [images, 4] of the weights, then of the logits
  float* of_hidden = gradients + 4 * kImages;                    // [images, 4] before the ReLU
  float* hidden_here = of_hidden + 4 * kImages;                  // [images, 4]
  float* of_parts = hidden_here + 4 * kImages;                   // [parts, 4, columns]
  float row[4], sums[4] = {}, own_sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) row[i] = known ? kernel_1[column * 4 + i] : 0.0f;
  for (int first = 0; first < HAKS(BATCH); first += kImages) {
    const int images = HAKS(BATCH) - first < kImages ? HAKS(BATCH) - first : kImages;
    for (int n = warp; n < 4 * images; n += kWarps) {
      const float* place = of_weights + (size_t(first) * 4 + n) * HAKS(BLOCKS);
      float total = 0;
#pragma unroll 16
      for (int block = lane; block < HAKS(BLOCKS); block += 32) total += place[block];
      total = warp_sum(total);
      if (lane == 0) gradients[n] = total;
    }
    block_barrier();
    if (thread() < images) {
      const size_t place = (size_t(first) + thread()) * 4;
      float* own = gradients + thread() * 4;
      float inner = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) inner += own[j] * weights[place + j];
#pragma unroll
      for (int j = 0; j < 4; ++j) own[j] = (own[j] - inner) * weights[place + j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float total = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) total += own[j] * kernel_2[i * 4 + j];
        hidden_here[thread() * 4 + i] = hidden[place + i];
        of_hidden[thread() * 4 + i] = hidden[place + i] > 0 ? total : 0.0f;
      }
    }
    block_barrier();
    for (int image = part; image < images; image += kParts) {
      const size_t place = (size_t(first) + image) * columns() + column;
      const float mean = known ? means[place] : 0.0f;
      float total = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] += mean * of_hidden[image * 4 + i];
        total += row[i] * of_hidden[image * 4 + i];
      }
      if (known) of_means[place] = total;
    }
    // The parameters behind the first kernel, in the last warp: two biases, and the second kernel between.
    if (block_x() == 0 && warp == kWarps - 1 && lane < kLayersBehind) {
      const int i = (lane - 4) / 4, j = lane % 4;
      for (int image = 0; image < images; ++image) {
        const float of_logit = gradients[image * 4 + j];
        own_sum += lane < 4 ? of_hidden[image * 4 + j] : lane < 20 ? hidden_here[image * 4 + i] * of_logit : of_logit;
      }
    }
    block_barrier();
  }
  if (block_x() == 0 && warp == kWarps - 1 && lane < kLayersBehind) of_parameters[4 * columns() + lane] = own_sum;
#pragma unroll
  for (int i = 0; i < 4; ++i) of_parts[(part * 4 + i) * kColumns + thread() % kColumns] = sums[i];
  block_barrier();
  const int of_block = thread() / 4, i = thread() % 4;
  if (of_block < kColumns && block_x() * kColumns + of_block < columns()) {
    float total = 0;
#pragma unroll
    for (int n = 0; n < kParts; ++n) total += of_parts[(n * 4 + i) * kColumns + of_block];
    of_parameters[block_x() * kColumns * 4 + thread()] = total;
  }
}

// Adds 32 of the numbers that blocks left of the gradient of the convolution's kernel in [FUSION_BLOCKS, 7, 7, 4, 4]: each
// warp those of every 32nd block.
DEVICE void fusion_gradient(const float* sums, int first, float* of_kernel) {
  const int lane = thread() % 32, warp = thread() / 32;
  const bool known = first + lane < kFusion;
  float total = 0;
#pragma unroll 8
  for (int block = warp; block < HAKS(FUSION_BLOCKS); block += kWarps) {
    if (known) total += sums[size_t(block) * kFusion + first + lane];
  }
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  of_warps[thread()] = total;
  block_barrier();
  if (warp == 0 && known) {
#pragma unroll
    for (int n = 1; n < kWarps; ++n) total += of_warps[n * 32 + lane];
    of_kernel[first + lane] = total;
  }
}

// Adds what blocks left of the gradient of its bias in [B, 4, BLOCKS].
DEVICE void bias_gradient(const float* sums, float* of_bias) {
  constexpr int kTogether = kThreads / 4;  // threads for each of the four
  const int which = thread() / kTogether;
  float total = 0;
#pragma unroll 8
  for (int n = thread() % kTogether; n < HAKS(BATCH) * HAKS(BLOCKS); n += kTogether) {
    const int image = unsigned(n) / HAKS(BLOCKS), block = n - image * HAKS(BLOCKS);
    total += sums[(size_t(image) * 4 + which) * HAKS(BLOCKS) + block];
  }
  total = warp_sum(total);
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  if (thread() % 32 == 0) of_warps[thread() / 32] = total;
  block_barrier();
  if (thread() < 4) {
    total = 0;
#pragma unroll
    for (int n = 0; n < kWarps / 4; ++n) total += of_warps[thread() * (kWarps / 4) + n];
    of_bias[thread()] = total;
  }
}

// The gradients of parameters lie behind each other: the layers', the convolution's kernel, its bias.
WIDE_KERNEL attention_gradient(const float* of_weights, const float* of_logits, const float* of_fusion,
                               const float* weights, const float* hidden, const float* means, const float* parameters,
                               float* of_means, float* of_parameters) {
  const int beyond = block_x() - (columns() + kColumns - 1) / kColumns;
  float* of_kernel = of_parameters + 4 * columns() + kLayersBehind;
  if (beyond < 0) {
    layers_gradient(of_weights, weights, hidden, means, parameters, of_means, of_parameters);
  } else if (beyond == 0) {
    bias_gradient(of_logits, of_kernel + kFusion);
  } else {
    fusion_gradient(of_fusion, (beyond - 1) * 32, of_kernel);
  }
}
