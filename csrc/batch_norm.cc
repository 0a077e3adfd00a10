#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.h"
#include "parallel.h"

namespace tfmeta {
namespace {

// As many channels at a time as leave all sums in the first level of the cache.
constexpr std::int64_t kChannels = 64;

// Below this many numbers a thread costs more than it saves.
constexpr std::int64_t kNumbersPerThread = 1 << 15;

// For each channel, what all rows have in common.
struct Sums {
  float mean[kChannels] = {}, variance[kChannels] = {};
  float a[kChannels] = {}, dy[kChannels] = {};
  float a_x[kChannels] = {}, dy_x[kChannels] = {}, a_dy[kChannels] = {};
};

// The sums of a stretch of rows are added to those of the stretches before: a sum of thousands of
// single-precision numbers one by one would lose digits.
constexpr std::int64_t kStretch = 64;

TFMETA_CLONES void AddRows(const float* __restrict x, std::int64_t stride, std::int64_t rows,
                           std::int64_t channels, float* __restrict sum) {
  for (std::int64_t r = 0; r < rows; ++r, x += stride) {
    for (std::int64_t c = 0; c < channels; ++c) sum[c] += x[c];
  }
}

TFMETA_CLONES void AddProducts(const float* __restrict x, const float* __restrict a,
                               const float* __restrict dy, std::int64_t stride, std::int64_t rows,
                               std::int64_t channels, const float* __restrict mean,
                               Sums* __restrict s) {
  for (std::int64_t r = 0; r < rows; ++r, x += stride, a += stride, dy += stride) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const float centred = x[c] - mean[c];
      s->variance[c] += centred * centred;
      s->a[c] += a[c];
      s->dy[c] += dy[c];
      s->a_x[c] += a[c] * centred;
      s->dy_x[c] += dy[c] * centred;
      s->a_dy[c] += a[c] * dy[c];
    }
  }
}

// to_dy = k[0] a + k[1] (x − mean) + k[2];  to_x = k[3] a + k[4] dy + k[5] (x − mean) + k[6]
TFMETA_CLONES void Combine(const float* __restrict x, const float* __restrict a,
                           const float* __restrict dy, std::int64_t stride, std::int64_t rows,
                           std::int64_t channels, const float* __restrict mean,
                           const float (*__restrict k)[kChannels], float* __restrict to_dy,
                           float* __restrict to_x) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const float centred = x[c] - mean[c];
      to_dy[c] = k[0][c] * a[c] + k[1][c] * centred + k[2][c];
      to_x[c] = k[3][c] * a[c] + k[4][c] * dy[c] + k[5][c] * centred + k[6][c];
    }
    x += stride, a += stride, dy += stride, to_dy += stride, to_x += stride;
  }
}

void Add(const float* part, std::int64_t channels, float* sum) {
  for (std::int64_t c = 0; c < channels; ++c) sum[c] += part[c];
}

}  // namespace

void BatchNormSecond::Compute(std::int64_t first, std::int64_t last) const {
  const std::int64_t n = last - first;
  Sums s;
  for (std::int64_t r = 0; r < rows; r += kStretch) {
    float part[kChannels] = {};
    AddRows(x + r * channels + first, channels, std::min(kStretch, rows - r), n, part);
    Add(part, n, s.mean);
  }
  const float count = static_cast<float>(rows);
  for (std::int64_t c = 0; c < n; ++c) s.mean[c] /= count;
  for (std::int64_t r = 0; r < rows; r += kStretch) {
    Sums part;
    const std::int64_t at = r * channels + first;
    AddProducts(x + at, a + at, dy + at, channels, std::min(kStretch, rows - r), n, s.mean, &part);
    Add(part.variance, n, s.variance);
    Add(part.a, n, s.a);
    Add(part.dy, n, s.dy);
    Add(part.a_x, n, s.a_x);
    Add(part.dy_x, n, s.dy_x);
    Add(part.a_dy, n, s.a_dy);
  }
  float k[7][kChannels];
  for (std::int64_t c = 0; c < n; ++c) {
    const float scale = 1.0f / std::sqrt(s.variance[c] / count + epsilon);
    const float weight = gamma[first + c] * scale;
    const float a_normal = s.a_x[c] * scale, dy_normal = s.dy_x[c] * scale;
    const float a_mean = s.a[c] / count, dy_mean = s.dy[c] / count;
    const float all = s.a_dy[c] - s.a[c] * dy_mean - a_normal * dy_normal / count;
    to_gamma[first + c] = scale * all;
    // What is multiplied by x̂ is multiplied by x − mean and by the scale.
    k[0][c] = weight;
    k[1][c] = (p[first + c] - weight * a_normal / count) * scale;
    k[2][c] = q[first + c] - weight * a_mean;
    const float share = -weight * scale / count;
    const float for_a = share * dy_normal, for_dy = share * a_normal + p[first + c] * scale;
    k[3][c] = for_a;
    k[4][c] = for_dy;
    k[5][c] = (share * all - (for_a * a_normal + for_dy * dy_normal) / count) * scale;
    k[6][c] = -(for_a * a_mean + for_dy * dy_mean);
  }
  Combine(x + first, a + first, dy + first, channels, rows, n, s.mean, k, to_dy + first,
          to_x + first);
}

void BatchNormSecond::ComputeAll(int threads) const {
  const std::int64_t turns = (channels + kChannels - 1) / kChannels;
  const std::int64_t most = std::max<std::int64_t>(1, rows * channels / kNumbersPerThread);
  ParallelFor(turns, std::min<std::int64_t>({threads, turns, most}),
              [&](std::int64_t turn, std::int64_t) {
                Compute(turn * kChannels, std::min((turn + 1) * kChannels, channels));
              });
}

}  // namespace tfmeta
