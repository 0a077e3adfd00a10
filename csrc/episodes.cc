#include "episodes.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "random.h"

namespace tfmeta {
namespace {

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

std::string Text(std::int64_t number) { return std::to_string(number); }

std::int64_t From(const Range& range, std::int64_t most, Random& random) {
  return range.least + static_cast<std::int64_t>(
                           random.Below(static_cast<std::uint64_t>(most - range.least + 1)));
}

class Sampler {
 public:
  Sampler(const ClassTable& table, const Pools& pools, const EpisodeShape& shape)
      : table_(table),
        pools_(pools),
        shape_(shape),
        shuffle_(std::max(shape.ways.most, shape.shots.most + shape.queries)) {}

  void Draw(Random random, std::int64_t* classes, std::int64_t* indices, std::uint8_t* turns) {
    const std::int64_t ways = DrawClasses(random, classes);
    std::fill(classes + ways, classes + shape_.ways.most, -1);
    const std::int64_t row = shape_.shots.most + shape_.queries;
    std::fill(indices, indices + shape_.ways.most * row, -1);
    std::fill(turns, turns + shape_.ways.most, std::uint8_t{0});
    const bool choice = shape_.shots.least < shape_.shots.most;
    std::int64_t shots = shape_.shots.most;
    if (choice && shape_.balanced) {
      for (std::int64_t way = 0; way < ways; ++way) shots = std::min(shots, Room(classes[way]));
      shots = From(shape_.shots, shots, random);
    }
    for (std::int64_t way = 0; way < ways; ++way, indices += row) {
      const std::int64_t c = classes[way];
      if (choice && !shape_.balanced) {
        shots = From(shape_.shots, std::min(shape_.shots.most, Room(c)), random);
      }
      const std::uint64_t turn = shape_.random_rotation ? random.Below(4) : 0;
      turns[way] = static_cast<std::uint8_t>((table_.quarter_turns[c] + turn) % 4);
      shuffle_.Draw(random, Size(c), shots + shape_.queries, indices);
      for (std::int64_t i = 0; i < shots + shape_.queries; ++i) {
        indices[i] = table_.indices[table_.offsets[c] + indices[i]];
      }
      std::int64_t* drawn = indices + shots;
      std::move_backward(drawn, drawn + shape_.queries, indices + row);
      std::fill(drawn, indices + shape_.shots.most, -1);
    }
  }

 private:
  std::int64_t Size(std::int64_t c) const { return table_.offsets[c + 1] - table_.offsets[c]; }

  // How many shots leave a class its queries; throws where that is too few.
  std::int64_t Room(std::int64_t c) const {
    const std::int64_t begin = table_.offsets[c], end = table_.offsets[c + 1];
    const std::int64_t needed = shape_.shots.least + shape_.queries;
    if (begin < 0 || end > table_.num_indices || end - begin < needed || end - begin > UINT32_MAX) {
      throw std::invalid_argument("every class must have `shots` + `queries` = " + Text(needed) +
                                  " to 2**32 - 1 examples within `class_indices` of length " +
                                  Text(table_.num_indices) + ". Received: class " + Text(c) +
                                  " from " + Text(begin) + " to " + Text(end));
    }
    return end - begin - shape_.queries;
  }

  // Returns how many.
  std::int64_t DrawClasses(Random& random, std::int64_t* classes) {
    const auto pools = static_cast<std::uint64_t>(pools_.number);
    const auto pool = static_cast<std::int64_t>(pools > 1 ? random.Below(pools) : 0);
    const std::int64_t* members = pools_.classes + pools_.offsets[pool];
    const std::int64_t size = pools_.offsets[pool + 1] - pools_.offsets[pool];
    if (size < shape_.ways.least) {
      throw std::invalid_argument("every pool must have `ways` = " + Text(shape_.ways.least) +
                                  " classes. Received: pool " + Text(pool) + " with " + Text(size));
    }
    std::int64_t ways = shape_.ways.most;
    if (shape_.ways.least < ways) ways = From(shape_.ways, std::min(ways, size), random);
    if (shape_.weighted) {
      DrawWeighted(random, members, size, ways, classes);
    } else {
      shuffle_.Draw(random, size, ways, classes);
      for (std::int64_t way = 0; way < ways; ++way) classes[way] = members[classes[way]];
    }
    for (std::int64_t way = 0; way < ways; ++way) Room(classes[way]);
    return ways;
  }

  void DrawWeighted(Random& random, const std::int64_t* members, std::int64_t size,
                    std::int64_t ways, std::int64_t* classes) {
    weights_.resize(static_cast<std::size_t>(size));
    drawn_.resize(static_cast<std::size_t>(ways));
    std::int64_t left = 0;
    for (std::int64_t i = 0; i < size; ++i) left += weights_[i] = Size(members[i]);
    for (std::int64_t way = 0; way < ways; ++way) {
      if (left <= 0 || left > UINT32_MAX) {
        throw std::invalid_argument(
            "`ways` must be at most the number of classes with examples, of which all together "
            "must "
            "have fewer than 2**32");
      }
      auto number = static_cast<std::int64_t>(random.Below(static_cast<std::uint64_t>(left)));
      std::int64_t i = 0;
      while (number >= weights_[i]) number -= weights_[i++];
      drawn_[way] = members[i];
      left -= weights_[i];
      weights_[i] = 0;
    }
    // The larger a class the sooner it is drawn, which labels must not tell.
    shuffle_.Draw(random, ways, ways, classes);
    for (std::int64_t way = 0; way < ways; ++way) classes[way] = drawn_[classes[way]];
  }

  const ClassTable& table_;
  const Pools& pools_;
  const EpisodeShape& shape_;
  Shuffle shuffle_;
  std::vector<std::int64_t> weights_, drawn_;
};

}  // namespace

void SampleEpisodes(const ClassTable& table, const Pools& pools, const EpisodeShape& shape,
                    std::uint64_t seed, std::uint64_t step, std::int64_t first, std::int64_t tasks,
                    const Episodes& episodes) {
  Sampler sampler(table, pools, shape);
  const std::int64_t ways = shape.ways.most;
  for (std::int64_t task = 0; task < tasks; ++task) {
    sampler.Draw(Random(seed, step, static_cast<std::uint64_t>(first + task)),
                 episodes.classes + task * ways,
                 episodes.indices + task * ways * (shape.shots.most + shape.queries),
                 episodes.turns + task * ways);
  }
}

}  // namespace tfmeta
