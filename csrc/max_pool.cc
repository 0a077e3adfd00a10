#include "max_pool.h"

#include <algorithm>

#include "clones.h"
#include "parallel.h"

namespace tfmeta {
namespace {

// So many channels at a time: what is known of them stays in registers or next to them.
constexpr std::int64_t kChannels = 64;

// Below this many numbers a thread costs more than it saves.
constexpr std::int64_t kNumbersPerThread = 1 << 15;

// Of a window of `rows` times `columns` pixels that begins at `image`, and likewise at `values`.
TFMETA_CLONES void TakeOne(const float* image, const float* values, std::int64_t rows,
                           std::int64_t columns, std::int64_t row, std::int64_t pixel,
                           std::int64_t channels, float* __restrict out) {
  float largest[kChannels];
  std::copy_n(image, channels, largest);
  std::copy_n(values, channels, out);
  for (std::int64_t a = 0; a < rows; ++a) {
    for (std::int64_t b = 0; b < columns; ++b) {
      const float* __restrict x = image + a * row + b * pixel;
      const float* __restrict v = values + a * row + b * pixel;
      for (std::int64_t c = 0; c < channels; ++c) {
        const bool larger = x[c] > largest[c];
        largest[c] = larger ? x[c] : largest[c];
        out[c] = larger ? v[c] : out[c];
      }
    }
  }
}

// The adjoint of TakeOne in `values`: adds what `from` has where the largest of the window is.
TFMETA_CLONES void PutOne(const float* image, const float* __restrict from, std::int64_t rows,
                          std::int64_t columns, std::int64_t row, std::int64_t pixel,
                          std::int64_t channels, float* out) {
  float largest[kChannels];
  std::int32_t place[kChannels] = {};
  std::copy_n(image, channels, largest);
  std::int32_t here = 0;
  for (std::int64_t a = 0; a < rows; ++a) {
    for (std::int64_t b = 0; b < columns; ++b, ++here) {
      const float* __restrict x = image + a * row + b * pixel;
      for (std::int64_t c = 0; c < channels; ++c) {
        const bool larger = x[c] > largest[c];
        largest[c] = larger ? x[c] : largest[c];
        place[c] = larger ? here : place[c];
      }
    }
  }
  here = 0;
  for (std::int64_t a = 0; a < rows; ++a) {
    for (std::int64_t b = 0; b < columns; ++b, ++here) {
      float* __restrict to = out + a * row + b * pixel;
      for (std::int64_t c = 0; c < channels; ++c) to[c] += place[c] == here ? from[c] : 0.0f;
    }
  }
}

}  // namespace

template <typename Body>
void MaxPool::ForWindows(std::int64_t turn, const Body& body) const {
  const std::int64_t example = turn / out_height;
  const std::int64_t y = turn % out_height * row_stride - top;
  const std::int64_t y0 = std::max<std::int64_t>(y, 0);
  const std::int64_t rows = std::min(y + window_height, height) - y0;
  for (std::int64_t j = 0; j < out_width; ++j) {
    const std::int64_t x = j * column_stride - left, x0 = std::max<std::int64_t>(x, 0);
    const std::int64_t columns = std::min(x + window_width, width) - x0;
    const std::int64_t from = ((example * height + y0) * width + x0) * channels;
    const std::int64_t to = (turn * out_width + j) * channels;
    for (std::int64_t c = 0; c < channels; c += kChannels) {
      body(from + c, rows, columns, to + c, std::min(kChannels, channels - c));
    }
  }
}

int MaxPool::Worth(int threads) const {
  const std::int64_t most = examples * height * width * channels / kNumbersPerThread;
  return static_cast<int>(std::clamp<std::int64_t>(most, 1, std::max(threads, 1)));
}

void MaxPool::Put(const float* images, const float* values, float* out, int threads) const {
  const std::int64_t image = height * width * channels;
  // By examples, for windows may overlap.
  ParallelFor(examples, Worth(threads), [&](std::int64_t example, std::int64_t) {
    std::fill_n(out + example * image, image, 0.0f);
    for (std::int64_t turn = example * out_height; turn < (example + 1) * out_height; ++turn) {
      ForWindows(turn, [&](std::int64_t at, std::int64_t rows, std::int64_t columns,
                           std::int64_t from, std::int64_t some) {
        PutOne(images + at, values + from, rows, columns, width * channels, channels, some,
               out + at);
      });
    }
  });
}

void MaxPool::Take(const float* images, const float* values, float* out, int threads) const {
  ParallelFor(examples * out_height, Worth(threads), [&](std::int64_t turn, std::int64_t) {
    ForWindows(turn, [&](std::int64_t at, std::int64_t rows, std::int64_t columns, std::int64_t to,
                         std::int64_t some) {
      TakeOne(images + at, values + at, rows, columns, width * channels, channels, some, out + to);
    });
  });
}

}  // namespace tfmeta
