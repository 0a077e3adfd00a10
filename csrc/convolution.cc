#include "convolution.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel.h"

namespace tfmeta {
namespace {

// The most rows of a tile: with the columns its sums fill the registers.
constexpr std::int64_t kRows = 6;

// Products with `columns` columns and 1 to kRows rows.
struct Tiles {
  std::int64_t columns;
  void (*inner[kRows])(const float* const*, const float*, std::int64_t, std::int64_t, std::int64_t,
                       float* const*);
  void (*outer[kRows])(const float* const*, std::int64_t, const float* const*, std::int64_t,
                       std::int64_t, bool, float*, std::int64_t);
};

namespace portable {
constexpr int kFloats = 4, kVectors = 2;
#include "tiles.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kFloats = 8, kVectors = 2;
#include "tiles.h"
}  // namespace avx2
#pragma GCC target("avx512f")
namespace avx512 {
constexpr int kFloats = 16, kVectors = 4;
#include "tiles.h"
}  // namespace avx512
#pragma GCC pop_options

// What the processor has; TFMETA_MAX_CPU, which is for tests, may allow less.
const Tiles* Best() {
  const char* const variable = std::getenv("TFMETA_MAX_CPU");
  const std::string_view most = variable ? variable : "avx512";
  if (most == "portable") return portable::kAll;
  if (most != "avx2" && __builtin_cpu_supports("avx512f")) return avx512::kAll;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kAll;
  return portable::kAll;
}
#else
const Tiles* Best() { return portable::kAll; }
#endif

const Tiles* Widest() {
  static const Tiles* const best = Best();
  return best;
}

// Calls body(tiles, column) for `columns` columns, in as wide parts as there are.
template <typename Body>
void ForColumns(std::int64_t columns, const Body& body) {
  const Tiles* tiles = Widest();
  for (std::int64_t column = 0; column < columns; column += tiles->columns) {
    while (tiles->columns > columns - column) ++tiles;
    body(*tiles, column);
  }
}

// Calls body(first, last) for parts of `rows` that differ by one at most, none above kRows.
template <typename Body>
void ForRows(std::int64_t rows, std::int64_t part, std::int64_t parts, const Body& body) {
  const std::int64_t tiles = (rows + kRows - 1) / kRows;
  for (std::int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) {
    body(t * rows / tiles, (t + 1) * rows / tiles);
  }
}

// Below this many products a thread costs more than it saves.
constexpr std::int64_t kProductsPerThread = 1 << 19;

// Fewer rows than this do not repay a copy of the kernel.
constexpr std::int64_t kRowsPerCopy = 64;

// So many rows of two factors stay in the cache while all their products are summed.
constexpr std::int64_t kDepth = 512;

// Writes [columns, rows] of [rows, columns] whose rows are `stride` apart, four by four numbers at
// a time: one by one they would be written as slowly as they are multiplied.
void Transpose(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns,
               float* to) {
  const std::int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (std::int64_t r = 0; r < whole_rows; r += 4) {
    for (std::int64_t c = 0; c < whole_columns; c += 4) {
      float block[4][4];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) block[j][i] = from[(r + i) * stride + c + j];
      }
      for (int j = 0; j < 4; ++j) std::copy_n(block[j], 4, to + (c + j) * rows + r);
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * rows + r] = from[r * stride + c];
    }
  }
}

// Memory for numbers that are all written before they are read: a vector would fill it with zeros.
std::unique_ptr<float[]> Room(std::int64_t numbers) {
  return std::unique_ptr<float[]>(new float[numbers]);
}

// The rows or columns of an image with the same rest by the stride, and the taps that reach them.
struct Residue {
  Residue(std::int64_t rest, std::int64_t stride, std::int64_t before, std::int64_t size,
          std::int64_t taps)
      : first(((rest - before) % stride + stride) % stride),
        count(first < size ? (size - first + stride - 1) / stride : 0),
        from((first + before) / stride) {
    for (std::int64_t tap = rest; tap < taps; tap += stride) reach.push_back(tap);
  }

  std::int64_t first, count;
  // The last output that reaches `first`: its tap is the first of `reach`.
  std::int64_t from;
  std::vector<std::int64_t> reach;
};

}  // namespace

int Convolution::Worth(int threads) const {
  const std::int64_t products = examples * out_height * out_width * kernel_height * kernel_width *
                                groups * channels * filters;
  return static_cast<int>(std::clamp<std::int64_t>(products / kProductsPerThread, 1, threads));
}

void Convolution::Forward(const float* x, const float* kernel, float* y, int threads) const {
  const std::int64_t pixels = examples * out_height * out_width;
  const std::int64_t taps = kernel_height * kernel_width, depth = taps * channels;
  threads = Worth(threads);
  const std::int64_t in = groups * channels, out = groups * filters;
  const std::int64_t parts = (threads + groups - 1) / groups;
  const std::vector<float> zeros(channels);
  ParallelFor(groups * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / parts;
    std::vector<const float*> rows(taps * kRows);
    const auto copy = Room(pixels < kRowsPerCopy ? 0 : depth * Widest()->columns);
    ForColumns(filters, [&](const Tiles& tiles, std::int64_t column) {
      const float* columns = kernel + g * filters + column;
      std::int64_t stride = out;
      if (pixels >= kRowsPerCopy) {
        for (std::int64_t c = 0; c < depth; ++c) {
          std::copy_n(columns + c * out, tiles.columns, &copy[c * tiles.columns]);
        }
        columns = copy.get(), stride = tiles.columns;
      }
      ForRows(pixels, turn % parts, parts, [&](std::int64_t first, std::int64_t last) {
        std::array<float*, kRows> to;
        for (std::int64_t p = first; p < last; ++p) {
          const std::int64_t example = p / (out_height * out_width);
          const std::int64_t i = p / out_width % out_height * row_stride - top;
          const std::int64_t j = p % out_width * column_stride - left;
          const float* image = x + example * height * width * in + g * channels;
          const float** row = &rows[p - first];
          for (std::int64_t u = i; u < i + kernel_height; ++u) {
            for (std::int64_t v = j; v < j + kernel_width; ++v, row += kRows) {
              const bool inside = u >= 0 && u < height && v >= 0 && v < width;
              *row = inside ? image + (u * width + v) * in : zeros.data();
            }
          }
          to[p - first] = y + p * out + g * filters + column;
        }
        tiles.inner[last - first - 1](rows.data(), columns, stride, taps, channels, to.data());
      });
    });
  });
}

void Convolution::ToInput(const float* y, const float* kernel, float* x, int threads) const {
  const std::int64_t in = groups * channels, out = groups * filters;
  threads = Worth(threads);
  const std::int64_t parts = (threads + groups - 1) / groups;
  const std::vector<float> zeros(filters);
  ParallelFor(groups * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / parts;
    std::vector<const float*> rows;
    const auto copy = Room(kernel_height * kernel_width * filters * Widest()->columns);
    for (std::int64_t rest = 0; rest < row_stride * column_stride; ++rest) {
      const Residue down(rest / column_stride, row_stride, top, height, kernel_height);
      const Residue across(rest % column_stride, column_stride, left, width, kernel_width);
      const std::int64_t pixels = examples * down.count * across.count;
      const std::int64_t taps = down.reach.size() * across.reach.size();
      rows.resize(taps * kRows);
      ForColumns(channels, [&](const Tiles& tiles, std::int64_t column) {
        // Filters and channels change places.
        float* put = copy.get();
        for (const std::int64_t u : down.reach) {
          for (const std::int64_t v : across.reach) {
            const float* from =
                kernel + ((u * kernel_width + v) * channels + column) * out + g * filters;
            Transpose(from, out, tiles.columns, filters, put);
            put += filters * tiles.columns;
          }
        }
        ForRows(pixels, turn % parts, parts, [&](std::int64_t first, std::int64_t last) {
          std::array<float*, kRows> to;
          for (std::int64_t p = first; p < last; ++p) {
            const std::int64_t example = p / (down.count * across.count);
            const std::int64_t i = p / across.count % down.count, j = p % across.count;
            const float* image = y + example * out_height * out_width * out + g * filters;
            const float** row = &rows[p - first];
            for (std::size_t m = 0; m < down.reach.size(); ++m) {
              const std::int64_t u = down.from + i - static_cast<std::int64_t>(m);
              for (std::size_t n = 0; n < across.reach.size(); ++n, row += kRows) {
                const std::int64_t v = across.from + j - static_cast<std::int64_t>(n);
                const bool inside = u >= 0 && u < out_height && v >= 0 && v < out_width;
                *row = inside ? image + (u * out_width + v) * out : zeros.data();
              }
            }
            const std::int64_t pixel = (example * height + down.first + i * row_stride) * width +
                                       across.first + j * column_stride;
            to[p - first] = x + pixel * in + g * channels + column;
          }
          tiles.inner[last - first - 1](rows.data(), copy.get(), tiles.columns, taps, filters,
                                        to.data());
        });
      });
    }
  });
}

void Convolution::ToKernel(const float* x, const float* y, float* kernel, int threads) const {
  const std::int64_t pixels = examples * out_height * out_width;
  const std::int64_t taps = kernel_height * kernel_width;
  threads = Worth(threads);
  const std::int64_t in = groups * channels, out = groups * filters;
  ParallelFor(groups * taps, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / taps, tap = turn % taps;
    std::vector<const float*> rows, columns;
    rows.reserve(pixels), columns.reserve(pixels);
    for (std::int64_t line = 0; line < examples * out_height; ++line) {
      const std::int64_t i = line % out_height * row_stride - top + tap / kernel_width;
      if (i < 0 || i >= height) continue;
      const float* image = x + (line / out_height * height + i) * width * in + g * channels;
      for (std::int64_t k = 0; k < out_width; ++k) {
        const std::int64_t j = k * column_stride - left + tap % kernel_width;
        if (j < 0 || j >= width) continue;
        rows.push_back(image + j * in);
        columns.push_back(y + (line * out_width + k) * out + g * filters);
      }
    }
    float* to = kernel + tap * channels * out + g * filters;
    const std::int64_t total = rows.size();
    // A tap that no pixel meets has a sum of nothing.
    for (std::int64_t k = 0; k == 0 || k < total; k += kDepth) {
      ForColumns(filters, [&](const Tiles& tiles, std::int64_t column) {
        ForRows(channels, 0, 1, [&](std::int64_t first, std::int64_t last) {
          tiles.outer[last - first - 1](rows.data() + k, first, columns.data() + k, column,
                                        std::min(kDepth, total - k), k > 0,
                                        to + first * out + column, out);
        });
      });
    }
  });
}

}  // namespace tfmeta
