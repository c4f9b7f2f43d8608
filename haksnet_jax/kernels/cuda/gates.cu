// The gradient of kernel selection's mixture, which is a sum of four maps with weights for each position: the products of
// the mixture's gradient with each map, summed over the channels, and what follows from those sums alone.
//
// Neighbouring threads share a position, each reads every fourth or eighth vector of eight channels, of all five maps at
// once. Each thread has one position alone: what keeps the memory busy is many blocks, not what one does after another.

#include "target.h"

HAKS_NUMBER(MEMBERS_LOG)  // 2 or 3: 4 or 8 threads share a position

constexpr int kThreads = 256;

DEVICE float dot(const Vector& a, const Vector& b) {
  float total = 0;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    total += low_number(a.word[p]) * low_number(b.word[p]);
    total += high_number(a.word[p]) * high_number(b.word[p]);
  }
  return total;
}

// Adds the four sums of all threads of a position, and gives each of them the one with the number of its two lowest bits.
DEVICE float own_sum(const float (&sums)[4]) {
  const bool odd = thread() & 1, upper = thread() & 2;
  const float low = (odd ? sums[1] : sums[0]) + shuffle_xor(odd ? sums[0] : sums[1], 1);
  const float high = (odd ? sums[3] : sums[2]) + shuffle_xor(odd ? sums[2] : sums[3], 1);
  const float own = (upper ? high : low) + shuffle_xor(upper ? low : high, 2);
  return HAKS(MEMBERS_LOG) == 2 ? own : own + shuffle_xor(own, 4);
}

// A position's weights are the products of spatial [B, positions, 4], a sigmoid, and kernel [B, 4]. Writes the gradient of
// what the sigmoid is of, and for each block [B, 4, blocks] the sums of the weights' gradients times spatial, and of what
// the sigmoid is of.
KERNEL(5)
gates_gradient(const uint16_t* gradient, const uint16_t* map_1, const uint16_t* map_2, const uint16_t* map_3,
               const uint16_t* map_4, const uint16_t* spatial, const float* kernel, uint16_t* of_logits,
               float* of_kernel, float* of_bias) {
  const int members = 1 << HAKS(MEMBERS_LOG), member = thread() & (members - 1), which = thread() & 3;
  const int image = block_y(), positions = HAKS(HEIGHT) * HAKS(WIDTH);
  const int position_of_image = (block_x() * kThreads + thread()) >> HAKS(MEMBERS_LOG);
  const bool here = position_of_image < positions;
  const size_t position = size_t(image) * positions + position_of_image;
  const uint32_t pair = load_pair(spatial + position * 4 + (which & 2), here);
  const float own_kernel = kernel[image * 4 + which];
  float sums[4] = {};
  for (int first = 0; first < HAKS(CHANNELS); first += 8 * members) {
    const int channel = first + 8 * member;
    const bool known = here && channel < HAKS(CHANNELS);
    const size_t place = position * HAKS(CHANNELS) + channel;
    const Vector of_mixed = load_vector(gradient + place, known);
    const Vector maps[4] = {load_vector(map_1 + place, known), load_vector(map_2 + place, known),
                            load_vector(map_3 + place, known), load_vector(map_4 + place, known)};
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += dot(of_mixed, maps[i]);
  }
  const float own = own_sum(sums), gate = which & 1 ? high_number(pair) : low_number(pair);
  const float of_logit = own * own_kernel * gate * (1 - gate);
  const float of_next = shuffle_xor(of_logit, 1);
  if (here && member < 4 && member % 2 == 0) store_pair(of_logits + position * 4 + member, of_logit, of_next);
  float totals[2] = {member < 4 ? own * gate : 0.0f, member < 4 ? of_logit : 0.0f};
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
    totals[0] += shuffle_xor(totals[0], distance);
    totals[1] += shuffle_xor(totals[1], distance);
  }
  float* shared = reinterpret_cast<float*>(shared_memory());  // [warps, 8]
  const int lane = thread() % 32;
  if (lane < 8) shared[thread() / 32 * 8 + lane] = lane < 4 ? totals[0] : totals[1];
  block_barrier();
  if (thread() < 8) {
    float total = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) total += shared[warp * 8 + thread()];
    float* out = thread() < 4 ? of_kernel : of_bias;
    out[(size_t(image) * 4 + which) * grid_x() + block_x()] = total;
  }
}
