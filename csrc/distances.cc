#include "distances.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "clones.h"
#include "parallel.h"

namespace tfmeta {
namespace {

// The rows of a tile of pairs, and the most columns of it.
constexpr int kRows = 4, kMostColumns = 5;

template <typename T>
struct Kernels {
  std::int64_t lanes, columns, height, width;
  void (*pairs[kMostColumns])(const T* const*, const T* const*, std::int64_t, std::int64_t, T*,
                              std::int64_t);
  void (*narrow)(const T* const*, const T*, const T* const*, std::int64_t, std::int64_t, bool, T,
                 T* const*);
  void (*wide)(const T* const*, const T*, const T* const*, std::int64_t, std::int64_t, bool, T,
               T* const*);
  T (*square)(const T*, std::int64_t);
};

constexpr int kMostHeight = 3;

// Fused where the processor can, even in a library that is compiled to round every product.

namespace portable {
constexpr int kBytes = 16, kColumns = 2, kHeight = 2, kWidth = 2;
template <typename Vector>
inline Vector MultiplyAdd(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#if defined(__x86_64__)
inline __m128 FourSums(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_unpacklo_ps(a, b) + _mm_unpackhi_ps(a, b);
  const __m128 cd = _mm_unpacklo_ps(c, d) + _mm_unpackhi_ps(c, d);
  return _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab);
}
#endif
#include "distance_tiles.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// GCC 12 and older warn of what its own header leaves undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kBytes = 32, kColumns = 2, kHeight = 2, kWidth = 2;
inline __m256 MultiplyAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d MultiplyAdd(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline __m128 FourSums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b));
  const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d));
  const __m256 all =
      _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)) + _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
  return _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
}
#include "distance_tiles.h"
}  // namespace avx2
#pragma GCC target("avx512f")
namespace avx512 {
constexpr int kBytes = 64, kColumns = 5, kHeight = 3, kWidth = 4;
inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d MultiplyAdd(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
inline __m128 FourSums(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  const __m512d all = _mm512_castps_pd(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) +
                                       _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  const __m256 half = _mm256_castpd_ps(_mm512_castpd512_pd256(all)) +
                      _mm256_castpd_ps(_mm512_extractf64x4_pd(all, 1));
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}
#include "distance_tiles.h"
}  // namespace avx512
#pragma GCC pop_options

// What the processor has; TFMETA_MAX_CPU, which is for tests, may allow less.
template <typename T, bool kDifferences>
const Kernels<T>& Best() {
  const char* const variable = std::getenv("TFMETA_MAX_CPU");
  const std::string_view most = variable ? variable : "avx512";
  if (most == "portable") return portable::kKernels<T, kDifferences>;
  if (most != "avx2" && __builtin_cpu_supports("avx512f")) {
    return avx512::kKernels<T, kDifferences>;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::kKernels<T, kDifferences>;
  }
  return portable::kKernels<T, kDifferences>;
}
#else
template <typename T, bool kDifferences>
const Kernels<T>& Best() {
  return portable::kKernels<T, kDifferences>;
}
#endif

template <typename T>
const Kernels<T>& KernelsOf(Measure measure) {
  static const Kernels<T>&differences = Best<T, true>(), &products = Best<T, false>();
  return measure == Measure::kSquaredEuclidean ? differences : products;
}

// Below this many products a thread costs more than it saves.
constexpr std::int64_t kProductsPerThread = 1 << 21;

// Each thread takes so many turns, so that none waits long for the others.
constexpr std::int64_t kTurnsPerThread = 4;

// Prototypes of so many bytes stay in the cache while all queries meet them.
constexpr std::int64_t kBlockBytes = 1 << 18;

// The rows of a block that gradients sum over.
constexpr std::int64_t kBlock = 64;

// The squares of norms below which TensorFlow's l2_normalize divides by the root of this.
constexpr double kLeastSquare = 1e-12;

template <typename T>
std::unique_ptr<T[]> Room(std::int64_t numbers) {
  return std::unique_ptr<T[]>(new T[numbers]);
}

template <typename T>
void InverseNorms(const T* x, std::int64_t rows, std::int64_t depth, T* out) {
  const auto square = KernelsOf<T>(Measure::kCosine).square;
  for (std::int64_t i = 0; i < rows; ++i) {
    out[i] = 1 / std::sqrt(std::max(square(x + i * depth, depth), static_cast<T>(kLeastSquare)));
  }
}

// Rows whose length is a multiple of what a register holds: copies with zeros behind, if need be.
template <typename T>
class Padded {
 public:
  Padded(std::int64_t rows, std::int64_t depth, std::int64_t lanes)
      : depth_(depth), stride_((depth + lanes - 1) / lanes * lanes) {
    if (stride_ > depth_) copy_ = Room<T>(rows * stride_);
  }

  std::int64_t stride() const { return stride_; }

  const T* operator()(const T* from, std::int64_t rows) {
    if (stride_ == depth_) return from;
    for (std::int64_t i = 0; i < rows; ++i) {
      std::copy_n(from + i * depth_, depth_, &copy_[i * stride_]);
      std::fill_n(&copy_[i * stride_ + depth_], stride_ - depth_, T(0));
    }
    return copy_.get();
  }

 private:
  std::int64_t depth_, stride_;
  std::unique_ptr<T[]> copy_;
};

// Of queries [rows, depth] of one task.
template <typename T>
void PairsOf(Measure measure, const T* queries, std::int64_t rows, const T* prototypes,
             std::int64_t ways, std::int64_t depth, T* out) {
  const Kernels<T>& kernels = KernelsOf<T>(measure);
  Padded<T> padded_rows(kRows, depth, kernels.lanes);
  const std::int64_t stride = padded_rows.stride();
  const std::int64_t row_bytes = std::max<std::int64_t>(stride, 1) * sizeof(T);
  const std::int64_t block = std::clamp<std::int64_t>(kBlockBytes / row_bytes, 1, ways);
  Padded<T> padded_columns(block, depth, kernels.lanes);
  for (std::int64_t w = 0; w < ways; w += block) {
    const std::int64_t count = std::min(block, ways - w);
    const std::int64_t tiles = (count + kernels.columns - 1) / kernels.columns;
    const T* const columns = padded_columns(prototypes + w * depth, count);
    for (std::int64_t i = 0; i < rows; i += kRows) {
      const std::int64_t height = std::min<std::int64_t>(kRows, rows - i);
      const T* const row = padded_rows(queries + i * depth, height);
      // A tile with fewer rows takes its last one again, for nothing.
      const T* at_row[kRows];
      for (int r = 0; r < kRows; ++r)
        at_row[r] = row + std::min<std::int64_t>(r, height - 1) * stride;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t first = t * count / tiles, width = (t + 1) * count / tiles - first;
        const T* at_column[kMostColumns];
        for (std::int64_t c = 0; c < width; ++c) at_column[c] = columns + (first + c) * stride;
        kernels.pairs[width - 1](at_row, at_column, stride, height, out + i * ways + w + first,
                                 ways);
      }
    }
  }
}

// One side of the gradient, of one task: to x [first..last-1, depth], by y [others, depth] and the
// adjoints of pairs, those of a row `down` apart and those of a column `across`.
template <typename T>
void GradientOf(Measure measure, const T* x, std::int64_t first, std::int64_t last, const T* y,
                std::int64_t others, const T* adjoint, std::int64_t down, std::int64_t across,
                std::int64_t depth, T* out) {
  const bool cosine = measure == Measure::kCosine;
  const Kernels<T>& kernels = KernelsOf<T>(measure);
  const auto norms = Room<T>(cosine ? others : 0);
  if (cosine) InverseNorms(y, others, depth, norms.get());
  const std::int64_t most = kernels.width * kernels.lanes;
  const auto copy = Room<T>((std::min(kBlock, others) + 2 * kernels.height) * most);
  T* const edge_x = &copy[std::min(kBlock, others) * most];
  T* const edge_out = edge_x + kernels.height * most;
  for (std::int64_t column = 0, width; column < depth; column += width) {
    const bool wide = depth - column >= most;
    width = wide ? most : kernels.lanes;
    const std::int64_t inside = std::min(width, depth - column);
    for (std::int64_t begin = 0; begin == 0 || begin < others; begin += kBlock) {
      const std::int64_t count = std::min(kBlock, others - begin);
      const T* block = y + begin * depth;
      if (cosine || depth != width) {
        for (std::int64_t k = 0; k < count; ++k) {
          const T* const from = y + (begin + k) * depth + column;
          T* const to = &copy[k * width];
          const T scale = cosine ? norms[begin + k] : T(1);
          for (std::int64_t j = 0; j < inside; ++j) to[j] = from[j] * scale;
          std::fill(to + inside, to + width, T(0));
        }
        block = copy.get();
      }
      const T scale = !cosine && begin + kBlock >= others ? 2 : 1;
      for (std::int64_t i = first; i < last; i += kernels.height) {
        const T *from[kMostHeight], *weights[kMostHeight];
        T* to[kMostHeight];
        for (std::int64_t r = 0; r < kernels.height; ++r) {
          const std::int64_t row = std::min(i + r, last - 1);  // the last one again, if need be
          weights[r] = adjoint + row * down + begin * across;
          from[r] = x + row * depth + column, to[r] = out + row * depth + column;
          if (inside == width) continue;
          std::copy_n(from[r], inside, edge_x + r * width);
          std::fill_n(edge_x + r * width + inside, width - inside, T(0));
          if (begin > 0) std::copy_n(to[r], inside, edge_out + r * width);
          if (begin > 0) std::fill_n(edge_out + r * width + inside, width - inside, T(0));
          from[r] = edge_x + r * width, to[r] = edge_out + r * width;
        }
        (wide ? kernels.wide : kernels.narrow)(from, block, weights, across, count, begin > 0,
                                               scale, to);
        if (inside == width) continue;
        for (std::int64_t r = 0; r < kernels.height && i + r < last; ++r) {
          std::copy_n(to[r], inside, out + (i + r) * depth + column);
        }
      }
    }
  }
}

// Turns the adjoint of x / ‖x‖ into that of x: what lies along x is taken away.
template <typename T>
TFMETA_CLONES void Project(const T* x, std::int64_t depth, T inverse, T along, T* out) {
  for (std::int64_t k = 0; k < depth; ++k) out[k] = inverse * (out[k] - along * x[k]);
}

template <typename T>
void ProjectRows(const T* x, std::int64_t first, std::int64_t last, std::int64_t depth, T* out) {
  for (std::int64_t i = first; i < last; ++i) {
    const T* const row = x + i * depth;
    T inverse, along;
    InverseNorms(row, 1, depth, &inverse);
    PairsOf(Measure::kCosine, row, 1, out + i * depth, 1, depth, &along);
    const bool fixed = inverse >= 1 / std::sqrt(static_cast<T>(kLeastSquare));
    Project(row, depth, inverse, fixed ? T(0) : along * inverse * inverse, out + i * depth);
  }
}

}  // namespace

template <typename T>
int Distances<T>::Worth(std::int64_t products, int threads) const {
  return static_cast<int>(std::clamp<std::int64_t>(products / kProductsPerThread, 1, threads));
}

template <typename T>
void Distances<T>::Forward(const T* from, const T* to, T* out, int threads) const {
  if (tasks * queries * ways == 0) return;
  threads = Worth(tasks * queries * ways * depth, threads);
  const std::int64_t tiles = (queries + kRows - 1) / kRows;
  const std::int64_t turns = threads > 1 ? threads * kTurnsPerThread : 1;
  const std::int64_t parts = std::min(tiles, (turns + tasks - 1) / tasks);
  ParallelFor(tasks * parts, threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t task = turn / parts, part = turn % parts;
    const std::int64_t first = tiles * part / parts * kRows;
    const std::int64_t rows = std::min(queries, tiles * (part + 1) / parts * kRows) - first;
    const T* const x = from + (task * queries + first) * depth;
    const T* const y = to + task * ways * depth;
    T* const z = out + (task * queries + first) * ways;
    PairsOf(measure, x, rows, y, ways, depth, z);
    if (measure != Measure::kCosine) return;
    const auto norms = Room<T>(rows + ways);
    InverseNorms(x, rows, depth, norms.get());
    InverseNorms(y, ways, depth, &norms[rows]);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t w = 0; w < ways; ++w) z[i * ways + w] *= norms[i] * norms[rows + w];
    }
  });
}

template <typename T>
void Distances<T>::Backward(const T* from, const T* to, const T* adjoint, T* to_from, T* to_to,
                            int threads) const {
  threads = Worth(2 * tasks * queries * ways * depth, threads);
  const std::int64_t turns = threads > 1 ? threads * kTurnsPerThread : 1;
  // Each part goes through all of the other side, so a side of a few rows is not cut further.
  const std::int64_t height = KernelsOf<T>(measure).height;
  const auto parts_of = [&](std::int64_t rows) {
    return std::min((rows + height - 1) / height, turns / std::max<std::int64_t>(tasks, 1) + 1);
  };
  const std::int64_t of_queries = parts_of(queries), of_ways = parts_of(ways);
  ParallelFor(tasks * (of_queries + of_ways), threads, [&](std::int64_t turn, std::int64_t) {
    const std::int64_t task = turn / (of_queries + of_ways), part = turn % (of_queries + of_ways);
    const T* const x = from + task * queries * depth;
    const T* const y = to + task * ways * depth;
    const T* const g = adjoint + task * queries * ways;
    const auto side = [&](const T* x, std::int64_t rows, const T* y, std::int64_t others,
                          std::int64_t down, std::int64_t across, std::int64_t part,
                          std::int64_t parts, T* out) {
      const std::int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
      GradientOf(measure, x, first, last, y, others, g, down, across, depth, out);
      if (measure == Measure::kCosine) ProjectRows(x, first, last, depth, out);
    };
    if (part < of_queries) {
      side(x, queries, y, ways, ways, 1, part, of_queries, to_from + task * queries * depth);
    } else {
      side(y, ways, x, queries, 1, ways, part - of_queries, of_ways, to_to + task * ways * depth);
    }
  });
}

template struct Distances<float>;
template struct Distances<double>;

namespace {

template <typename T>
TFMETA_CLONES void Add(const T* from, std::int64_t depth, T* __restrict to) {
  for (std::int64_t k = 0; k < depth; ++k) to[k] += from[k];
}

template <typename T>
TFMETA_CLONES void Divide(const T* from, std::int64_t depth, std::int64_t by, T* to) {
  for (std::int64_t k = 0; k < depth; ++k) to[k] = from[k] / static_cast<T>(by);
}

// Below this many numbers a thread costs more than it saves.
constexpr std::int64_t kNumbersPerThread = 1 << 18;

}  // namespace

std::int64_t Prototypes::Count(const std::int64_t* labels, std::int64_t* counts) const {
  std::fill_n(counts, tasks * ways, 0);
  for (std::int64_t i = 0; i < tasks * examples; ++i) {
    if (labels[i] == kNoClass) continue;
    if (labels[i] < 0 || labels[i] >= ways) return i;
    ++counts[i / examples * ways + labels[i]];
  }
  return -1;
}

template <typename T>
void Prototypes::Forward(const T* embeddings, const std::int64_t* labels,
                         const std::int64_t* counts, T* means, int threads) const {
  const std::int64_t most = tasks * examples * depth / kNumbersPerThread;
  ParallelFor(tasks, std::clamp<std::int64_t>(most, 1, threads),
              [&](std::int64_t task, std::int64_t) {
                T* const to = means + task * ways * depth;
                std::fill_n(to, ways * depth, T(0));
                for (std::int64_t i = task * examples; i < (task + 1) * examples; ++i) {
                  if (labels[i] == kNoClass) continue;
                  Add(embeddings + i * depth, depth, to + labels[i] * depth);
                }
                for (std::int64_t w = 0; w < ways; ++w) {
                  const std::int64_t count = counts[task * ways + w];
                  if (count > 1) Divide(to + w * depth, depth, count, to + w * depth);
                }
              });
}

template <typename T>
void Prototypes::Backward(const T* to_means, const std::int64_t* labels, const std::int64_t* counts,
                          T* to_embeddings, int threads) const {
  const std::int64_t most = tasks * examples * depth / kNumbersPerThread;
  ParallelFor(tasks, std::clamp<std::int64_t>(most, 1, threads),
              [&](std::int64_t task, std::int64_t) {
                for (std::int64_t i = task * examples; i < (task + 1) * examples; ++i) {
                  if (labels[i] == kNoClass) {
                    std::fill_n(to_embeddings + i * depth, depth, T(0));
                    continue;
                  }
                  const std::int64_t way = task * ways + labels[i];
                  Divide(to_means + way * depth, depth, counts[way], to_embeddings + i * depth);
                }
              });
}

template void Prototypes::Forward(const float*, const std::int64_t*, const std::int64_t*, float*,
                                  int) const;
template void Prototypes::Forward(const double*, const std::int64_t*, const std::int64_t*, double*,
                                  int) const;
template void Prototypes::Backward(const float*, const std::int64_t*, const std::int64_t*, float*,
                                   int) const;
template void Prototypes::Backward(const double*, const std::int64_t*, const std::int64_t*, double*,
                                   int) const;

}  // namespace tfmeta
