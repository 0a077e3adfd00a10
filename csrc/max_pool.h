// Max pooling and its derivatives: what stands where the largest of a window is.
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
  // Of the images themselves, that is max pooling.
  void Take(const float* images, const float* values, float* out, int threads) const;

  // The adjoint of Take in `values`: adds each of `values`, which is [examples, out_height,
  // out_width, channels], where the largest of its window is; `out` is like the images.
  void Put(const float* images, const float* values, float* out, int threads) const;

 private:
  // Calls body(window, rows, columns, out, channels) for some channels of each window of a row of
  // windows, the first and the fourth being places in the images and in what comes out.
  template <typename Body>
  void ForWindows(std::int64_t turn, const Body& body) const;

  // How many of the threads so few numbers are worth.
  int Worth(int threads) const;
};

}  // namespace tfmeta
