#include "episodes.h"

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace tfmeta {
namespace {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;

std::uint64_t Mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t step, std::uint64_t task)
      : state_(Mix((Mix((Mix(seed + kGolden) ^ step) + kGolden) ^ task) + kGolden)) {}

  // An integer below `bound`, which is at least 1 and below 2^32.
  std::uint64_t Below(std::uint64_t bound) {
    std::uint64_t product = Word() * bound;
    if (static_cast<std::uint32_t>(product) < bound) {  // spares most draws the division
      const std::uint64_t threshold = ((std::uint64_t{1} << 32) - bound) % bound;
      while (static_cast<std::uint32_t>(product) < threshold) product = Word() * bound;
    }
    return product >> 32;
  }

 private:
  std::uint64_t Word() { return Mix(state_ += kGolden) >> 32; }

  std::uint64_t state_;
};

// Draws without replacement, at a cost of O(k) for k however many there are to draw from: where
// these are many more than k, only the exchanged places of the shuffle are kept, in a hash table.
class Shuffle {
 public:
  explicit Shuffle(std::int64_t most) {
    while (size_ < 2 * static_cast<std::uint64_t>(most)) size_ *= 2;
    slots_.resize(size_);
    places_.resize(static_cast<std::size_t>(kDense * most));
  }

  void Draw(Random& random, std::int64_t n, std::int64_t k, std::int64_t* drawn) {
    n <= kDense* k ? DrawDense(random, n, k, drawn) : DrawSparse(random, n, k, drawn);
  }

 private:
  static constexpr std::int64_t kDense = 8;

  void DrawDense(Random& random, std::int64_t n, std::int64_t k, std::int64_t* drawn) {
    std::iota(places_.begin(), places_.begin() + n, 0);
    for (std::int64_t i = 0; i < k; ++i) {
      const auto j = i + static_cast<std::int64_t>(random.Below(static_cast<std::uint64_t>(n - i)));
      drawn[i] = places_[j];
      places_[j] = places_[i];  // place i is not looked at again
    }
  }

  void DrawSparse(Random& random, std::int64_t n, std::int64_t k, std::int64_t* drawn) {
    ++round_;
    for (std::int64_t i = 0; i < k; ++i) {
      const auto j = i + static_cast<std::int64_t>(random.Below(static_cast<std::uint64_t>(n - i)));
      Slot& there = Find(j);
      drawn[i] = there.round == round_ ? there.value : j;
      const Slot& here = Find(i);
      const std::int64_t value = here.round == round_ ? here.value : i;
      there = {round_, j, value};
    }
  }

  struct Slot {
    std::uint64_t round = 0;  // filled in this round? saves emptying the table
    std::int64_t place = 0;
    std::int64_t value = 0;
  };

  // The slot of `place`, or the free one where it belongs.
  Slot& Find(std::int64_t place) {
    std::uint64_t at = static_cast<std::uint64_t>(place) * kGolden >> 32;
    while (true) {
      Slot& slot = slots_[at++ & (size_ - 1)];
      if (slot.round != round_ || slot.place == place) return slot;
    }
  }

  std::uint64_t size_ = 4;
  std::uint64_t round_ = 0;
  std::vector<Slot> slots_;
  std::vector<std::int64_t> places_;
};

}  // namespace

void SampleEpisodes(const ClassTable& table, const EpisodeShape& shape, std::uint64_t seed,
                    std::uint64_t step, std::int64_t tasks, const Episodes& episodes) {
  Shuffle shuffle(shape.ways > shape.examples ? shape.ways : shape.examples);
  std::int64_t* classes = episodes.classes;
  std::int64_t* indices = episodes.indices;
  std::uint8_t* turns = episodes.turns;
  for (std::int64_t task = 0; task < tasks; ++task) {
    Random random(seed, step, static_cast<std::uint64_t>(task));
    shuffle.Draw(random, table.num_classes, shape.ways, classes);
    for (std::int64_t way = 0; way < shape.ways; ++way) {
      const std::int64_t c = *classes++;
      const std::int64_t begin = table.offsets[c];
      const std::int64_t end = table.offsets[c + 1];
      if (begin < 0 || end > table.num_indices || end - begin < shape.examples ||
          end - begin > UINT32_MAX) {
        throw std::invalid_argument(
            "every class must have `shots` + `queries` = " + std::to_string(shape.examples) +
            " to 2**32 - 1 examples within `class_indices` of length " +
            std::to_string(table.num_indices) + ". Received: class " + std::to_string(c) +
            " from " + std::to_string(begin) + " to " + std::to_string(end));
      }
      const std::uint64_t turn = shape.random_rotation ? random.Below(4) : 0;
      *turns++ = static_cast<std::uint8_t>((table.quarter_turns[c] + turn) % 4);
      shuffle.Draw(random, end - begin, shape.examples, indices);
      for (std::int64_t i = 0; i < shape.examples; ++i)
        indices[i] = table.indices[begin + indices[i]];
      indices += shape.examples;
    }
  }
}

}  // namespace tfmeta
