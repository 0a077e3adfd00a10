// Prototypes, and the distances of queries to them, batched over tasks; with gradients.
#pragma once

#include <cstdint>

namespace tfmeta {

enum class Measure { kSquaredEuclidean, kCosine };

// Queries [tasks, queries, depth] and prototypes [tasks, ways, depth]; results [tasks, queries,
// ways]. T is float or double.
template <typename T>
struct Distances {
  Measure measure;
  std::int64_t tasks, queries, ways, depth;

  // Differences are formed before they are squared, so that nothing cancels far from the origin. A
  // cosine is that of vectors whose norms are taken to be 1e-6 at least, as TensorFlow does.
  void Forward(const T* queries, const T* prototypes, T* out, int threads) const;
  // From the adjoint of the result, [tasks, queries, ways], to those of both inputs.
  void Backward(const T* queries, const T* prototypes, const T* adjoint, T* to_queries,
                T* to_prototypes, int threads) const;

 private:
  // How many of the threads so many products are worth.
  int Worth(std::int64_t products, int threads) const;
};

// Embeddings [tasks, examples, depth], their labels [tasks, examples], means [tasks, ways, depth].
struct Prototypes {
  static constexpr std::int64_t kNoClass = -1;  // the label of an example that only fills up

  std::int64_t tasks, examples, ways, depth;

  // Counts the examples of each class, [tasks, ways]. Returns the place of the first label that is
  // neither in 0..ways-1 nor kNoClass, or -1.
  std::int64_t Count(const std::int64_t* labels, std::int64_t* counts) const;
  // A class without examples gets zeros.
  template <typename T>
  void Forward(const T* embeddings, const std::int64_t* labels, const std::int64_t* counts,
               T* means, int threads) const;
  template <typename T>
  void Backward(const T* to_means, const std::int64_t* labels, const std::int64_t* counts,
                T* to_embeddings, int threads) const;
};

}  // namespace tfmeta
