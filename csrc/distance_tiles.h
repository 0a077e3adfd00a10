// Sums over pairs of a few rows and a few columns that stay in registers.
//
// distances.cc includes this once for each set of instructions, in a namespace that has `kBytes`,
// the size of a register; `kColumns`, how many columns there are to kRows rows; `kHeight` and
// `kWidth`, the rows and the registers in a row of a tile of gradients; `MultiplyAdd`; and on x86
// `FourSums`, the sums of the numbers in each of four registers.

template <typename T>
struct Register {
  typedef T Type __attribute__((vector_size(kBytes)));
};

// Only where all loops over a tile are unrolled has each of its parts a register of its own.
#define TFMETA_EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); ++i)

// out[r] is the sum of the numbers in sums[r], to which is added what there is if `more`.
template <typename T>
void Total(const typename Register<T>::Type* sums, bool more, T* out) {
#if defined(__x86_64__)
  if constexpr (sizeof(T) == sizeof(float)) {
    const __m128 totals = FourSums(sums[0], sums[1], sums[2], sums[3]);
    _mm_storeu_ps(out, more ? _mm_loadu_ps(out) + totals : totals);
    return;
  }
#endif
  TFMETA_EACH(r, kRows) {
    T total = more ? out[r] : 0;
    TFMETA_EACH(lane, static_cast<int>(kBytes / sizeof(T))) total += sums[r][lane];
    out[r] = total;
  }
}

// to[r * stride + c] = Σ (rows[r][k] − columns[c][k])², or Σ rows[r][k] · columns[c][k], for C
// columns and `height` of the rows. `depth` is a multiple of what a register holds.
template <typename T, bool kDifferences, int C>
void Pairs(const T* const* rows, const T* const* columns, std::int64_t depth, std::int64_t height,
           T* to, std::int64_t stride) {
  using Vector = typename Register<T>::Type;
  constexpr std::int64_t kLanes = kBytes / sizeof(T);
  // So many terms at most go into one sum: of more, the rounding could be seen.
  constexpr std::int64_t kTerms = 128;
  T out[C][kRows];
  for (std::int64_t begin = 0; begin == 0 || begin < depth; begin += kTerms * kLanes) {
    const std::int64_t end = std::min(depth, begin + kTerms * kLanes);
    Vector sums[C][kRows] = {};
    for (std::int64_t k = begin; k < end; k += kLanes) {
      Vector row[kRows];
      TFMETA_EACH(r, kRows) std::memcpy(&row[r], rows[r] + k, kBytes);
      TFMETA_EACH(c, C) {
        Vector column;
        std::memcpy(&column, columns[c] + k, kBytes);
        TFMETA_EACH(r, kRows) {
          if constexpr (kDifferences) {
            const Vector difference = row[r] - column;
            sums[c][r] = MultiplyAdd(difference, difference, sums[c][r]);
          } else {
            sums[c][r] = MultiplyAdd(row[r], column, sums[c][r]);
          }
        }
      }
    }
    TFMETA_EACH(c, C) Total<T>(sums[c], begin > 0, out[c]);
  }
  if (height == kRows) {
    TFMETA_EACH(r, kRows) TFMETA_EACH(c, C) to[r * stride + c] = out[c][r];
  } else {
    for (std::int64_t r = 0; r < height; ++r) TFMETA_EACH(c, C) to[r * stride + c] = out[c][r];
  }
}

// out[r] = scale · Σ weights[r][k · stride] · (x[r] − y[k]), or · y[k], for W registers of each row
// and k < count; to the sum is added what there is in `out` if `more`. y's rows lie side by side.
template <typename T, bool kDifferences, int W>
void Weighted(const T* const* x, const T* y, const T* const* weights, std::int64_t stride,
              std::int64_t count, bool more, T scale, T* const* out) {
  using Vector = typename Register<T>::Type;
  constexpr int kLanes = kBytes / sizeof(T);
  Vector sums[kHeight][W] = {}, from[kHeight][W];
  if (more) {
    TFMETA_EACH(r, kHeight) TFMETA_EACH(w, W) {
      std::memcpy(&sums[r][w], out[r] + w * kLanes, kBytes);
    }
  }
  TFMETA_EACH(r, kHeight) TFMETA_EACH(w, W) std::memcpy(&from[r][w], x[r] + w * kLanes, kBytes);
  for (std::int64_t k = 0; k < count; ++k, y += W * kLanes) {
    Vector to[W];
    TFMETA_EACH(w, W) std::memcpy(&to[w], y + w * kLanes, kBytes);
    TFMETA_EACH(r, kHeight) {
      const Vector weight = weights[r][k * stride] - Vector{};
      TFMETA_EACH(w, W) {
        const Vector term = kDifferences ? from[r][w] - to[w] : to[w];
        sums[r][w] = MultiplyAdd(weight, term, sums[r][w]);
      }
    }
  }
  TFMETA_EACH(r, kHeight) TFMETA_EACH(w, W) {
    sums[r][w] *= scale;
    std::memcpy(out[r] + w * kLanes, &sums[r][w], kBytes);
  }
}

// Σ x[k]²
template <typename T>
T Square(const T* x, std::int64_t depth) {
  using Vector = typename Register<T>::Type;
  constexpr std::int64_t kLanes = kBytes / sizeof(T);
  Vector sums[kRows] = {};
  std::int64_t k = 0;
  for (; k + kRows * kLanes <= depth; k += kRows * kLanes) {
    TFMETA_EACH(r, kRows) {
      Vector part;
      std::memcpy(&part, x + k + r * kLanes, kBytes);
      sums[r] = MultiplyAdd(part, part, sums[r]);
    }
  }
  T totals[kRows];
  Total<T>(sums, false, totals);
  T total = 0;
  for (; k < depth; ++k) total += x[k] * x[k];
  return total + ((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

#undef TFMETA_EACH

template <typename T, bool kDifferences>
constexpr Kernels<T> kKernels = {
    kBytes / sizeof(T),
    kColumns,
    kHeight,
    kWidth,
    {Pairs<T, kDifferences, 1>, Pairs<T, kDifferences, 2>,
     Pairs<T, kDifferences, std::min(3, kColumns)>, Pairs<T, kDifferences, std::min(4, kColumns)>,
     Pairs<T, kDifferences, kColumns>},
    Weighted<T, kDifferences, 1>,
    Weighted<T, kDifferences, kWidth>,
    Square<T>};
