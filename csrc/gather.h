// Copies drawn examples into the support and query buffers of a meta-batch, on several threads:
// images are turned, uint8 becomes float32 times 1/255, float32 is checked to be finite.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tfmeta {

enum class Element { kUint8, kFloat32 };

struct Examples {
  const unsigned char* data;
  std::ptrdiff_t stride;  // bytes from one example to the next; an example itself is contiguous
  Element element;
  std::int64_t count;  // how many examples there are
  std::int64_t size;   // elements of one example
  std::int64_t side;   // rows, and columns, of a square image; 0 where examples cannot be turned
  bool mapped_file;    // the pages of a shared file: read ahead, and given back once they were used
};

struct Drawn {
  const std::int64_t* indices;  // [tasks, ways, shots + queries]
  const std::uint8_t* turns;    // [tasks, ways], counter-clockwise quarter turns
  std::int64_t tasks, ways, shots, queries;
};

// Fills support [tasks, ways * shots, size] and query [tasks, ways * queries, size]. Returns the
// place in `indices` of the first example with a NaN or an infinity, or -1.
std::int64_t Gather(const Examples& examples, const Drawn& drawn, float* support, float* query,
                    int threads);

}  // namespace tfmeta
