// Batch normalisation and its derivatives, in two passes over the inputs each.
#pragma once

#include <cstdint>

namespace tfmeta {

// Of [rows, channels] inputs, as in tfmeta/packed/normalization.py, and each channel's statistics.
struct BatchNorm {
  std::int64_t rows, channels;
  float epsilon;
  const float *dy, *x, *gamma, *mean, *variance;

  // The normalised x, times γ and plus β, and the statistics; of the inputs only x and γ are used.
  //
  // Sums are in double precision. Where a channel has one value at most of its places, as that of
  // a flat background, all single-precision additions are rounded the same way, and the mean is
  // off by hundreds of times what it is for noise.
  void Forward(const float* beta, float* y, float* to_mean, float* to_variance, int threads) const;

  // The gradients to x, γ and β from that to y.
  void First(float* to_x, float* to_gamma, float* to_beta, int threads) const;

  // The adjoints of dy, x and γ from those of the gradients to x, γ and β.
  void Second(const float* a, const float* p, const float* q, float* to_dy, float* to_x,
              float* to_gamma, int threads) const;
};

}  // namespace tfmeta
