// Products of a few rows with some columns whose sums stay in registers.
//
// convolution.cc includes this once for each set of instructions, in a namespace that has
// `kFloats`, the numbers in a register, and `kVectors`, the registers in a row of a tile.

typedef float Vector __attribute__((vector_size(kFloats * sizeof(float))));

// Only where all loops over a tile are unrolled has each of its parts a register of its own.
#define TFMETA_EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < R; ++r)
#define TFMETA_EACH_PART _Pragma("GCC unroll 4") for (int v = 0; v < V; ++v)

// to[targets[r]] = Σ from[sources[r] + shifts[t] + c] · b[t][c], over t < taps and c < depth; the
// rows of b[t] are `stride` apart.
template <int R, int V, typename Part>
void Inner(const float* from, const std::int64_t* sources, const std::int64_t* shifts,
           const float* const* b, std::int64_t stride, std::int64_t taps, std::int64_t depth,
           float* to, const std::int64_t* targets) {
  constexpr int kPart = sizeof(Part) / sizeof(float);
  for (int v = 0; v < V * kPart; v += kLine) {
    TFMETA_EACH_ROW __builtin_prefetch(to + targets[r] + v, 1);
  }
  // One sum of all taps' products would lose digits.
  const std::int64_t together =
      std::max<std::int64_t>(1, kSummed / std::max<std::int64_t>(1, depth));
  std::int64_t t = 0;
  do {
    const std::int64_t last = std::min(t + together, taps);
    const bool more = t > 0;
    Part sums[R][V] = {};
    for (; t < last; ++t) {
      const float* rows[R];
      TFMETA_EACH_ROW rows[r] = from + (sources[r] + shifts[t]);
      for (std::int64_t c = 0; t + 1 < taps && c < depth; c += kLine) {
        TFMETA_EACH_ROW __builtin_prefetch(from + (sources[r] + shifts[t + 1] + c));
      }
      const float* panel = b[t];
      for (std::int64_t c = 0; c < depth; ++c, panel += stride) {
        Part columns[V];
        TFMETA_EACH_PART std::memcpy(&columns[v], panel + v * kPart, sizeof(Part));
        TFMETA_EACH_ROW TFMETA_EACH_PART sums[r][v] += rows[r][c] * columns[v];
      }
    }
    TFMETA_EACH_ROW TFMETA_EACH_PART {
      float* const place = to + targets[r] + v * kPart;
      Part before = {};
      if (more) std::memcpy(&before, place, sizeof(Part));
      sums[r][v] += before;
      std::memcpy(place, &sums[r][v], sizeof(Part));
    }
  } while (t < taps);
}

// out[r] = Σ a[as[k] + shifts[r]] · b[bs[k]], over k < depth, which is added to what there is if
// `more`; out's rows are `stride` apart.
template <int R, int V, typename Part>
void Outer(const float* a, const std::int64_t* as, const std::int64_t* shifts, const float* b,
           const std::int64_t* bs, std::int64_t depth, bool more, float* out, std::int64_t stride) {
  constexpr int kPart = sizeof(Part) / sizeof(float);
  std::int64_t shift[R];
  TFMETA_EACH_ROW shift[r] = shifts[r];
  Part sums[R][V] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    const std::int64_t ahead = k + kAhead < depth ? k + kAhead : depth - 1;
    __builtin_prefetch(a + (as[ahead] + shift[0]));
    for (int v = 0; v < V * kPart; v += kLine) __builtin_prefetch(b + bs[ahead] + v);
    const float* const rows = a + as[k];
    Part columns[V];
    TFMETA_EACH_PART std::memcpy(&columns[v], b + bs[k] + v * kPart, sizeof(Part));
    TFMETA_EACH_ROW TFMETA_EACH_PART sums[r][v] += rows[shift[r]] * columns[v];
  }
  // Added last: one sum over all of a large image would lose digits.
  TFMETA_EACH_ROW TFMETA_EACH_PART {
    Part before = {};
    if (more) std::memcpy(&before, out + r * stride + v * kPart, sizeof(Part));
    sums[r][v] += before;
    std::memcpy(out + r * stride + v * kPart, &sums[r][v], sizeof(Part));
  }
}

// Transposes kFloats rows of as many numbers: rows of the first and second half are interleaved, as
// often as it takes.
inline void TransposeSquare(const float* from, std::int64_t stride, float* to, std::int64_t apart) {
#ifdef __clang__  // which has no __builtin_shuffle
  for (int i = 0; i < kFloats; ++i) {
    for (int j = 0; j < kFloats; ++j) to[j * apart + i] = from[i * stride + j];
  }
#else
  typedef int Places __attribute__((vector_size(kFloats * sizeof(int))));
  Places low, high;
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) {
    low[i] = i / 2 + i % 2 * kFloats;
    high[i] = low[i] + kFloats / 2;
  }
  Vector rows[kFloats], mixed[kFloats];
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) std::memcpy(&rows[i], from + i * stride, sizeof(Vector));
#pragma GCC unroll 4
  for (int n = kFloats; n > 1; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kFloats / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kFloats / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kFloats / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) std::memcpy(to + i * apart, &rows[i], sizeof(Vector));
#endif
}

// Writes [columns, rows] of [rows, columns] whose rows are `stride` apart, by squares where it can.
inline void Transpose(const float* from, std::int64_t stride, std::int64_t rows,
                      std::int64_t columns, float* to) {
  const std::int64_t whole_rows = rows / kFloats * kFloats;
  const std::int64_t whole_columns = columns / kFloats * kFloats;
  for (std::int64_t r = 0; r < whole_rows; r += kFloats) {
    for (std::int64_t c = 0; c < whole_columns; c += kFloats) {
      TransposeSquare(from + r * stride + c, stride, to + c * rows + r, rows);
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * rows + r] = from[r * stride + c];
    }
  }
}

#undef TFMETA_EACH_ROW
#undef TFMETA_EACH_PART

template <int V, typename Part>
constexpr Tiles kTiles = {V * sizeof(Part) / sizeof(float),
                          {Inner<1, V, Part>, Inner<2, V, Part>, Inner<3, V, Part>,
                           Inner<4, V, Part>, Inner<5, V, Part>, Inner<6, V, Part>},
                          {Outer<1, V, Part>, Outer<2, V, Part>, Outer<3, V, Part>,
                           Outer<4, V, Part>, Outer<5, V, Part>, Outer<6, V, Part>},
                          Transpose};

// The widest first; the last fits any number of columns. Where kVectors is 2, the second is never
// reached.
constexpr Tiles kAll[] = {kTiles<kVectors, Vector>, kTiles<2, Vector>, kTiles<1, Vector>,
                          kTiles<1, float>};
