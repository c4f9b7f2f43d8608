// The block's gated MLP in bfloat16 on Hopper's matrix units, and its gradient (gated_mlp_cuda.py says what they compute).
//
// The expansion and the depthwise 3 x 3 that follows are one 3 x 3 convolution from C channels to the hidden ones: nine
// products of neighbouring positions with composed factors. Positions are counted with one more at either end of each
// row, which stand for the zeros beyond the border: the neighbours at a distance of one column are then the same
// positions, counted from one further, and 64 positions and their neighbours are three bands of 66, one for each row of
// the kernel. Products read the bands from shared memory where they lie, from each of the nine places.
//
// The bias of the expansion is not seen beyond the border. So the bias that is seen through each tap is a row of a table,
// `edges`, multiplied with a matrix that says which taps lie inside.

#include "hopper.h"

HAKS_NUMBER(PITCH)  // width and two
HAKS_NUMBER(PITCH_INVERSE)  // 2^32 over it, rounded up: the high half of a product with it is a division
HAKS_NUMBER(HEIGHT_INVERSE)
HAKS_NUMBER(TILES)  // of 64 positions
HAKS_NUMBER(HIDDEN)

constexpr int kRows = 64;  // positions at a time
constexpr int kBand = kRows + 2;
constexpr int kTaps = 9;
constexpr int kAlways = 9;             // column of `seen` that is one for each position
constexpr int kHiddenPitch = 65 * 16;  // bytes of eight hidden channels of 64 positions: planes begin in other banks

// Bytes of eight channels of a band, a row of 16 bytes for each position. Threads that write them, eight at a time, have
// C / 8 planes and 64 / C positions each: this many rows keep those in different banks.
template <int C>
constexpr int kPitch = (C == 32 ? kBand : kBand + 1) * 16;

template <int C>
constexpr int kCentre = C / 8 * kPitch<C> + 16;  // where the positions themselves begin, in the middle band

DEVICE int height() { return HAKS(HEIGHT); }
DEVICE int width() { return HAKS(WIDTH); }
DEVICE int pitch() { return HAKS(PITCH); }
DEVICE int num_rows() { return HAKS(BATCH) * HAKS(HEIGHT); }
DEVICE int num_tiles() { return HAKS(TILES); }
DEVICE int hidden() { return HAKS(HIDDEN); }

struct Position {
  int row_of_all, row, column;
  DEVICE bool in_image() const { return row_of_all < num_rows() && unsigned(column) < unsigned(width()); }
  DEVICE int pixel() const { return row_of_all * width() + column; }
};

DEVICE Position position(int index) {  // index: with the two more of each row, from 0
  const int row_of_all = high_product(index, HAKS(PITCH_INVERSE));
  const int row = row_of_all - int(high_product(row_of_all, HAKS(HEIGHT_INVERSE))) * height();
  return {row_of_all, row, index - row_of_all * pitch() - 1};
}

// Asks for three bands of 66 positions from one before `first` on, in planes of eight channels. (Unrolled, so that the
// addresses of several copies are computed at the same time.)
template <int C>
DEVICE void request_bands(uint8_t* bands, const uint16_t* x, int first) {
  constexpr int kPlanes = C / 8, kPlaces = 128 / kPlanes;
  const int plane = thread() % kPlanes;
#pragma unroll
  for (int start = 0; start < kBand; start += kPlaces) {
    const int place = start + thread() % 128 / kPlanes, index = first - 1 + place;
    if (start + kPlaces > kBand && place >= kBand) break;
    const Position at = position(index < 0 ? 0 : index);
    const bool known = index >= 0 && at.in_image();
    const int here = known ? at.pixel() * C + plane * 8 : 0;
    uint8_t* to = bands + plane * kPitch<C> + place * 16;
    const bool above = known && at.row > 0, below = known && at.row + 1 < height();
    request_copy(to, x + (above ? here - width() * C : 0), above);
    request_copy(to + kPlanes * kPitch<C>, x + here, known);
    request_copy(to + 2 * kPlanes * kPitch<C>, x + (below ? here + width() * C : 0), below);
  }
}

// Asks for 64 positions, in planes of eight channels.
template <int C>
DEVICE void request_rows(uint8_t* rows, const uint16_t* x, int first) {
  constexpr int kPlanes = C / 8, kPlaces = 128 / kPlanes;
  const int plane = thread() % kPlanes;
#pragma unroll
  for (int start = 0; start < kRows; start += kPlaces) {
    const int place = start + thread() % 128 / kPlanes;
    const Position at = position(first + place);
    request_copy(rows + plane * kPitch<C> + place * 16, x + (at.in_image() ? at.pixel() * C + plane * 8 : 0),
                 at.in_image());
  }
}

// Bit t says whether tap t of a position lies in the image; bit 9 is always set.
DEVICE uint32_t seen_taps(const Position& at) {
  const uint32_t columns = 2u | (at.column > 0 ? 1u : 0u) | (at.column + 1 < width() ? 4u : 0u);
  return (at.row > 0 ? columns : 0u) | columns << 3 | (at.row + 1 < height() ? columns << 6 : 0u) | 1u << kAlways;
}

DEVICE uint32_t ones(uint32_t bits) { return (bits & 1u) * 0x3f80u | (bits & 2u) * 0x1fc00000u; }

// This thread's part of the matrix [64, 16] that says which taps of a position lie in the image. (Positions that do not
// themselves are nobody's: what is computed for them is not stored, and their gradients are zeros.)
DEVICE void seen_fragment(uint32_t (&seen)[4], const Position& upper, const Position& lower) {
  const uint32_t first = seen_taps(upper) >> thread() % 4 * 2, second = seen_taps(lower) >> thread() % 4 * 2;
  seen[0] = ones(first);
  seen[1] = ones(second);
  seen[2] = ones(first >> 8);
  seen[3] = ones(second >> 8);
}

template <int kSums>
DEVICE void clear(float (&sums)[kSums]) {
#pragma unroll
  for (int n = 0; n < kSums; ++n) sums[n] = 0.0f;
}

template <int C, int N>
struct Factors {  // of N hidden channels, in shared memory: taps, gate, projection, edges; bytes
  static constexpr int kGate = kTaps * C * N * 2, kProject = kGate + C * N * 2;
  static constexpr int kEdges = kProject + C * N * 2, kBytes = kEdges + 16 * N * 2;
};

// Copies `bytes` to shared memory, all threads of the block together; a multiple of 16.
template <int kThreads>
DEVICE void request_factors(uint8_t* place, const uint16_t* from, int bytes) {
  for (int at = thread() * 16; at < bytes; at += kThreads * 16) request_copy(place + at, from + at / 2, true);
}

// sums [64, N] = what the taps of the bands see, and its bias. Taps are [9][C / 8][N][8], edges [2][N][8].
template <int C, int N>
DEVICE void filtered(float (&sums)[N / 2], const uint32_t (&seen)[4], const uint8_t* bands, const uint8_t* factors) {
  constexpr int kPlanes = C / 8;
  const Operand x = operand(bands, kPitch<C>, 128), taps = operand(factors, N * 16, 128);
  multiply<false>(sums, seen, operand(factors + Factors<C, N>::kEdges, N * 16, 128), false);
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
    for (int k = 0; k < C / 16; ++k) {
      multiply<false, false>(sums, moved(x, (tap / 3 * kPlanes + 2 * k) * kPitch<C> + tap % 3 * 16),
                             moved(taps, (tap * kPlanes + 2 * k) * N * 16), true);
    }
  }
}

// sums [64, N] = rows [64, C] times factors [C / 8][N][8].
template <int C, int N>
DEVICE void product(float (&sums)[N / 2], const uint8_t* rows, const uint8_t* factors) {
  const Operand a = operand(rows, kPitch<C>, 128), b = operand(factors, N * 16, 128);
#pragma unroll
  for (int k = 0; k < C / 16; ++k) {
    multiply<false, false>(sums, moved(a, 2 * k * kPitch<C>), moved(b, 2 * k * N * 16), k > 0);
  }
}

// ---- forward: two groups of four warps, each with positions of its own; the factors of all hidden channels stay.

constexpr int kForwardGroups = 2;
constexpr int kForwardHidden = 128;  // hidden channels at a time

template <int C, int kGroup>
DEVICE void forward_group(const uint8_t* weights, const float* biases, uint8_t* bands, const uint16_t* x,
                          const float* project_bias, uint16_t* out) {
  constexpr int N = kForwardHidden, kPlanes = C / 8;
  using At = Factors<C, N>;
  const int lane = thread() % 32, row = thread() / 32 % 4 * 16 + lane / 4, chunks = hidden() / N;
  int tile = block_x() * kForwardGroups + kGroup;
  if (tile < num_tiles()) request_bands<C>(bands, x, tile * kRows);
  for (; tile < num_tiles(); tile += grid_x() * kForwardGroups) {
    const Position upper = position(tile * kRows + row), lower = position(tile * kRows + row + 8);
    uint32_t seen[4];
    seen_fragment(seen, upper, lower);
    await_copies();
    show_to_products();
    group_barrier(1 + kGroup);
    float total[C / 2];
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const uint8_t* factors = weights + chunk * At::kBytes;
      float sums[N / 2], gate[N / 2];
      pin(seen);
      begin_products();
      filtered<C, N>(sums, seen, bands, factors);
      product<C, N>(gate, bands + kCentre<C>, factors + At::kGate);
      end_products();
      await_products();
      pin(sums), pin(gate);
      if (chunk + 1 == chunks) {
        group_barrier(1 + kGroup);  // all four warps have read the bands
        const int next = tile + grid_x() * kForwardGroups;
        if (next < num_tiles()) request_bands<C>(bands, x, next * kRows);
      }
      uint32_t gated[N / 16][4];
      const float* bias = biases + chunk * N + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < N / 2; n += 2) {
        const float b0 = bias[n / 4 * 8], b1 = bias[n / 4 * 8 + 1];
        gated[n / 8][n % 8 / 2] = rounded_pair(sums[n] * (gate[n] + b0), sums[n + 1] * (gate[n + 1] + b1));
      }
      const Operand projection = operand(factors + At::kProject, 128, N * 16);
#pragma unroll
      for (int k = 0; k < N / 16; ++k) pin(gated[k]);
      begin_products();
#pragma unroll
      for (int k = 0; k < N / 16; ++k) multiply<true>(total, gated[k], moved(projection, k * 256), chunk + k > 0);
      end_products();
      await_products();
      pin(total);
    }
#pragma unroll
    for (int j = 0; j < kPlanes; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      const float b0 = project_bias[column], b1 = project_bias[column + 1];
      const uint32_t high = rounded_pair(total[4 * j] + b0, total[4 * j + 1] + b1);
      const uint32_t low = rounded_pair(total[4 * j + 2] + b0, total[4 * j + 3] + b1);
      if (upper.in_image()) store_word(out + upper.pixel() * C + column, high);
      if (lower.in_image()) store_word(out + lower.pixel() * C + column, low);
    }
  }
}

template <int C>
DEVICE void forward(const uint16_t* x, const uint16_t* factors, const float* gate_bias, const float* project_bias,
                    uint16_t* out) {
  constexpr int kThreads = kForwardGroups * 128, kBandsBytes = 3 * C / 8 * kPitch<C>;
  const int group = thread() / 128, chunks = hidden() / kForwardHidden;
  uint8_t* weights = reinterpret_cast<uint8_t*>(shared_memory());
  float* biases = reinterpret_cast<float*>(weights + chunks * Factors<C, kForwardHidden>::kBytes);
  uint8_t* bands = reinterpret_cast<uint8_t*>(biases + hidden());
  request_factors<kThreads>(weights, factors, chunks * Factors<C, kForwardHidden>::kBytes);
  for (int n = thread(); n < hidden(); n += kThreads) biases[n] = gate_bias[n];
  await_copies();
  show_to_products();
  block_barrier();
  // (A constant for each group: what follows from it is the same for all threads, and the compiler knows.)
  if (group == 0) forward_group<C, 0>(weights, biases, bands, x, project_bias, out);
  if (group == 1) forward_group<C, 1>(weights, biases, bands + kBandsBytes, x, project_bias, out);
}

// ---- gradient: a block has 64 hidden channels. Two groups of four warps compute the hidden maps again, 64 positions in
// turns, and the gradients of these. Two others add up the weights' gradients from what the first two leave in shared
// memory, and bring the features of later positions.

constexpr int kHidden = 64;
constexpr int kMapBytes = kHidden / 8 * kHiddenPitch;

template <int C>
struct Slot {  // of shared memory, for 64 positions; bytes
  // What positions see lies behind the third band as two planes more, counted from 32 bytes on, as the right neighbours.
  static constexpr int kBands = 0, kSeen = 3 * C / 8 * kPitch<C> + 32, kGradient = (3 * C / 8 + 2) * kPitch<C>;
  static constexpr int kFiltered = kGradient + C / 8 * kPitch<C>, kGate = kFiltered + kMapBytes;
  static constexpr int kGated = kGate + kMapBytes, kXGradient = kGated + kMapBytes;
  static constexpr int kBytes = kXGradient + C / 8 * kPitch<C>;
  static constexpr int kCount = C == 32 ? 3 : 2;
};

struct Turns {  // of a block: its tiles, and the barriers of its slots
  Barrier* full;    // the features are there
  Barrier* ready;   // the hidden maps are
  Barrier* added;   // the last group has added them up
  Barrier* stored;  // they have been stored
  int count;
  DEVICE int tile(int turn) const { return block_y() + turn * grid_y(); }
};

// A map's fragment to shared memory, in planes of eight channels.
DEVICE void keep_pair(uint8_t* map, int pitch, int j, int row, uint32_t word) {
  *reinterpret_cast<uint32_t*>(map + j * pitch + row * 16 + thread() % 4 * 4) = word;
}

// Stores a slot's map [64, 8 kPlanes] to rows of `columns` numbers.
template <int kPlanes, int kPlaneBytes>
DEVICE void store_rows(uint16_t* out, int columns, const uint8_t* map, int first) {
  const int self = thread_anew() % 128, plane = self % kPlanes;
#pragma unroll 2
  for (int place = self / kPlanes; place < kRows; place += 128 / kPlanes) {
    const Position at = position(first + place);
    if (at.in_image()) {
      store_vector(out + at.pixel() * columns + plane * 8,
                   *reinterpret_cast<const Vector*>(map + plane * kPlaneBytes + place * 16));
    }
  }
}

template <int C, int kGroup>
DEVICE void hidden_gradients(uint8_t* slots, const Turns& turns, const uint8_t* factors, const float* gate_bias,
                             uint16_t* filtered_out, uint16_t* x_out) {
  constexpr int kPlanes = C / 8, kCount = Slot<C>::kCount;
  using At = Slot<C>;
  using Factor = Factors<C, kHidden>;
  const int lane = thread() % 32, row = thread() / 32 % 4 * 16 + lane / 4;
  for (int turn = kGroup; turn < turns.count; turn += 2) {
    const int which = turn % kCount;
    uint8_t* slot = slots + which * At::kBytes;
    uint32_t seen[4];
    const int first = turns.tile(turn) * kRows + row;
    seen_fragment(seen, position(first), position(first + 8));
    await(turns.full + which, turn / kCount);
    show_to_products();
    float sums[32], gate[32], gated_gradient[32];
    pin(seen);
    begin_products();
    filtered<C, kHidden>(sums, seen, slot + At::kBands, factors);
    product<C, kHidden>(gate, slot + At::kBands + kCentre<C>, factors + Factor::kGate);
    product<C, kHidden>(gated_gradient, slot + At::kGradient, factors + Factor::kProject);
    end_products();
    await_products();
    pin(sums), pin(gate), pin(gated_gradient);

    if (turn >= kCount) await(turns.stored + which, turn / kCount - 1);  // the maps that were there before
    uint32_t gate_gradient[4][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* bias = gate_bias + j * 8 + lane % 4 * 2;
      const float bias_0 = bias[0], bias_1 = bias[1];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = 4 * j + 2 * half, at = row + 8 * half;
        const float gate_0 = gate[n] + bias_0, gate_1 = gate[n + 1] + bias_1;
        const float gradient_0 = gated_gradient[n], gradient_1 = gated_gradient[n + 1];
        const uint32_t word = rounded_pair(gradient_0 * sums[n], gradient_1 * sums[n + 1]);
        gate_gradient[j / 2][j % 2 * 2 + half] = word;
        keep_pair(slot + At::kGate, kHiddenPitch, j, at, word);
        keep_pair(slot + At::kFiltered, kHiddenPitch, j, at,
                   rounded_pair(gradient_0 * gate_0, gradient_1 * gate_1));
        keep_pair(slot + At::kGated, kHiddenPitch, j, at, rounded_pair(sums[n] * gate_0, sums[n + 1] * gate_1));
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) keep_pair(slot + At::kSeen, kPitch<C>, n / 2, row + n % 2 * 8, seen[n]);

    float x_gradient[C / 2];
    const Operand gate_factors = operand(factors + Factor::kGate, 128, kHidden * 16);
#pragma unroll
    for (int k = 0; k < 4; ++k) pin(gate_gradient[k]);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply<true>(x_gradient, gate_gradient[k], moved(gate_factors, k * 256), k > 0);
    end_products();
    await_products();
    pin(x_gradient);
#pragma unroll
    for (int n = 0; n < C / 2; n += 2) {
      keep_pair(slot + At::kXGradient, kPitch<C>, n / 4, row + n % 4 * 4,
                 rounded_pair(x_gradient[n], x_gradient[n + 1]));
    }
    show_to_products();
    arrive(turns.ready + which);
    group_barrier(1 + kGroup);
    const int tile = turns.tile(turn) * kRows;
    store_rows<8, kHiddenPitch>(filtered_out + block_x() * kHidden, hidden(), slot + At::kFiltered, tile);
    store_rows<kPlanes, kPitch<C>>(x_out + block_x() * C, grid_x() * C, slot + At::kXGradient, tile);
    arrive(turns.stored + which);
  }
}

// sums [64 hidden channels, N] += map [64 positions, 64]' times rows [64 positions, N], N / 8 planes.
template <int N>
DEVICE void add_products(float (&sums)[N / 2], const uint8_t* map, const uint8_t* rows, int plane_bytes) {
  const Operand a = operand(map, 128, kHiddenPitch), b = operand(rows, 128, plane_bytes);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) multiply<true, true>(sums, moved(a, k * 256), moved(b, k * 256), true);
}

// Sums to [hidden channels, columns].
template <int kSums>
DEVICE void store_sums(float* out, int columns, const float* sums) {
  const int lane = thread() % 32, row = thread() / 32 % 4 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kSums; n += 2) {
    store_pair(out + (row + (n & 2) * 4) * columns + n / 4 * 8 + lane % 4 * 2, sums[n], sums[n + 1]);
  }
}

// The turns of a group that adds up: each waits for the maps, adds, and then does what it says.
template <int C, typename Add, typename Then>
DEVICE void add_up(uint8_t* slots, const Turns& turns, Add add, Then then) {
  constexpr int kCount = Slot<C>::kCount;
  for (int turn = 0; turn < turns.count; ++turn) {
    uint8_t* slot = slots + turn % kCount * Slot<C>::kBytes;
    await(turns.ready + turn % kCount, turn / kCount);
    begin_products();
    add(slot);
    end_products();
    await_products();
    then(turn);
  }
}

template <int C, bool kWithTaps>
DEVICE void gradients(const uint16_t* x, const uint16_t* gradient, const uint16_t* factors, const float* gate_bias,
                      uint16_t* filtered_out, uint16_t* x_out, float* edges_out, float* gate_out, float* gate_edges_out,
                      float* project_out, float* taps_out) {
  constexpr int kCount = Slot<C>::kCount, kBandsPitch = kPitch<C>;
  using At = Slot<C>;
  uint8_t* weights = reinterpret_cast<uint8_t*>(shared_memory());
  float* biases = reinterpret_cast<float*>(weights + Factors<C, kHidden>::kBytes);
  Barrier* barriers = reinterpret_cast<Barrier*>(biases + kHidden);
  uint8_t* slots = reinterpret_cast<uint8_t*>(barriers + 4 * kCount);
  const int chunk = block_x(), group = thread() / 128;
  const int count = block_y() < num_tiles() ? (num_tiles() - block_y() - 1) / grid_y() + 1 : 0;
  const Turns turns = {barriers, barriers + kCount, barriers + 2 * kCount, barriers + 3 * kCount, count};

  request_factors<512>(weights, factors + size_t(chunk) * Factors<C, kHidden>::kBytes / 2, Factors<C, kHidden>::kBytes);
  if (thread() < kHidden) biases[thread()] = gate_bias[chunk * kHidden + thread()];
  if (thread() < kCount) {
    set_up(turns.full + thread(), 256);
    set_up(turns.ready + thread(), 4);
    set_up(turns.added + thread(), 4);
    set_up(turns.stored + thread(), 4);
  }
  await_copies();
  show_to_products();
  block_barrier();

  const size_t first = (size_t(block_y()) * grid_x() + chunk) * kHidden;  // hidden channel of this program's sums
  const auto add_gate = [&](float(&sums)[C / 2], uint8_t* slot) {
    add_products<C>(sums, slot + At::kGate, slot + At::kBands + kCentre<C>, kBandsPitch);
  };
  if (group == 0) hidden_gradients<C, 0>(slots, turns, weights, biases, filtered_out, x_out);
  if (group == 1) hidden_gradients<C, 1>(slots, turns, weights, biases, filtered_out, x_out);
  if (group == 2) {
    const auto bring = [&](int turn) {
      if (turn >= count) return;
      request_bands<C>(slots + turn % kCount * At::kBytes + At::kBands, x, turns.tile(turn) * kRows);
      arrive_after_copies(turns.full + turn % kCount);
    };
    const auto bring_later = [&](int turn) {
      group_barrier(3);  // all of this group have added
      await(turns.added + turn % kCount, turn / kCount);
      bring(turn + kCount);
    };
    for (int turn = 0; turn < kCount; ++turn) bring(turn);
    if constexpr (kWithTaps) {
      float left[48], middle[48];
      clear(left), clear(middle);
      add_up<C>(slots, turns, [&](uint8_t* slot) {
        add_products<96>(left, slot + At::kFiltered, slot + At::kBands, kBandsPitch);
        add_products<96>(middle, slot + At::kFiltered, slot + At::kBands + 16, kBandsPitch);
      }, bring_later);
      store_sums<48>(taps_out + first * 9 * C, 9 * C, left);
      store_sums<48>(taps_out + first * 9 * C + 3 * C, 9 * C, middle);
    } else {
      float gate[C / 2];
      clear(gate);
      add_up<C>(slots, turns, [&](uint8_t* slot) { add_gate(gate, slot); }, bring_later);
      store_sums<C / 2>(gate_out + first * C, C, gate);
    }
  }
  if (group == 3) {
    const auto bring = [&](int turn) {
      if (turn >= count) return;
      request_rows<C>(slots + turn % kCount * At::kBytes + At::kGradient, gradient, turns.tile(turn) * kRows);
      arrive_after_copies(turns.full + turn % kCount);
    };
    const auto bring_later = [&](int turn) {
      arrive(turns.added + turn % kCount);
      group_barrier(4);
      bring(turn + kCount);
    };
    for (int turn = 0; turn < kCount; ++turn) bring(turn);
    constexpr int kTapSums = kWithTaps ? 48 : 0;
    float project[C / 2], gate[C / 2], gate_edges[4], edges[8 + kTapSums];  // the edges' after the right neighbours'
    clear(project), clear(gate), clear(gate_edges), clear(edges);
    add_up<C>(slots, turns, [&](uint8_t* slot) {
      const uint8_t* seen = slot + At::kSeen;
      add_products<16 + 2 * kTapSums>(edges, slot + At::kFiltered, seen - 2 * kTapSums / 8 * kBandsPitch, kBandsPitch);
      add_products<8>(gate_edges, slot + At::kGate, seen + kBandsPitch, kBandsPitch);
      add_products<C>(project, slot + At::kGated, slot + At::kGradient, kBandsPitch);
      if constexpr (kWithTaps) add_gate(gate, slot);
    }, bring_later);
    store_sums<C / 2>(project_out + first * C, C, project);
    store_sums<kTapSums>(taps_out + first * 9 * C + 6 * C, 9 * C, edges);
    store_sums<8>(edges_out + first * 16, 16, edges + kTapSums);
    if constexpr (kWithTaps) store_sums<C / 2>(gate_out + first * C, C, gate);
    store_sums<4>(gate_edges_out + first * 8, 8, gate_edges);
  }
}

KERNEL_OF(256) gated_mlp_32(const uint16_t* x, const uint16_t* factors, const float* gate_bias,
                            const float* project_bias, uint16_t* out) {
  forward<32>(x, factors, gate_bias, project_bias, out);
}

KERNEL_OF(512) gated_mlp_gradient_32(const uint16_t* x, const uint16_t* gradient, const uint16_t* factors,
                                     const float* gate_bias, uint16_t* filtered_out, uint16_t* x_out, float* edges_out,
                                     float* gate_out, float* gate_edges_out, float* project_out, float* taps_out) {
  gradients<32, true>(x, gradient, factors, gate_bias, filtered_out, x_out, edges_out, gate_out, gate_edges_out,
                      project_out, taps_out);
}

KERNEL_OF(512) gated_mlp_gradient_64(const uint16_t* x, const uint16_t* gradient, const uint16_t* factors,
                                     const float* gate_bias, uint16_t* filtered_out, uint16_t* x_out, float* edges_out,
                                     float* gate_out, float* gate_edges_out, float* project_out) {
  gradients<64, false>(x, gradient, factors, gate_bias, filtered_out, x_out, edges_out, gate_out, gate_edges_out,
                       project_out, nullptr);
}
