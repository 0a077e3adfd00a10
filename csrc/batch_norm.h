// The derivatives of batch normalisation, in two passes over its inputs each.
#pragma once

#include <cstdint>

namespace tfmeta {

// Of [rows, channels] inputs, as in tfmeta/packed/normalization.py, and each channel's statistics.
struct BatchNorm {
  std::int64_t rows, channels;
  float epsilon;
  const float *dy, *x, *gamma, *mean, *variance;

  // The gradients to x, γ and β from that to y.
  void First(float* to_x, float* to_gamma, float* to_beta, int threads) const;

  // The adjoints of dy, x and γ from those of the gradients to x, γ and β.
  void Second(const float* a, const float* p, const float* q, float* to_dy, float* to_x,
              float* to_gamma, int threads) const;
};

}  // namespace tfmeta
