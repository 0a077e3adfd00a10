// The second derivative of batch normalisation, in three passes over its inputs.
#pragma once

#include <cstdint>

namespace tfmeta {

// Of [rows, channels] inputs, as in tfmeta/packed/normalization.py: `a`, `p` and `q` are the
// adjoints of the gradients to the inputs, to γ and to β.
struct BatchNormSecond {
  std::int64_t rows, channels;
  float epsilon;
  const float *dy, *x, *gamma, *a, *p, *q;
  float *to_dy, *to_x, *to_gamma;

  // Computes some of the channels; those of different calls may run at once.
  void Compute(std::int64_t first, std::int64_t last) const;
  void ComputeAll(int threads) const;
};

}  // namespace tfmeta
