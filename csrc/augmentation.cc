#include "augmentation.h"

#include "random.h"

namespace tfmeta {
namespace {

constexpr std::uint64_t kStream = 0x4155474D454E5431;

// The key of what is number `number` of that which has the key `of`.
std::uint64_t Key(std::uint64_t of, std::uint64_t number) { return Mix((of ^ number) + kGolden); }

Augmentation Draw(const AugmentationRanges& ranges, std::uint64_t key) {
  const auto word = [key](std::uint64_t n) { return Mix(key + (n + 1) * kGolden) >> 32; };
  const auto below = [&](std::uint64_t n, std::int64_t bound) {
    return static_cast<std::int32_t>(word(n) * static_cast<std::uint64_t>(bound) >> 32);
  };
  const auto factor = [&](std::uint64_t n, float half_width) {
    const float u = static_cast<float>(word(n) >> 8) * 0x1p-23f - 1.0f;
    return 1.0f + half_width * u;
  };
  Augmentation drawn = {0, 0, 0, 1.0f, 1.0f, 0, 0, 0, 0};
  if (ranges.flip) drawn.flip = below(0, 2);
  if (ranges.crop > 0) {
    drawn.top = below(1, 2 * std::int64_t{ranges.crop} + 1) - ranges.crop;
    drawn.left = below(2, 2 * std::int64_t{ranges.crop} + 1) - ranges.crop;
  }
  if (ranges.brightness > 0) drawn.brightness = factor(3, ranges.brightness);
  if (ranges.contrast > 0) drawn.contrast = factor(4, ranges.contrast);
  if (ranges.cutout > 0) {
    drawn.cut_top = below(5, std::int64_t{ranges.rows} - ranges.cutout + 1);
    drawn.cut_left = below(6, std::int64_t{ranges.columns} - ranges.cutout + 1);
    drawn.cut_height = drawn.cut_width = ranges.cutout;
  }
  return drawn;
}

}  // namespace

void DrawAugmentations(const AugmentationRanges& ranges, std::uint64_t seed, std::uint64_t step,
                       std::int64_t first, std::int64_t tasks, std::int64_t places,
                       Augmentation* augmentations) {
  const std::uint64_t key = Key(Mix((seed ^ kStream) + kGolden), step);
  for (std::int64_t task = first; task < first + tasks; ++task) {
    const std::uint64_t task_key = Key(key, static_cast<std::uint64_t>(task));
    for (std::int64_t place = 0; place < places; ++place) {
      *augmentations++ = Draw(ranges, Key(task_key, static_cast<std::uint64_t>(place)));
    }
  }
}

}  // namespace tfmeta
