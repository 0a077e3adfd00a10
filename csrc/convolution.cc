#include "convolution.h"

#include <algorithm>
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

// So many products are summed at least before the sum is added to those before.
constexpr std::int64_t kSummed = 128;

// Numbers in a line of the cache, and how many rows ahead of their use lines are asked for.
constexpr std::int64_t kLine = 16, kAhead = 8;

// Products with `columns` columns and 1 to kRows rows.
struct Tiles {
  std::int64_t columns;
  void (*inner[kRows])(const float*, const std::int64_t*, const std::int64_t*, const float* const*,
                       std::int64_t, std::int64_t, std::int64_t, float*, const std::int64_t*);
  void (*outer[kRows])(const float*, const std::int64_t*, const std::int64_t*, const float*,
                       const std::int64_t*, std::int64_t, bool, float*, std::int64_t);
  void (*transpose)(const float*, std::int64_t, std::int64_t, std::int64_t, float*);
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
const char* Best() {
  const char* const variable = std::getenv("TFMETA_MAX_CPU");
  const std::string_view most = variable ? variable : "avx512";
  if (most == "portable") return "portable";
  if (most != "avx2" && __builtin_cpu_supports("avx512f")) return "avx512";
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "portable";
}

const Tiles* Of(std::string_view instructions) {
  if (instructions == "avx512") return avx512::kAll;
  return instructions == "avx2" ? avx2::kAll : portable::kAll;
}
#else
const char* Best() { return "portable"; }
const Tiles* Of(std::string_view) { return portable::kAll; }
#endif

const Tiles* Widest() {
  static const Tiles* const widest = Of(Instructions());
  return widest;
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
constexpr std::int64_t kProductsPerThread = 1 << 22;

// So many rows of two factors stay in the cache while all their products are summed. As many equal
// ones as a flat background has are rounded the same way each time: more would lose digits.
constexpr std::int64_t kDepth = 256;

// Memory for numbers that are all written before they are read: a vector would fill it with zeros.
std::unique_ptr<float[]> Room(std::int64_t numbers) {
  return std::unique_ptr<float[]>(new float[numbers]);
}

// Positions of one axis that some taps compute from the other side: the source of position i by tap
// t is from + i * step + t * direction, of `size` that there are, and its result's place is
// first + i * apart.
struct Axis {
  std::int64_t count, taps, from, step, direction, size, first, apart;

  // Positions `first` to `last` that the same taps `low` to `high` reach: for the others, what lies
  // outside would be multiplied by zeros.
  struct Span {
    std::int64_t first, last, low, high;
  };

  std::int64_t Source(std::int64_t i, std::int64_t t) const {
    return from + i * step + t * direction;
  }

  std::int64_t Place(std::int64_t i) const { return first + i * apart; }

  std::vector<Span> Spans() const {
    std::vector<Span> spans;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto outside = [&](std::int64_t t) { return Source(i, t) < 0 || Source(i, t) >= size; };
      std::int64_t low = 0, high = taps;
      while (low < high && outside(low)) ++low;
      while (low < high && outside(high - 1)) --high;
      if (spans.empty() || spans.back().low != low || spans.back().high != high) {
        spans.push_back({i, i, low, high});
      }
      spans.back().last = i + 1;
    }
    return spans;
  }
};

// Images in which a pixel's numbers lie together, `pixel` numbers after the last one's.
struct Images {
  std::int64_t height, width, pixel;

  std::int64_t At(std::int64_t example, std::int64_t row, std::int64_t column) const {
    return ((example * height + row) * width + column) * pixel;
  }
};

// Computes each pixel of `to` that the axes have, of its sources in `from` and of the taps, `depth`
// rows of columns each: `panel(u, v)` is where those of a tap begin. A source is where that of the
// first tap would be, moved by the tap's shift.
template <typename Panel>
void Pixels(const Axis& down, const Axis& across, std::int64_t examples, const Images& source,
            const float* from, const Images& target, float* to, std::int64_t depth,
            std::int64_t stride, const Tiles& tiles, std::int64_t part, std::int64_t parts,
            const Panel& panel) {
  std::vector<const float*> panels;
  std::vector<std::int64_t> shifts, sources, targets;
  for (const Axis::Span& m : down.Spans()) {
    for (const Axis::Span& n : across.Spans()) {
      panels.clear(), shifts.clear(), sources.clear(), targets.clear();
      for (std::int64_t u = m.low; u < m.high; ++u) {
        for (std::int64_t v = n.low; v < n.high; ++v) {
          panels.push_back(panel(u, v));
          shifts.push_back(source.At(0, u * down.direction, v * across.direction));
        }
      }
      for (std::int64_t example = 0; example < examples; ++example) {
        for (std::int64_t i = m.first; i < m.last; ++i) {
          for (std::int64_t j = n.first; j < n.last; ++j) {
            sources.push_back(
                panels.empty() ? 0 : source.At(example, down.Source(i, 0), across.Source(j, 0)));
            targets.push_back(target.At(example, down.Place(i), across.Place(j)));
          }
        }
      }
      ForRows(sources.size(), part, parts, [&](std::int64_t first, std::int64_t last) {
        tiles.inner[last - first - 1](from, &sources[first], shifts.data(), panels.data(), stride,
                                      panels.size(), depth, to, &targets[first]);
      });
    }
  }
}

// The images of one group, as the taps see them. Few channels are copied, each image with its edge
// of zeros: then the taps of a row lie together, and count as one tap with all their channels.
struct Source {
  Source(const Convolution& c, const float* x, std::int64_t group)
      : images{c.height, c.width, c.groups * c.channels},
        data(x + group * c.channels),
        top(c.top),
        left(c.left),
        taps(c.kernel_width),
        depth(c.channels) {
    const std::int64_t high = (c.out_height - 1) * c.row_stride + c.kernel_height;
    const std::int64_t wide = (c.out_width - 1) * c.column_stride + c.kernel_width;
    // Not where the edge would make an axis more than twice as long.
    if (depth >= kRows || high > 2 * c.height || wide > 2 * c.width) return;
    const Images padded{high, wide, depth};
    copy.resize(padded.At(c.examples, 0, 0));
    for (std::int64_t example = 0; example < c.examples; ++example) {
      for (std::int64_t i = std::max<std::int64_t>(0, top); i < std::min(high, c.height + top);
           ++i) {
        for (std::int64_t j = std::max<std::int64_t>(0, left); j < std::min(wide, c.width + left);
             ++j) {
          const float* const from = data + images.At(example, i - top, j - left);
          float* const to = copy.data() + padded.At(example, i, j);
          for (std::int64_t channel = 0; channel < depth; ++channel) to[channel] = from[channel];
        }
      }
    }
    images = padded, data = copy.data(), top = left = 0, taps = 1, depth *= c.kernel_width;
    copied = true;
  }

  // Lists the pixels of the images and of the results that a tap joins.
  void Join(const Convolution& c, std::int64_t tap, std::vector<std::int64_t>& xs,
            std::vector<std::int64_t>& ys) const {
    const Images results{c.out_height, c.out_width, c.groups * c.filters};
    for (std::int64_t line = 0; line < c.examples * c.out_height; ++line) {
      const std::int64_t example = line / c.out_height, k = line % c.out_height;
      const std::int64_t i = k * c.row_stride - top + tap / taps;
      if (i < 0 || i >= images.height) continue;
      for (std::int64_t l = 0; l < c.out_width; ++l) {
        const std::int64_t j = l * c.column_stride - left + tap % taps;
        if (j < 0 || j >= images.width) continue;
        xs.push_back(images.At(example, i, j));
        ys.push_back(results.At(example, k, l));
      }
    }
  }

  Images images;
  const float* data;
  // Rows and columns of zeros before an image, taps of a row, and the channels of each.
  std::int64_t top, left, taps, depth;
  bool copied = false;
  std::vector<float> copy;
};

// The rows or columns of an image with the same rest by the stride, and the taps that reach them.
struct Residue {
  Residue(std::int64_t rest, std::int64_t stride, std::int64_t before, std::int64_t size,
          std::int64_t taps)
      : first(((rest - before) % stride + stride) % stride),
        count(first < size ? (size - first + stride - 1) / stride : 0),
        from((first + before - rest) / stride) {
    for (std::int64_t tap = rest; tap < taps; tap += stride) reach.push_back(tap);
  }

  std::int64_t first, count;
  // The last output that reaches `first`: its tap is the first of `reach`.
  std::int64_t from;
  std::vector<std::int64_t> reach;
};

}  // namespace

const char* Instructions() {
  static const char* const best = Best();
  return best;
}

int Convolution::Worth(int threads) const {
  const std::int64_t products = examples * out_height * out_width * kernel_height * kernel_width *
                                groups * channels * filters;
  return static_cast<int>(std::clamp<std::int64_t>(products / kProductsPerThread, 1, threads));
}

void Convolution::Forward(const float* x, const float* kernel, float* y, int threads) const {
  threads = Worth(threads);
  const std::int64_t out = groups * filters, parts = (threads + groups - 1) / groups;
  const Images results{out_height, out_width, out};
  ParallelFor(groups * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / parts;
    const Source from(*this, x, g);
    const Axis down{out_height, kernel_height, -from.top, row_stride, 1, from.images.height, 0, 1};
    const Axis across{out_width, from.taps, -from.left, column_stride, 1, from.images.width, 0, 1};
    ForColumns(filters, [&](const Tiles& tiles, std::int64_t column) {
      const auto panel = [&](std::int64_t u, std::int64_t v) {
        return kernel + (u * from.taps + v) * from.depth * out + g * filters + column;
      };
      Pixels(down, across, examples, from.images, from.data, results, y + g * filters + column,
             from.depth, out, tiles, turn % parts, parts, panel);
    });
  });
}

void Convolution::ToInput(const float* y, const float* kernel, float* x, int threads) const {
  const std::int64_t in = groups * channels, out = groups * filters;
  threads = Worth(threads);
  const std::int64_t parts = (threads + groups - 1) / groups;
  const Images images{height, width, in}, results{out_height, out_width, out};
  ParallelFor(groups * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / parts;
    const auto copy = Room(kernel_height * kernel_width * filters * Widest()->columns);
    for (std::int64_t rest = 0; rest < row_stride * column_stride; ++rest) {
      const Residue m(rest / column_stride, row_stride, top, height, kernel_height);
      const Residue n(rest % column_stride, column_stride, left, width, kernel_width);
      const std::int64_t high = m.reach.size(), wide = n.reach.size();
      const Axis down{m.count, high, m.from, 1, -1, out_height, m.first, row_stride};
      const Axis across{n.count, wide, n.from, 1, -1, out_width, n.first, column_stride};
      ForColumns(channels, [&](const Tiles& tiles, std::int64_t column) {
        const auto panel = [&](std::int64_t u, std::int64_t v) {
          return copy.get() + (u * wide + v) * filters * tiles.columns;
        };
        // Filters and channels change places.
        for (std::int64_t u = 0; u < high; ++u) {
          for (std::int64_t v = 0; v < wide; ++v) {
            const std::int64_t tap = m.reach[u] * kernel_width + n.reach[v];
            tiles.transpose(kernel + (tap * channels + column) * out + g * filters, out,
                            tiles.columns, filters, panel(u, v));
          }
        }
        Pixels(down, across, examples, results, y + g * filters, images, x + g * channels + column,
               filters, tiles.columns, tiles, turn % parts, parts, panel);
      });
    }
  });
}

void Convolution::ToKernel(const float* x, const float* y, float* kernel, int threads) const {
  threads = Worth(threads);
  const std::int64_t out = groups * filters, all = kernel_height * kernel_width;
  // No more copies than it takes.
  const std::int64_t parts =
      channels < kRows ? std::min(all, (threads + groups - 1) / groups) : all;
  ParallelFor(groups * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t g = turn / parts, part = turn % parts;
    const Source from(*this, x, g);
    // All taps of a copy join the same pixels: they are rows of one tap, and the rows are shared.
    const std::int64_t taps = from.copied ? 1 : kernel_height * from.taps;
    const std::int64_t joint = from.copied ? kernel_height : 1;
    std::vector<std::int64_t> rows, xs, ys;
    for (std::int64_t u = 0; u < joint; ++u) {
      for (std::int64_t c = 0; c < from.depth; ++c) rows.push_back(from.images.At(0, u, 0) + c);
    }
    const std::int64_t first_tap = from.copied ? 0 : taps * part / parts;
    const std::int64_t last_tap = from.copied ? 1 : taps * (part + 1) / parts;
    for (std::int64_t tap = first_tap; tap < last_tap; ++tap) {
      xs.clear(), ys.clear();
      from.Join(*this, tap, xs, ys);
      float* const to = kernel + tap * from.depth * out + g * filters;
      const std::int64_t total = xs.size();
      // A tap that no pixel meets has a sum of nothing.
      for (std::int64_t k = 0; k == 0 || k < total; k += kDepth) {
        ForColumns(filters, [&](const Tiles& tiles, std::int64_t column) {
          ForRows(rows.size(), from.copied ? part : 0, from.copied ? parts : 1,
                  [&](std::int64_t first, std::int64_t last) {
                    tiles.outer[last - first - 1](from.data, xs.data() + k, &rows[first],
                                                  y + g * filters + column, ys.data() + k,
                                                  std::min(kDepth, total - k), k > 0,
                                                  to + first * out + column, out);
                  });
        });
      }
    }
  });
}

}  // namespace tfmeta
