// Products of a few rows with some columns whose sums stay in registers.
//
// convolution.cc includes this once for each set of instructions, in a namespace that has
// `kFloats`, the numbers in a register, and `kVectors`, the registers in a row of a tile.

typedef float Vector __attribute__((vector_size(kFloats * sizeof(float))));

// Only where all loops over a tile are unrolled has each of its parts a register of its own.
#define TFMETA_EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < R; ++r)
#define TFMETA_EACH_PART _Pragma("GCC unroll 4") for (int v = 0; v < V; ++v)

// out[r] = Σ a[t][r][c] · b[t][c], over t < taps and c < depth; the rows of b[t] are `stride`
// apart.
template <int R, int V, typename Part>
void Inner(const float* const* a, const float* const* b, std::int64_t stride, std::int64_t taps,
           std::int64_t depth, float* const* out) {
  constexpr int kPart = sizeof(Part) / sizeof(float);
  Part sums[R][V] = {};
  for (std::int64_t t = 0; t < taps; ++t, a += kRows) {
    const float* rows[R];
    TFMETA_EACH_ROW rows[r] = a[r];
    const float* from = b[t];
    for (std::int64_t c = 0; c < depth; ++c, from += stride) {
      Part columns[V];
      TFMETA_EACH_PART std::memcpy(&columns[v], from + v * kPart, sizeof(Part));
      TFMETA_EACH_ROW TFMETA_EACH_PART sums[r][v] += rows[r][c] * columns[v];
    }
  }
  TFMETA_EACH_ROW TFMETA_EACH_PART std::memcpy(out[r] + v * kPart, &sums[r][v], sizeof(Part));
}

// out[r] = Σ a[k][row + r] · b[k][column], over k < depth, which is added to what there is if
// `more`; out's rows are `stride` apart.
template <int R, int V, typename Part>
void Outer(const float* const* a, std::int64_t row, const float* const* b, std::int64_t column,
           std::int64_t depth, bool more, float* out, std::int64_t stride) {
  constexpr int kPart = sizeof(Part) / sizeof(float);
  Part sums[R][V] = {};
  if (more) {
    TFMETA_EACH_ROW TFMETA_EACH_PART std::memcpy(&sums[r][v], out + r * stride + v * kPart,
                                                 sizeof(Part));
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const float* rows = a[k] + row;
    Part columns[V];
    TFMETA_EACH_PART std::memcpy(&columns[v], b[k] + column + v * kPart, sizeof(Part));
    TFMETA_EACH_ROW TFMETA_EACH_PART sums[r][v] += rows[r] * columns[v];
  }
  TFMETA_EACH_ROW TFMETA_EACH_PART std::memcpy(out + r * stride + v * kPart, &sums[r][v],
                                               sizeof(Part));
}

#undef TFMETA_EACH_ROW
#undef TFMETA_EACH_PART

template <int V, typename Part>
constexpr Tiles kTiles = {V * sizeof(Part) / sizeof(float),
                          {Inner<1, V, Part>, Inner<2, V, Part>, Inner<3, V, Part>,
                           Inner<4, V, Part>, Inner<5, V, Part>, Inner<6, V, Part>},
                          {Outer<1, V, Part>, Outer<2, V, Part>, Outer<3, V, Part>,
                           Outer<4, V, Part>, Outer<5, V, Part>, Outer<6, V, Part>}};

// The widest first; the last fits any number of columns.
constexpr Tiles kAll[] = {kTiles<kVectors, Vector>, kTiles<1, Vector>, kTiles<1, float>};
