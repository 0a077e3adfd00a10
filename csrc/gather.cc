#include "gather.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "clones.h"
#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef __GNUC__
#define TFMETA_INLINE __attribute__((always_inline)) inline
#else
#define TFMETA_INLINE inline
#endif

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define TFMETA_SHUFFLE
#endif
#endif

namespace tfmeta {
namespace {

using Byte = unsigned char;

// Below this many bytes of output a thread costs more than it saves.
constexpr std::int64_t kBytesPerThread = 1 << 21;

// A thread takes this much output at a time: with less, two threads write so near to each other
// that they fight for the same stretches of memory, and the second one is no help at all.
constexpr std::int64_t kBytesPerTurn = 1 << 18;

// ---- Conversion: numbers to float32.

template <typename T>
TFMETA_INLINE T Load(const Byte* from, std::int64_t i) {
  T value;
  std::memcpy(&value, from + static_cast<std::int64_t>(sizeof(T)) * i, sizeof(T));
  return value;  // `from` need not be aligned
}

TFMETA_INLINE float FromBits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

TFMETA_INLINE std::uint32_t ToBits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

constexpr std::uint32_t kExponent = 0x7F800000;  // NaN and infinity have all of its bits

// The bits of element i as float32.
template <Element kElement>
TFMETA_INLINE std::uint32_t ToFloat32(const Byte* from, std::int64_t i) {
  if constexpr (kElement == Element::kUint8) {
    return ToBits(static_cast<float>(from[i]) * (1.0f / 255.0f));
  } else if constexpr (kElement == Element::kUint16) {
    return ToBits(static_cast<float>(Load<std::uint16_t>(from, i)) * (1.0f / 65535.0f));
  } else if constexpr (kElement == Element::kFloat16) {
    // The fraction and the exponent are moved to their places, and the exponent gets another bias.
    // Subnormal numbers are put beside 2^-14, which is then taken off: no number on the way is
    // subnormal as float32, so that it does not matter whether the processor flushes these to zero.
    const std::uint32_t half = Load<std::uint16_t>(from, i);
    const std::uint32_t sign = (half & 0x8000) << 16;
    const std::uint32_t exponent = half & 0x7C00;
    const std::uint32_t moved = ((half & 0x7FFF) << 13) + ((127 - 15) << 23);
    const float small = FromBits(moved + (1 << 23)) - FromBits((127 - 14) << 23);
    const std::uint32_t bits = exponent == 0 ? ToBits(small) : moved;
    return (exponent == 0x7C00 ? bits | kExponent : bits) | sign;
  } else {
    return Load<std::uint32_t>(from, i);
  }
}

// to = from, or from * scale + offset. False where there is a NaN or an infinity.
template <Element kElement, bool kNormalize>
TFMETA_INLINE bool ConvertAll(const Byte* __restrict from, float* __restrict to, std::int64_t size,
                              const float* __restrict scale, const float* __restrict offset) {
  constexpr bool kCheck = kElement == Element::kFloat16 || kElement == Element::kFloat32;
  std::uint32_t special = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint32_t bits = ToFloat32<kElement>(from, i);
    if constexpr (kCheck) special |= (bits & kExponent) == kExponent;
    const float value = FromBits(bits);
    to[i] = kNormalize ? value * scale[i] + offset[i] : value;
  }
  return special == 0;
}

template <Element kElement>
TFMETA_INLINE bool ConvertOne(const Byte* from, float* to, std::int64_t size, const float* scale,
                              const float* offset) {
  return scale ? ConvertAll<kElement, true>(from, to, size, scale, offset)
               : ConvertAll<kElement, false>(from, to, size, scale, offset);
}

// Each use of the template has a name, for tables of functions are made of these.
#define TFMETA_CONVERT(ELEMENT)                                                       \
  TFMETA_CLONES bool Convert##ELEMENT(const Byte* from, float* to, std::int64_t size, \
                                      const float* scale, const float* offset) {      \
    return ConvertOne<Element::k##ELEMENT>(from, to, size, scale, offset);            \
  }
TFMETA_CONVERT(Uint8)
TFMETA_CONVERT(Uint16)
TFMETA_CONVERT(Float16)
TFMETA_CONVERT(Float32)
#undef TFMETA_CONVERT

using Convert = bool (*)(const Byte*, float*, std::int64_t, const float*, const float*);

struct Type {
  std::int64_t bytes;
  Convert convert;
};

Type TypeOf(Element element) {
  switch (element) {
    case Element::kUint8:
      return {1, ConvertUint8};
    case Element::kUint16:
      return {2, ConvertUint16};
    case Element::kFloat16:
      return {2, ConvertFloat16};
    default:
      return {4, ConvertFloat32};
  }
}

// ---- Brightness and contrast.

constexpr std::int64_t kSums = 16;

// x = x * factor. Returns the mean of x afterwards.
TFMETA_CLONES float Brighten(float* x, std::int64_t size, float factor) {
  double sums[kSums] = {};
  const std::int64_t whole = size / kSums * kSums;
  for (std::int64_t i = 0; i < whole; i += kSums) {
    for (std::int64_t j = 0; j < kSums; ++j) {
      x[i + j] *= factor;
      sums[j] += static_cast<double>(x[i + j]);
    }
  }
  for (std::int64_t i = whole; i < size; ++i) {
    x[i] *= factor;
    sums[i - whole] += static_cast<double>(x[i]);
  }
  return static_cast<float>(std::accumulate(sums, sums + kSums, 0.0) / static_cast<double>(size));
}

TFMETA_CLONES void Spread(float* x, std::int64_t size, float mean, float factor) {
  for (std::int64_t i = 0; i < size; ++i) x[i] = (x[i] - mean) * factor + mean;
}

TFMETA_CLONES void Clip(float* x, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) {
    const float positive = x[i] < 0.0f ? 0.0f : x[i];
    x[i] = positive > 1.0f ? 1.0f : positive;
  }
}

// ---- Moving pixels. `PixelBytes` is a std::integral_constant where the size is common, so that
// the copy of a pixel is one instruction, and a plain number otherwise.

// A rectangle of the result, and where in the example its pixels are. All strides are in bytes.
struct Window {
  const Byte* from;            // the pixel that comes to its upper left corner
  std::ptrdiff_t down, right;  // from a pixel to those that come below and beside it
  std::int64_t top, left;      // the corner's place in the result
  std::int64_t rows, columns;  // 0 or less: nothing can be seen
};

// Turning, flipping and cropping, in one.
Window Look(const Examples& examples, const Byte* example, int turns, const Augmentation* changes,
            std::int64_t bytes) {
  const std::ptrdiff_t stride = examples.columns * bytes;
  Window window = {example, stride, bytes, 0, 0, examples.rows, examples.columns};
  for (; turns > 0; --turns) {  // of a square: the last column becomes the first row
    window.from += (window.columns - 1) * window.right;
    std::swap(window.down, window.right);
    window.down = -window.down;
  }
  if (!changes) return window;
  if (changes->flip) {
    window.from += (window.columns - 1) * window.right;
    window.right = -window.right;
  }
  const std::int64_t top = changes->top, left = changes->left;
  window.top = std::max<std::int64_t>(0, -top);
  window.left = std::max<std::int64_t>(0, -left);
  window.from += (window.top + top) * window.down + (window.left + left) * window.right;
  window.rows = std::min(window.rows, window.rows - top) - window.top;
  window.columns = std::min(window.columns, window.columns - left) - window.left;
  return window;
}

#ifdef TFMETA_SHUFFLE
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Words8 = std::uint16_t __attribute__((vector_size(16)));
using Words4 = std::uint32_t __attribute__((vector_size(16)));
using Words2 = std::uint64_t __attribute__((vector_size(16)));

Bytes16 LoadEight(const Byte* from) {
  std::uint64_t word;
  std::memcpy(&word, from, 8);
  return reinterpret_cast<Bytes16>(Words2{word, 0});
}

// Eight rows of eight bytes: interleaved one by one, then in twos, then in fours.
void Transpose8x8(const Byte* from, std::ptrdiff_t from_stride, Byte* to,
                  std::ptrdiff_t to_stride) {
  Words8 pairs[4];
  for (int i = 0; i < 4; ++i) {
    const Byte* row = from + 2 * i * from_stride;
    pairs[i] = reinterpret_cast<Words8>(
        __builtin_shufflevector(LoadEight(row), LoadEight(row + from_stride), 0, 16, 1, 17, 2, 18,
                                3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  }
  Words4 fours[4];
  for (int i = 0; i < 2; ++i) {
    const Words8 a = pairs[2 * i], b = pairs[2 * i + 1];
    fours[i] = reinterpret_cast<Words4>(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
    fours[2 + i] =
        reinterpret_cast<Words4>(__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
  }
  for (int i = 0; i < 2; ++i) {
    const Words4 a = fours[2 * i], b = fours[2 * i + 1];
    const auto low = reinterpret_cast<Words2>(__builtin_shufflevector(a, b, 0, 4, 1, 5));
    const auto high = reinterpret_cast<Words2>(__builtin_shufflevector(a, b, 2, 6, 3, 7));
    const std::uint64_t rows[4] = {low[0], low[1], high[0], high[1]};
    for (int j = 0; j < 4; ++j) std::memcpy(to + (4 * i + j) * to_stride, &rows[j], 8);
  }
}
#endif

// A row from right to left.
template <typename PixelBytes>
void Reverse(const Byte* last, Byte* to, std::int64_t pixels, PixelBytes bytes) {
#ifdef TFMETA_SHUFFLE
  if constexpr (std::is_same_v<PixelBytes, std::integral_constant<std::int64_t, 1>>) {
    if (pixels >= 8) {
      // The last eight overlap those before.
      for (std::int64_t pixel = 0; pixel < pixels; pixel += 8) {
        const std::int64_t i = std::min(pixel, pixels - 8);
        std::uint64_t word;
        std::memcpy(&word, last - i - 7, 8);
        word = __builtin_bswap64(word);
        std::memcpy(to + i, &word, 8);
      }
      return;
    }
  }
#endif
  for (std::int64_t i = 0; i < pixels; ++i) {
    std::memcpy(to + i * bytes, last - i * bytes, static_cast<std::size_t>(bytes));
  }
}

// Rows of the result are columns of the example.
template <typename PixelBytes>
void Transpose(const Window& window, Byte* to, std::ptrdiff_t stride, PixelBytes bytes) {
#ifdef TFMETA_SHUFFLE
  if constexpr (std::is_same_v<PixelBytes, std::integral_constant<std::int64_t, 1>>) {
    if (window.rows >= 8 && window.columns >= 8) {
      // The last block of a row or column overlaps the one before it. Where the example is read
      // from right to left, the result is written from the last row to the first.
      const Byte* from = window.from;
      if (window.down < 0) {
        from += (window.rows - 1) * window.down;
        to += (window.rows - 1) * stride;
        stride = -stride;
      }
      for (std::int64_t column = 0; column < window.columns; column += 8) {
        const std::int64_t c = std::min(column, window.columns - 8);
        for (std::int64_t row = 0; row < window.rows; row += 8) {
          const std::int64_t r = std::min(row, window.rows - 8);
          Transpose8x8(from + c * window.right + r, window.right, to + r * stride + c, stride);
        }
      }
      return;
    }
  }
#endif
  for (std::int64_t column = 0; column < window.columns; ++column) {
    for (std::int64_t row = 0; row < window.rows; ++row) {
      std::memcpy(to + row * stride + column * bytes,
                  window.from + row * window.down + column * window.right,
                  static_cast<std::size_t>(bytes));
    }
  }
}

// `to` is the upper left corner of the rectangle.
template <typename PixelBytes>
void Move(const Window& window, Byte* to, std::ptrdiff_t stride, PixelBytes bytes) {
  if (window.right != bytes && window.right != -bytes) {
    return Transpose(window, to, stride, bytes);
  }
  for (std::int64_t row = 0; row < window.rows; ++row, to += stride) {
    const Byte* from = window.from + row * window.down;
    if (window.right > 0) {
      std::memcpy(to, from, static_cast<std::size_t>(window.columns * bytes));
    } else {
      Reverse(from, to, window.columns, bytes);
    }
  }
}

void Move(const Window& window, Byte* to, std::ptrdiff_t stride, std::int64_t bytes) {
  switch (bytes) {
    case 1:  // grey, uint8
      return Move(window, to, stride, std::integral_constant<std::int64_t, 1>());
    case 2:  // grey, uint16 or float16
      return Move(window, to, stride, std::integral_constant<std::int64_t, 2>());
    case 3:  // colour, uint8
      return Move(window, to, stride, std::integral_constant<std::int64_t, 3>());
    case 4:  // grey, float32
      return Move(window, to, stride, std::integral_constant<std::int64_t, 4>());
    case 6:  // colour, uint16 or float16
      return Move(window, to, stride, std::integral_constant<std::int64_t, 6>());
    case 12:  // colour, float32
      return Move(window, to, stride, std::integral_constant<std::int64_t, 12>());
    default:
      return Move<std::int64_t>(window, to, stride, bytes);
  }
}

// ---- Memory.

const Byte* Find(const Examples& examples, std::int64_t index) {
  const std::vector<Shard>& shards = examples.shards;
  auto behind = shards.end();
  if (shards.size() > 1) {
    behind = std::upper_bound(shards.begin(), shards.end(), index,
                              [](std::int64_t i, const Shard& shard) { return i < shard.first; });
  }
  const Shard& shard = *(behind - 1);
  return shard.data + (index - shard.first) * examples.stride;
}

// Calls the example that comes next: from memory into the cache, or from the file into memory. No
// advice is given that would change what memory holds, whatever memory it is.
void Prefetch(const Examples& examples, const Byte* example, std::int64_t bytes) {
#ifdef __linux__
  if (examples.mapped_file) {
    using Address = std::uintptr_t;
    static const auto page = static_cast<Address>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<Address>(example);
    const Address from = begin / page * page;
    madvise(reinterpret_cast<void*>(from), begin + static_cast<Address>(bytes) - from,
            MADV_WILLNEED);
    return;
  }
#endif
#ifdef __GNUC__
  // The start is enough for large examples: the hardware follows a run of cache lines by itself.
  for (std::int64_t i = 0; i < std::min<std::int64_t>(bytes, 1024); i += 64) {
    __builtin_prefetch(example + i);
  }
#endif
}

// ---- The last step: scale and offset, laid out as often as numbers are converted at once.

class Normalizer {
 public:
  Normalizer(const Normalization& given, std::int64_t size) : at_once_(size) {
    if (!given.scale) return;
    // Whole cache lines, so that all blocks of an aligned result are aligned.
    const std::int64_t unit = given.channels * (given.channels <= kAtOnce / 16 ? 16 : 1);
    at_once_ = std::min(size, std::max<std::int64_t>(1, kAtOnce / unit) * unit);
    for (std::int64_t i = 0; i < at_once_; ++i) {
      scale_.push_back(given.scale[i % given.channels]);
      offset_.push_back(given.offset[i % given.channels]);
    }
  }

  // Numbers from the first channel on. False where there is a NaN or an infinity.
  bool operator()(const Type& type, const Byte* from, float* to, std::int64_t size) const {
    const float* scale = scale_.empty() ? nullptr : scale_.data();
    bool finite = true;
    for (std::int64_t i = 0; i < size; i += at_once_) {
      const std::int64_t n = std::min(at_once_, size - i);
      finite &= type.convert(from + i * type.bytes, to + i, n, scale, offset_.data());
    }
    return finite;
  }

 private:
  static constexpr std::int64_t kAtOnce = 1024;  // few enough to stay in the nearest cache

  std::int64_t at_once_;
  std::vector<float> scale_, offset_;
};

}  // namespace

std::int64_t Gather(const Examples& examples, const Drawn& drawn,
                    const Normalization& normalization, float* out, int threads) {
  const Type type = TypeOf(examples.element), float32 = TypeOf(Element::kFloat32);
  const std::int64_t size = examples.size, bytes = size * type.bytes;
  const bool images = examples.rows > 0;
  const std::int64_t row_size = images ? size / examples.rows : 0;
  const std::int64_t pixel_size = images ? row_size / examples.columns : 0;
  const Normalizer normalize(normalization, size);

  // A row of what zeros become, for the cut-outs.
  std::vector<float> zeros(static_cast<std::size_t>(row_size));
  const std::vector<Byte> row(static_cast<std::size_t>(row_size * type.bytes));
  normalize(type, row.data(), zeros.data(), row_size);

  // What a thread has for itself.
  struct Scratch {
    std::vector<Byte> moved;
    std::vector<float> numbers;
  };

  const auto gather_one = [&](std::int64_t place, Scratch& scratch) {
    float* to = out + place * size;
    const std::int64_t index = drawn.indices[place];
    if (index < 0) {
      std::fill_n(to, size, 0.0f);
      return true;
    }
    const Byte* example = Find(examples, index);
    const int turns = drawn.turns[place] % 4;
    const Augmentation* changes = drawn.augmentations ? drawn.augmentations + place : nullptr;

    const Byte* pixels = example;
    const bool cropped = changes && (changes->top != 0 || changes->left != 0);
    if (turns != 0 || cropped || (changes && changes->flip)) {
      const std::int64_t pixel = pixel_size * type.bytes, stride = row_size * type.bytes;
      scratch.moved.resize(static_cast<std::size_t>(bytes));
      Byte* moved = scratch.moved.data();
      if (cropped) std::fill_n(moved, bytes, Byte{0});
      const Window window = Look(examples, example, turns, changes, pixel);
      if (window.rows > 0 && window.columns > 0) {
        Move(window, moved + window.top * stride + window.left * pixel, stride, pixel);
      }
      pixels = moved;
    }

    bool finite;
    if (changes && (changes->brightness != 1.0f || changes->contrast != 1.0f)) {
      scratch.numbers.resize(static_cast<std::size_t>(size));
      float* numbers = scratch.numbers.data();
      finite = type.convert(pixels, numbers, size, nullptr, nullptr);
      const float mean = Brighten(numbers, size, changes->brightness);
      if (changes->contrast != 1.0f) Spread(numbers, size, mean, changes->contrast);
      Clip(numbers, size);
      finite &= normalize(float32, reinterpret_cast<const Byte*>(numbers), to, size);
    } else {
      finite = normalize(type, pixels, to, size);
    }

    if (changes && changes->cut_height > 0 && changes->cut_width > 0) {
      const std::int64_t top = std::max(0, changes->cut_top), left = std::max(0, changes->cut_left);
      const std::int64_t bottom =
          std::min(examples.rows, std::int64_t{changes->cut_top} + changes->cut_height);
      const std::int64_t right =
          std::min(examples.columns, std::int64_t{changes->cut_left} + changes->cut_width);
      for (std::int64_t y = top; y < bottom && left < right; ++y) {
        std::copy_n(zeros.data(), (right - left) * pixel_size,
                    to + y * row_size + left * pixel_size);
      }
    }
    return finite;
  };

  const std::int64_t none = drawn.count;
  const std::int64_t per_turn = std::max<std::int64_t>(1, kBytesPerTurn / (size * 4));
  const std::int64_t turns = (drawn.count + per_turn - 1) / per_turn;
  const std::int64_t workers = std::max<std::int64_t>(
      1, std::min<std::int64_t>(threads, drawn.count * size * 4 / kBytesPerThread));
  std::vector<Scratch> scratch(static_cast<std::size_t>(workers));
  std::atomic<std::int64_t> first_bad{none};
  ParallelFor(turns, workers, [&](std::int64_t turn, std::int64_t worker) {
    const std::int64_t end = std::min((turn + 1) * per_turn, drawn.count);
    std::int64_t bad = none;
    for (std::int64_t place = turn * per_turn; place < end; ++place) {
      if (place + 1 < none && drawn.indices[place + 1] >= 0) {
        Prefetch(examples, Find(examples, drawn.indices[place + 1]), bytes);
      }
      if (!gather_one(place, scratch[static_cast<std::size_t>(worker)])) bad = std::min(bad, place);
    }
    std::int64_t known = first_bad;
    while (bad < known && !first_bad.compare_exchange_weak(known, bad)) {
    }
  });
  return first_bad == none ? -1 : first_bad.load();
}

}  // namespace tfmeta
