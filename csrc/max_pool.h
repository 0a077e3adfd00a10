// The second derivative of max pooling: what stands where the largest of a window is.
#pragma once

#include <cstdint>

namespace tfmeta {

// Images [examples, height, width, channels]; windows that begin outside of them, at −top and
// −left, are as large as what is inside.
struct MaxPool {
  std::int64_t window_height, window_width, row_stride, column_stride;
  std::int64_t top, left, out_height, out_width;
  std::int64_t examples, height, width, channels;

  // Takes from `values`, which is like the images, what stands where the largest of each window of
  // `images` is, the first of several: `out` is [examples, out_height, out_width, channels].
  void Take(const float* images, const float* values, float* out, int threads) const;
};

}  // namespace tfmeta
