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

}  // namespace

void MaxPool::Take(const float* images, const float* values, float* out, int threads) const {
  const std::int64_t most = examples * height * width * channels / kNumbersPerThread;
  const std::int64_t row = width * channels;
  ParallelFor(examples * out_height, std::clamp<std::int64_t>(most, 1, threads),
              [&](std::int64_t turn, std::int64_t) {
                const std::int64_t example = turn / out_height;
                const std::int64_t y = turn % out_height * row_stride - top;
                const std::int64_t y0 = std::max<std::int64_t>(y, 0);
                const std::int64_t rows = std::min(y + window_height, height) - y0;
                for (std::int64_t j = 0; j < out_width; ++j) {
                  const std::int64_t x = j * column_stride - left,
                                     x0 = std::max<std::int64_t>(x, 0);
                  const std::int64_t columns = std::min(x + window_width, width) - x0;
                  const std::int64_t from = ((example * height + y0) * width + x0) * channels;
                  float* to = out + (turn * out_width + j) * channels;
                  for (std::int64_t c = 0; c < channels; c += kChannels) {
                    TakeOne(images + from + c, values + from + c, rows, columns, row, channels,
                            std::min(kChannels, channels - c), to + c);
                  }
                }
              });
}

}  // namespace tfmeta
