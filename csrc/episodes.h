// Which classes and examples make up the episodes of a meta-batch: a pure function of
// (seed, step, task), so that neither threads, nor the order of calls, nor the process matter.
//
// Random numbers are counter-based. With Mix the finaliser of SplitMix64 and G = 2^64 / phi:
//
//     key     = Mix((Mix((Mix(seed + G) ^ step) + G) ^ task) + G)
//     word(n) = Mix(key + (n + 1) * G) >> 32                     n = 0, 1, 2, ...
//
// An integer below b is the upper half of word * b (Lemire's multiply-shift), with the next word
// taken where the lower half is less than (2^32 - b) mod b: every integer is equally likely.
//
// k of n without replacement are the first k places of a partial Fisher-Yates shuffle of 0..n-1:
// place i is exchanged with place i + (an integer below n - i), i = 0, ..., k-1.
//
// The draws of a task, in order: `ways` of all classes; then for each of these its quarter turns
// (an integer below 4, only with `random_rotation`) and `examples` of its examples.
#pragma once

#include <cstdint>

namespace tfmeta {

// The examples of class c are indices[offsets[c]] to indices[offsets[c + 1] - 1].
struct ClassTable {
  const std::int64_t* offsets;
  const std::int64_t* indices;
  const std::uint8_t* quarter_turns;  // by how much each class is turned to begin with
  std::int64_t num_classes;
  std::int64_t num_indices;
};

struct EpisodeShape {
  std::int64_t ways;
  std::int64_t examples;  // of each class: shots + queries
  bool random_rotation;
};

// What SampleEpisodes fills in.
struct Episodes {
  std::int64_t* classes;  // [tasks, ways]
  std::int64_t* indices;  // [tasks, ways, examples]
  std::uint8_t* turns;    // [tasks, ways], counter-clockwise quarter turns, 0 to 3
};

// Throws std::invalid_argument where a class that is drawn has too few examples.
void SampleEpisodes(const ClassTable& table, const EpisodeShape& shape, std::uint64_t seed,
                    std::uint64_t step, std::int64_t tasks, const Episodes& episodes);

}  // namespace tfmeta
