// Convolutions of several tasks at once, each with filters of its own, and their derivatives.
#pragma once

#include <cstdint>

namespace tfmeta {

// Images x [examples, height, width, groups, channels], kernels [kernel_height, kernel_width,
// channels, groups, filters] and results y [examples, out_height, out_width, groups, filters]: each
// group of channels is convolved with its own filters. `top` rows and `left` columns of zeros lie
// before each image, and as many as it takes behind it.
struct Convolution {
  std::int64_t kernel_height, kernel_width, row_stride, column_stride, top, left;
  std::int64_t height, width, out_height, out_width, groups;
  std::int64_t examples, channels, filters;

  // y = x * kernel. The other two give the adjoint of one factor from that of y and the other
  // factor; as all three are linear in both, no more are needed for derivatives of any order.
  void Forward(const float* x, const float* kernel, float* y, int threads) const;
  void ToInput(const float* y, const float* kernel, float* x, int threads) const;
  void ToKernel(const float* x, const float* y, float* kernel, int threads) const;

 private:
  // How many of the threads so few products are worth.
  int Worth(int threads) const;
};

// The instructions that convolutions take of what this processor and this build have: "avx512",
// "avx2", or "portable", what every processor has.
const char* Instructions();

}  // namespace tfmeta
