// How each image of a meta-batch is changed at random: a pure function of
// (seed, step, task, place in the task), so that neither threads, nor the order of calls, nor the
// process matter; and of nothing else that is drawn, so that episodes are the same with and
// without.
//
// Random numbers are counter-based, as in episodes.h, by a key of their own: with Mix the finaliser
// of SplitMix64, G = 2^64 / phi and A = 0x4155474D454E5431,
//
//     key       = Mix((Mix((Mix((Mix((seed ^ A) + G) ^ step) + G) ^ task) + G) ^ place) + G)
//     word(n)   = Mix(key + (n + 1) * G) >> 32               n = 0, 1, ..., 6
//     below(b)  = word * b >> 32            an integer in [0, b), uniform but for b parts in 2^32
//     factor(h) = 1 + h * u                 u = (word >> 8) * 2^-23 - 1 in [-1, 1), in float32
//
// Each word has one use, whatever else is asked for: 0 the flip, 1 and 2 the crop, 3 the
// brightness, 4 the contrast, 5 and 6 the cut-out.
#pragma once

#include <cstdint>

namespace tfmeta {

// What happens to one image, in this order; gather.h has the arithmetic.
struct Augmentation {
  std::int32_t flip;  // 1: left and right change places
  std::int32_t top,
      left;  // of the crop, from the image's own corner; zeros where it reaches beyond
  float brightness, contrast;
  std::int32_t cut_top, cut_left, cut_height, cut_width;  // the box that is filled with zeros
};

// What there is to draw from. A cut-out is at most as large as the image.
struct AugmentationRanges {
  bool flip;                   // with probability 1/2
  std::int32_t crop;           // top and left are uniform in [-crop, crop]
  float brightness, contrast;  // factors are uniform in [1 - b, 1 + b)
  std::int32_t cutout;         // the side of the box, which lies within the image
  std::int32_t rows, columns;  // of an image
};

// Fills augmentations [tasks, places] of the tasks `first` to `first + tasks - 1`.
void DrawAugmentations(const AugmentationRanges& ranges, std::uint64_t seed, std::uint64_t step,
                       std::int64_t first, std::int64_t tasks, std::int64_t places,
                       Augmentation* augmentations);

}  // namespace tfmeta
