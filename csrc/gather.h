// Copies drawn examples into a buffer of float32, on several threads: turned, augmented, scaled to
// [0, 1] and normalised.
//
// What becomes of one example, each line a rounding to float32 of its own, so that results are the
// same everywhere:
//
//     v = the element at its place        turned, flipped, then cropped: one move of pixels, with
//                                         zeros where the crop reaches beyond the image
//     x = v * (1/255)                     uint8; 1/65535 for uint16; float16 and float32 as they
//                                         are, which are checked to be finite
//     x = x * brightness
//     x = (x - mean) * contrast, + mean   unless the contrast is 1; `mean` is of all numbers of the
//                                         image, zeros of the crop included: in float64, number i
//                                         is added to sum i mod 16, and then the sums in order
//     x = 0 below 0, and 1 above 1        where brightness or contrast is not 1
//     x = 0                               within the cut-out
//     x = x * scale, + offset             of its channel
//
// An example whose index is -1 is filled with zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "augmentation.h"

namespace tfmeta {

enum class Element { kUint8, kUint16, kFloat16, kFloat32 };

// A stretch of examples in memory; those of a folder of files are in as many as there are files.
struct Shard {
  const unsigned char* data;
  std::int64_t first;  // the index of its first example
};

struct Examples {
  std::vector<Shard> shards;  // at least one, none empty, in the order of indices
  std::ptrdiff_t stride;      // bytes from one example to the next; an example itself is contiguous
  Element element;
  std::int64_t count;          // how many examples there are
  std::int64_t size;           // elements of one example
  std::int64_t rows, columns;  // of pixels of an image; 0 where examples are none
  bool mapped_file;            // which is read ahead; other memory is called into the cache
};

// Nobody else must write to these meanwhile: they are checked before, and not again.
struct Drawn {
  const std::int64_t* indices;
  const std::uint8_t* turns;          // counter-clockwise quarter turns, of square images only
  const Augmentation* augmentations;  // of images only; nullptr: they are not changed
  std::int64_t count;
};

struct Normalization {
  const float* scale;  // [channels]; nullptr: numbers are not changed
  const float* offset;
  std::int64_t channels;  // the size of an example is a multiple
};

// Fills out [count, size]. Returns the place in `indices` of the first example with a NaN or an
// infinity where it can be seen, or -1.
std::int64_t Gather(const Examples& examples, const Drawn& drawn,
                    const Normalization& normalization, float* out, int threads);

}  // namespace tfmeta
