#include "gather.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>
#include <vector>

#include "clones.h"
#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
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

// ---- Conversion: an example to float32. False where it holds a NaN or an infinity.

TFMETA_CLONES bool ConvertUint8(const Byte* __restrict from, float* __restrict to,
                                std::int64_t size) {
  constexpr float kScale = 1.0f / 255.0f;
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]) * kScale;
  return true;
}

TFMETA_CLONES bool CopyFloat32(const Byte* __restrict from, float* __restrict to,
                               std::int64_t size) {
  constexpr std::uint32_t kExponent = 0x7F800000;  // NaN and infinity have all of its bits
  std::uint32_t special = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, from + 4 * i, 4);  // `from` need not be aligned
    std::memcpy(to + i, &bits, 4);
    special |= (bits & kExponent) == kExponent;
  }
  return special == 0;
}

// ---- Rotation. `PixelBytes` is a std::integral_constant where the size is common, so that the
// copy of a pixel is one instruction, and a plain number otherwise.

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

// to[column][row] = from[row][column]. Strides are in bytes and may be negative: with the rows of
// `from` or of `to` taken from the last to the first, this is a turn to one side or the other.
template <typename PixelBytes>
void Transpose(const Byte* from, std::ptrdiff_t from_stride, Byte* to, std::ptrdiff_t to_stride,
               std::int64_t side, PixelBytes bytes) {
#ifdef TFMETA_SHUFFLE
  if constexpr (std::is_same_v<PixelBytes, std::integral_constant<std::int64_t, 1>>) {
    if (side >= 8) {
      // The last block of a row or column overlaps the one before it.
      for (std::int64_t row = 0; row < side; row += 8) {
        const std::int64_t r = std::min(row, side - 8);
        for (std::int64_t column = 0; column < side; column += 8) {
          const std::int64_t c = std::min(column, side - 8);
          Transpose8x8(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        }
      }
      return;
    }
  }
#endif
  for (std::int64_t row = 0; row < side; ++row) {
    for (std::int64_t column = 0; column < side; ++column) {
      std::memcpy(to + row * to_stride + column * bytes, from + column * from_stride + row * bytes,
                  static_cast<std::size_t>(bytes));
    }
  }
}

template <typename PixelBytes>
void Reverse(const Byte* from, Byte* to, std::int64_t pixels, PixelBytes bytes) {
  std::int64_t i = 0;
#ifdef TFMETA_SHUFFLE
  if constexpr (std::is_same_v<PixelBytes, std::integral_constant<std::int64_t, 1>>) {
    for (; i + 8 <= pixels; i += 8) {
      std::uint64_t word;
      std::memcpy(&word, from + i, 8);
      word = __builtin_bswap64(word);
      std::memcpy(to + pixels - 8 - i, &word, 8);
    }
  }
#endif
  for (; i < pixels; ++i) {
    std::memcpy(to + (pixels - 1 - i) * bytes, from + i * bytes, static_cast<std::size_t>(bytes));
  }
}

template <typename PixelBytes>
void Rotate(const Byte* from, Byte* to, std::int64_t side, int turns, PixelBytes bytes) {
  const std::ptrdiff_t stride = side * bytes;
  const std::ptrdiff_t last_row = (side - 1) * stride;
  switch (turns) {
    case 1:
      return Transpose(from, stride, to + last_row, -stride, side, bytes);
    case 2:
      return Reverse(from, to, side * side, bytes);
    default:
      return Transpose(from + last_row, -stride, to, stride, side, bytes);
  }
}

void Rotate(const Byte* from, Byte* to, std::int64_t side, int turns, std::int64_t bytes) {
  switch (bytes) {
    case 1:  // grey, uint8
      return Rotate(from, to, side, turns, std::integral_constant<std::int64_t, 1>());
    case 3:  // colour, uint8
      return Rotate(from, to, side, turns, std::integral_constant<std::int64_t, 3>());
    case 4:  // grey, float32
      return Rotate(from, to, side, turns, std::integral_constant<std::int64_t, 4>());
    case 12:  // colour, float32
      return Rotate(from, to, side, turns, std::integral_constant<std::int64_t, 12>());
    default:
      return Rotate<std::int64_t>(from, to, side, turns, bytes);
  }
}

// ---- Memory.

// Tells the system what becomes of the pages of an example, and of those around it up to multiples
// of `unit`, but of none beyond the array, where other memory may begin.
void Advise([[maybe_unused]] const Examples& examples, [[maybe_unused]] const Byte* example,
            [[maybe_unused]] std::int64_t bytes, [[maybe_unused]] std::uintptr_t unit,
            [[maybe_unused]] int advice) {
#ifdef __linux__
  using Address = std::uintptr_t;
  static const auto page = static_cast<Address>(sysconf(_SC_PAGESIZE));
  unit = std::max(unit, page);
  const auto down = [](Address address, Address unit) { return address / unit * unit; };
  const auto up = [](Address address, Address unit) { return (address + unit - 1) / unit * unit; };
  const auto first = reinterpret_cast<Address>(examples.data);
  const auto last = first + static_cast<Address>((examples.count - 1) * examples.stride + bytes);
  const auto begin = reinterpret_cast<Address>(example);
  const auto end = begin + static_cast<Address>(bytes);
  const Address from = std::max(down(begin, unit), down(first, page));
  const Address to = std::min(up(end, unit), up(last, page));
  madvise(reinterpret_cast<void*>(from), to - from, advice);
#endif
}

// Calls the example that comes next: from memory into the cache, or from the file into memory.
void Prefetch(const Examples& examples, const Byte* example, std::int64_t bytes) {
#ifdef __linux__
  if (examples.mapped_file) return Advise(examples, example, bytes, 1, MADV_WILLNEED);
#endif
#ifdef __GNUC__
  // The start is enough for large examples: the hardware follows a run of cache lines by itself.
  for (std::int64_t i = 0; i < std::min<std::int64_t>(bytes, 1024); i += 64) {
    __builtin_prefetch(example + i);
  }
#endif
}

// Takes the pages of an example out of this process; the file keeps them. Without it the resident
// memory would grow towards the size of the file. The system maps 64 KiB around a missing page.
void Release([[maybe_unused]] const Examples& examples, [[maybe_unused]] const Byte* example,
             [[maybe_unused]] std::int64_t bytes) {
#ifdef __linux__
  if (examples.mapped_file) Advise(examples, example, bytes, 1 << 16, MADV_DONTNEED);
#endif
}

}  // namespace

std::int64_t Gather(const Examples& examples, const Drawn& drawn, float* support, float* query,
                    int threads) {
  const std::int64_t rows = drawn.tasks * drawn.ways;
  const std::int64_t per_row = drawn.shots + drawn.queries;
  const std::int64_t bytes = examples.size * (examples.element == Element::kUint8 ? 1 : 4);
  const std::int64_t pixel_bytes = examples.side ? bytes / (examples.side * examples.side) : 0;
  const auto convert = examples.element == Element::kUint8 ? ConvertUint8 : CopyFloat32;

  const auto example = [&](std::int64_t place) {
    return examples.data + drawn.indices[place] * examples.stride;
  };

  // One class of one task. Returns the place of its first bad example, or `none`.
  const std::int64_t none = rows * per_row;
  const auto gather_row = [&](std::int64_t row, Byte* rotated) {
    const int turns = drawn.turns[row] % 4;
    std::int64_t bad = none;
    for (std::int64_t i = 0; i < per_row; ++i) {
      const std::int64_t place = row * per_row + i;
      if (place + 1 < none) Prefetch(examples, example(place + 1), bytes);
      const Byte* from = example(place);
      const Byte* pixels = from;
      if (turns != 0) {
        Rotate(from, rotated, examples.side, turns, pixel_bytes);
        pixels = rotated;
      }
      float* to = i < drawn.shots ? support + (row * drawn.shots + i) * examples.size
                                  : query + (row * drawn.queries + i - drawn.shots) * examples.size;
      if (!convert(pixels, to, examples.size)) bad = std::min(bad, place);
      Release(examples, from, bytes);
    }
    return bad;
  };

  const std::int64_t row_bytes = per_row * examples.size * 4;
  const std::int64_t rows_per_turn = std::max<std::int64_t>(1, kBytesPerTurn / row_bytes);
  const std::int64_t turns = (rows + rows_per_turn - 1) / rows_per_turn;
  const std::int64_t workers = std::max<std::int64_t>(
      1, std::min<std::int64_t>(threads, rows * row_bytes / kBytesPerThread));
  std::vector<Byte> rotated(static_cast<std::size_t>(workers * bytes));
  std::atomic<std::int64_t> first_bad{none};
  ParallelFor(turns, workers, [&](std::int64_t turn, std::int64_t worker) {
    const std::int64_t end = std::min((turn + 1) * rows_per_turn, rows);
    std::int64_t bad = none;
    for (std::int64_t row = turn * rows_per_turn; row < end; ++row) {
      bad = std::min(bad, gather_row(row, rotated.data() + worker * bytes));
    }
    std::int64_t known = first_bad;
    while (bad < known && !first_bad.compare_exchange_weak(known, bad)) {
    }
  });
  return first_bad == none ? -1 : first_bad.load();
}

}  // namespace tfmeta
