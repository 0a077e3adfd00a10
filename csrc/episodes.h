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
// The draws of a task, in order, each only where there is a choice:
//
//   - the pool of classes, where there are several: an integer below their number;
//   - the number of ways, where it is a range: as many as the pool has at most;
//   - that many classes of the pool: k of n, or `weighted`, one after another: an integer below the
//     number of examples of the classes that are left, counted through in the order of the pool,
//     and then all in another order, k of k;
//   - the number of shots, where it is a range and `balanced`: as many at most as leave each class
//     its queries;
//   - then for each class the number of shots, where it is a range and not `balanced`; its quarter
//     turns with `random_rotation`, an integer below 4; and shots + queries of its examples.
//
// A number from a range is the least plus an integer below how many there are.
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

// The classes of pool p, from which all of a task are, are classes[offsets[p]] to
// classes[offsets[p + 1] - 1].
struct Pools {
  const std::int64_t* offsets;
  const std::int64_t* classes;
  std::int64_t number;
};

struct Range {
  std::int64_t least, most;
};

struct EpisodeShape {
  Range ways, shots;
  std::int64_t queries;
  bool random_rotation;
  bool balanced;  // all classes of a task have as many shots
  bool weighted;  // classes are drawn by how many examples they have
};

// What SampleEpisodes fills in; -1 where a task has fewer ways or shots than the most.
struct Episodes {
  std::int64_t* classes;  // [tasks, ways]
  std::int64_t* indices;  // [tasks, ways, shots + queries]: the queries behind the most shots
  std::uint8_t* turns;    // [tasks, ways], counter-clockwise quarter turns, 0 to 3
};

// Tasks `first` to `first + tasks - 1` of a meta-batch. Throws std::invalid_argument where a class
// that is drawn has too few examples, or a pool too few classes.
void SampleEpisodes(const ClassTable& table, const Pools& pools, const EpisodeShape& shape,
                    std::uint64_t seed, std::uint64_t step, std::int64_t first, std::int64_t tasks,
                    const Episodes& episodes);

}  // namespace tfmeta
