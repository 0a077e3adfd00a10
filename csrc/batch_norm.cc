#include "batch_norm.h"

#include <algorithm>
#include <cmath>

#include "clones.h"
#include "parallel.h"

namespace tfmeta {
namespace {

// As many channels at a time as leave all sums in the first level of the cache.
constexpr std::int64_t kChannels = 64;

// Below this many numbers a thread costs more than it saves.
constexpr std::int64_t kNumbersPerThread = 1 << 15;

// The sums of a stretch of rows are added to those of the stretches before, in double precision: a
// sum of thousands of single-precision numbers one by one would lose digits.
constexpr std::int64_t kStretch = 64;

// Rows lie so far apart that the processor does not foresee them: their lines are asked for so many
// rows before their use. A line has kLine numbers.
constexpr std::int64_t kAhead = 8, kLine = 16;

// Of some channels, what all rows have in common; `x` is of x − mean, and `a` of the second
// derivative only.
template <typename T>
struct Sums {
  T x[kChannels] = {}, dy[kChannels] = {}, dy_x[kChannels] = {};
  T a[kChannels] = {}, a_x[kChannels] = {}, a_dy[kChannels] = {};
};

// The rows `first` to `last` of some channels.
struct Block {
  std::int64_t first, last, stride, channels;
};

// Asks for a row that is read soon.
inline void Ask(const float* x, std::int64_t row, const Block& block) {
  const float* const ahead = x + std::min(row + kAhead, block.last - 1) * block.stride;
  for (std::int64_t c = 0; c < block.channels; c += kLine) __builtin_prefetch(ahead + c);
}

// What is needed for mean and variance: the sums of x − origin and of its square.
struct Moments {
  float origin[kChannels];
  double x[kChannels] = {}, square[kChannels] = {};
};

// So many rows tell about where the middle is.
constexpr std::int64_t kSome = 16;

// So many rows are added as a tree before the sum is made a double: of equal numbers that is exact.
constexpr std::int64_t kTree = 8;

TFMETA_CLONES void AddMoments(const Block& block, const float* __restrict x,
                              Moments* __restrict s) {
  const std::int64_t next = block.stride;
  std::int64_t r = block.first;
  for (; r + kTree <= block.last; r += kTree) {
    for (std::int64_t i = 0; i < kTree; ++i) Ask(x, r + i, block);
    const float* const row = x + r * next;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      const float* const at = row + c;
      const float origin = s->origin[c];
      const float a = at[0] - origin, b = at[next] - origin;
      const float d = at[2 * next] - origin, e = at[3 * next] - origin;
      const float f = at[4 * next] - origin, g = at[5 * next] - origin;
      const float h = at[6 * next] - origin, i = at[7 * next] - origin;
      s->x[c] += ((a + b) + (d + e)) + ((f + g) + (h + i));
      s->square[c] += ((a * a + b * b) + (d * d + e * e)) + ((f * f + g * g) + (h * h + i * i));
    }
  }
  for (; r < block.last; ++r) {
    const float* const row = x + r * next;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      const float centred = row[c] - s->origin[c];
      s->x[c] += centred;
      s->square[c] += centred * centred;
    }
  }
}

// y = k[0] (x − mean) + k[1]
TFMETA_CLONES void Normalise(const Block& block, const float* __restrict x,
                             const float* __restrict mean, const float (*__restrict k)[kChannels],
                             float* __restrict y) {
  for (std::int64_t r = block.first; r < block.last; ++r) {
    const float* const row = x + r * block.stride;
    float* const to_row = y + r * block.stride;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      to_row[c] = k[0][c] * (row[c] - mean[c]) + k[1][c];
    }
  }
}

TFMETA_CLONES void AddFirst(const Block& block, const float* __restrict x,
                            const float* __restrict dy, const float* __restrict mean,
                            Sums<float>* __restrict s) {
  for (std::int64_t r = block.first; r < block.last; ++r) {
    Ask(x, r, block), Ask(dy, r, block);
    const float *const row = x + r * block.stride, *const dy_row = dy + r * block.stride;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      const float centred = row[c] - mean[c];
      s->x[c] += centred;
      s->dy[c] += dy_row[c];
      s->dy_x[c] += dy_row[c] * centred;
    }
  }
}

TFMETA_CLONES void AddSecond(const Block& block, const float* __restrict x,
                             const float* __restrict dy, const float* __restrict a,
                             const float* __restrict mean, Sums<float>* __restrict s) {
  for (std::int64_t r = block.first; r < block.last; ++r) {
    Ask(x, r, block), Ask(dy, r, block), Ask(a, r, block);
    const float *const row = x + r * block.stride, *const dy_row = dy + r * block.stride;
    const float* const a_row = a + r * block.stride;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      const float centred = row[c] - mean[c];
      s->x[c] += centred;
      s->dy[c] += dy_row[c];
      s->dy_x[c] += dy_row[c] * centred;
      s->a[c] += a_row[c];
      s->a_x[c] += a_row[c] * centred;
      s->a_dy[c] += a_row[c] * dy_row[c];
    }
  }
}

// to_x = k[0] dy + k[1] (x − mean) + k[2]
TFMETA_CLONES void CombineFirst(const Block& block, const float* __restrict x,
                                const float* __restrict dy, const float* __restrict mean,
                                const float (*__restrict k)[kChannels], float* __restrict to_x) {
  for (std::int64_t r = block.first; r < block.last; ++r) {
    const float *const row = x + r * block.stride, *const dy_row = dy + r * block.stride;
    float* const to_row = to_x + r * block.stride;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      to_row[c] = k[0][c] * dy_row[c] + k[1][c] * (row[c] - mean[c]) + k[2][c];
    }
  }
}

// to_dy = k[0] a + k[1] (x − mean) + k[2];  to_x = k[3] a + k[4] dy + k[5] (x − mean) + k[6]
TFMETA_CLONES void CombineSecond(const Block& block, const float* __restrict x,
                                 const float* __restrict dy, const float* __restrict a,
                                 const float* __restrict mean,
                                 const float (*__restrict k)[kChannels], float* __restrict to_dy,
                                 float* __restrict to_x) {
  for (std::int64_t r = block.first; r < block.last; ++r) {
    const std::int64_t at = r * block.stride;
    for (std::int64_t c = 0; c < block.channels; ++c) {
      const float centred = x[at + c] - mean[c];
      to_dy[at + c] = k[0][c] * a[at + c] + k[1][c] * centred + k[2][c];
      to_x[at + c] = k[3][c] * a[at + c] + k[4][c] * dy[at + c] + k[5][c] * centred + k[6][c];
    }
  }
}

// Sums of all rows, those of a stretch by add(block, &sums).
//
// The mean that is handed in is a sum of thousands of numbers, and may be off by so much that
// products of x − mean show it: `x` becomes by how much, and the products what they would have
// been.
template <typename Adder>
Sums<double> Total(const BatchNorm& norm, std::int64_t channels, const Adder& add) {
  Sums<double> total;
  for (std::int64_t r = 0; r < norm.rows; r += kStretch) {
    Sums<float> part;
    add({r, std::min(r + kStretch, norm.rows), norm.channels, channels}, &part);
    for (std::int64_t c = 0; c < channels; ++c) {
      total.x[c] += part.x[c];
      total.dy[c] += part.dy[c];
      total.dy_x[c] += part.dy_x[c];
      total.a[c] += part.a[c];
      total.a_x[c] += part.a_x[c];
      total.a_dy[c] += part.a_dy[c];
    }
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    total.x[c] /= static_cast<double>(norm.rows);
    total.dy_x[c] -= total.x[c] * total.dy[c];
    total.a_x[c] -= total.x[c] * total.a[c];
  }
  return total;
}

// Calls body(first, channels) for parts of the channels, which may run at once.
template <typename Body>
void ForChannels(const BatchNorm& norm, int threads, const Body& body) {
  const std::int64_t turns = (norm.channels + kChannels - 1) / kChannels;
  const std::int64_t most =
      std::max<std::int64_t>(1, norm.rows * norm.channels / kNumbersPerThread);
  ParallelFor(turns, std::min<std::int64_t>({threads, turns, most}),
              [&](std::int64_t turn, std::int64_t) {
                const std::int64_t first = turn * kChannels;
                body(first, std::min(kChannels, norm.channels - first));
              });
}

}  // namespace

void BatchNorm::Forward(const float* beta, float* y, float* to_mean, float* to_variance,
                        int threads) const {
  ForChannels(*this, threads, [&](std::int64_t first, std::int64_t n) {
    const Block block = {0, rows, channels, n};
    Moments s;
    // Squares of numbers far from zero would leave no digits of the variance: their middle is about
    // that of some rows. Where all are equal it is just that.
    const std::int64_t some = std::min(rows, kSome);
    for (std::int64_t c = 0; c < n; ++c) {
      double sum = 0;
      for (std::int64_t i = 0; i < some; ++i) sum += x[i * rows / some * channels + first + c];
      s.origin[c] = some > 0 ? static_cast<float>(sum / static_cast<double>(some)) : 0.0f;
    }
    AddMoments(block, x + first, &s);
    float k[2][kChannels];
    for (std::int64_t c = 0; c < n; ++c) {
      const double shift = s.x[c] / static_cast<double>(rows);
      const double square = s.square[c] / static_cast<double>(rows) - shift * shift;
      const double middle = s.origin[c] + shift, spread = square < 0 ? 0 : square;
      const double weight = gamma[first + c] / std::sqrt(spread + epsilon);
      to_mean[first + c] = static_cast<float>(middle);
      to_variance[first + c] = static_cast<float>(spread);
      k[0][c] = static_cast<float>(weight);
      k[1][c] = static_cast<float>(beta[first + c] - weight * (middle - to_mean[first + c]));
    }
    Normalise(block, x + first, to_mean + first, k, y + first);
  });
}

void BatchNorm::First(float* to_x, float* to_gamma, float* to_beta, int threads) const {
  if (rows == 0) {  // which have no variance
    std::fill_n(to_gamma, channels, 0.0f);
    std::fill_n(to_beta, channels, 0.0f);
    return;
  }
  const double count = static_cast<double>(rows);
  ForChannels(*this, threads, [&](std::int64_t first, std::int64_t n) {
    const float *const at = x + first, *const dy_at = dy + first, *const middle = mean + first;
    const Sums<double> s = Total(*this, n, [&](const Block& block, Sums<float>* sums) {
      AddFirst(block, at, dy_at, middle, sums);
    });
    float k[3][kChannels];
    for (std::int64_t c = 0; c < n; ++c) {
      const double scale = 1.0 / std::sqrt(double{variance[first + c]} + epsilon);
      const double weight = gamma[first + c] * scale;
      to_beta[first + c] = s.dy[c];
      to_gamma[first + c] = s.dy_x[c] * scale;
      k[0][c] = weight;
      k[1][c] = -weight * scale * scale * s.dy_x[c] / count;
      k[2][c] = -weight * s.dy[c] / count - k[1][c] * s.x[c];
    }
    CombineFirst({0, rows, channels, n}, at, dy_at, middle, k, to_x + first);
  });
}

void BatchNorm::Second(const float* a, const float* p, const float* q, float* to_dy, float* to_x,
                       float* to_gamma, int threads) const {
  if (rows == 0) {
    std::fill_n(to_gamma, channels, 0.0f);
    return;
  }
  const double count = static_cast<double>(rows);
  ForChannels(*this, threads, [&](std::int64_t first, std::int64_t n) {
    const float *const at = x + first, *const dy_at = dy + first, *const a_at = a + first;
    const float* const middle = mean + first;
    const Sums<double> s = Total(*this, n, [&](const Block& block, Sums<float>* sums) {
      AddSecond(block, at, dy_at, a_at, middle, sums);
    });
    float k[7][kChannels];
    for (std::int64_t c = 0; c < n; ++c) {
      const double scale = 1.0 / std::sqrt(double{variance[first + c]} + epsilon);
      const double weight = gamma[first + c] * scale;
      const double a_normal = s.a_x[c] * scale, dy_normal = s.dy_x[c] * scale;
      const double a_mean = s.a[c] / count, dy_mean = s.dy[c] / count;
      const double all = s.a_dy[c] - s.a[c] * dy_mean - a_normal * dy_normal / count;
      to_gamma[first + c] = scale * all;
      // What is multiplied by x̂ is multiplied by x − mean and by the scale.
      k[0][c] = weight;
      k[1][c] = (p[first + c] - weight * a_normal / count) * scale;
      k[2][c] = q[first + c] - weight * a_mean - k[1][c] * s.x[c];
      const double share = -weight * scale / count;
      const double for_a = share * dy_normal, for_dy = share * a_normal + p[first + c] * scale;
      k[3][c] = for_a;
      k[4][c] = for_dy;
      k[5][c] = (share * all - (for_a * a_normal + for_dy * dy_normal) / count) * scale;
      k[6][c] = -(for_a * a_mean + for_dy * dy_mean) - k[5][c] * s.x[c];
    }
    CombineSecond({0, rows, channels, n}, at, dy_at, a_at, middle, k, to_dy + first, to_x + first);
  });
}

}  // namespace tfmeta
