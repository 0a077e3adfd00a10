// The Python module tfmeta._core: checks and converts arguments, releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "buffers.h"
#include "distances.h"
#include "episodes.h"
#include "gather.h"

namespace py = pybind11;

namespace {

using Shape = std::vector<py::ssize_t>;

[[noreturn]] void Fail(const std::string& expected, const std::string& received) {
  throw py::value_error(expected + ". Received: " + received);
}

std::string Text(const py::handle& value) { return py::str(value).cast<std::string>(); }

void CheckAtLeast(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    Fail("`" + std::string(name) + "` must be at least " + std::to_string(least),
         std::string(name) + "=" + std::to_string(value));
  }
}

template <typename T>
bool HasType(const py::array& array) {
  return py::isinstance<py::array_t<T, 0>>(array);  // the type in native byte order
}

// The data of an array, or an error that names the argument.
template <typename T>
const T* Data(const char* name, const py::array& array, py::ssize_t rank) {
  constexpr int kNeeded = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!HasType<T>(array) || (array.flags() & kNeeded) != kNeeded || array.ndim() != rank) {
    Fail("`" + std::string(name) + "` must be a contiguous array of " + Text(py::dtype::of<T>()) +
             " of rank " + std::to_string(rank),
         "dtype " + Text(array.dtype()) + ", shape " + Text(array.attr("shape")) + ", strides " +
             Text(array.attr("strides")));
  }
  return static_cast<const T*>(array.data());
}

std::int64_t Product(std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    if (factor != 0 && product > std::numeric_limits<std::int64_t>::max() / 8 / factor) {
      throw std::bad_alloc();  // MemoryError: nothing of that size can be held
    }
    product *= factor;
  }
  return product;
}

// Uninitialised, on a 64-byte boundary: TensorFlow takes such an array without a copy.
template <typename T = float>
py::array_t<T> AlignedArray(const Shape& shape) {
  std::int64_t size = 1;
  for (const py::ssize_t n : shape) size = Product({size, n});
  struct Owned {
    explicit Owned(std::size_t size) : bytes(size), data(tfmeta::TakeBuffer(size)) {}
    ~Owned() { tfmeta::GiveBuffer(data, bytes); }
    std::size_t bytes;
    void* data;
  };
  auto owned = std::make_unique<Owned>(static_cast<std::size_t>(size) * sizeof(T));
  py::capsule owner(owned.get(), [](void* p) { delete static_cast<Owned*>(p); });
  return py::array_t<T>(shape, static_cast<T*>(owned.release()->data), owner);
}

py::tuple Sample(const py::array& class_offsets, const py::array& class_indices,
                 const py::array& quarter_turns, std::int64_t ways, std::int64_t shots,
                 std::int64_t queries, std::uint64_t seed, std::uint64_t step, std::int64_t tasks,
                 bool random_rotation) {
  const auto* offsets = Data<std::int64_t>("class_offsets", class_offsets, 1);
  const auto* indices = Data<std::int64_t>("class_indices", class_indices, 1);
  const auto* turns = Data<std::uint8_t>("quarter_turns", quarter_turns, 1);
  const std::int64_t num_classes = quarter_turns.size();
  if (class_offsets.size() != num_classes + 1) {
    Fail("`class_offsets` must have one entry more than `quarter_turns`",
         "lengths " + std::to_string(class_offsets.size()) + " and " + std::to_string(num_classes));
  }
  CheckAtLeast("ways", ways, 1);
  CheckAtLeast("shots", shots, 0);
  CheckAtLeast("queries", queries, 0);
  CheckAtLeast("tasks", tasks, 0);
  if (ways > num_classes || num_classes > std::numeric_limits<std::uint32_t>::max()) {
    Fail("`ways` must be at most the number of classes, and that below 2**32",
         "ways=" + std::to_string(ways) + ", " + std::to_string(num_classes) + " classes");
  }
  if (shots > class_indices.size() || queries > class_indices.size() - shots) {
    Fail("`shots` + `queries` must be at most the length of `class_indices`, " +
             std::to_string(class_indices.size()),
         "shots=" + std::to_string(shots) + ", queries=" + std::to_string(queries));
  }
  const std::int64_t examples = shots + queries;
  Product({tasks, ways, examples});
  py::array_t<std::int64_t> drawn_classes(Shape{tasks, ways});
  py::array_t<std::int64_t> drawn_indices(Shape{tasks, ways, examples});
  py::array_t<std::uint8_t> drawn_turns(Shape{tasks, ways});
  const tfmeta::Episodes episodes{drawn_classes.mutable_data(), drawn_indices.mutable_data(),
                                  drawn_turns.mutable_data()};
  {
    py::gil_scoped_release release;
    tfmeta::SampleEpisodes({offsets, indices, turns, num_classes, class_indices.size()},
                           {ways, examples, random_rotation}, seed, step, tasks, episodes);
  }
  return py::make_tuple(drawn_classes, drawn_indices, drawn_turns);
}

tfmeta::Examples CheckExamples(const py::array& array, bool mapped_file) {
  const bool uint8 = HasType<std::uint8_t>(array);
  if (!uint8 && !HasType<float>(array)) {
    Fail("`examples` must be of dtype uint8 or float32", "dtype " + Text(array.dtype()));
  }
  const py::ssize_t rank = array.ndim();
  if (rank == 0 || array.size() == 0) {
    Fail("`examples` must hold at least one example and at least one element",
         "shape " + Text(array.attr("shape")));
  }
  std::int64_t size = 1;
  for (py::ssize_t axis = rank - 1; axis > 0; --axis) {
    if (array.shape(axis) != 1 && array.strides(axis) != size * array.itemsize()) {
      Fail("each of `examples` must be contiguous", "strides " + Text(array.attr("strides")));
    }
    size *= array.shape(axis);
  }
  if (array.strides(0) < 0) {
    Fail("`examples` must be in ascending order in memory",
         "strides " + Text(array.attr("strides")));
  }
  const bool square = rank > 2 && array.shape(1) == array.shape(2);
  return {static_cast<const unsigned char*>(array.data()),
          array.strides(0),
          uint8 ? tfmeta::Element::kUint8 : tfmeta::Element::kFloat32,
          array.shape(0),
          size,
          square ? array.shape(1) : 0,
          mapped_file};
}

py::tuple Gather(const py::array& examples, const py::array& indices, const py::array& turns,
                 std::int64_t shots, int threads, bool mapped_file) {
  const tfmeta::Examples source = CheckExamples(examples, mapped_file);
  const auto* index = Data<std::int64_t>("indices", indices, 3);
  const auto* turn = Data<std::uint8_t>("turns", turns, 2);
  const std::int64_t tasks = indices.shape(0);
  const std::int64_t ways = indices.shape(1);
  const std::int64_t queries = indices.shape(2) - shots;
  if (turns.shape(0) != tasks || turns.shape(1) != ways) {
    Fail("`turns` must have the first two dimensions of `indices`",
         "shapes " + Text(turns.attr("shape")) + " and " + Text(indices.attr("shape")));
  }
  CheckAtLeast("shots", shots, 0);
  if (queries < 0 || indices.shape(2) == 0) {
    Fail("`shots` must be at most the last dimension of `indices`, and that at least 1",
         "shots=" + std::to_string(shots) + ", shape " + Text(indices.attr("shape")));
  }
  CheckAtLeast("threads", threads, 1);
  for (py::ssize_t i = 0; i < indices.size(); ++i) {
    if (index[i] < 0 || index[i] >= source.count) {
      Fail("`indices` must be at least 0 and less than the number of examples, " +
               std::to_string(source.count),
           std::to_string(index[i]));
    }
  }
  for (py::ssize_t i = 0; source.side == 0 && i < turns.size(); ++i) {
    if (turn[i] % 4 != 0) {
      Fail("`examples` must be square images `[n, height, width, ...]` to be turned",
           "shape " + Text(examples.attr("shape")));
    }
  }

  Shape shape{tasks, Product({ways, shots})};
  for (py::ssize_t axis = 1; axis < examples.ndim(); ++axis) shape.push_back(examples.shape(axis));
  py::array_t<float> support = AlignedArray(shape);
  shape[1] = Product({ways, queries});
  py::array_t<float> query = AlignedArray(shape);
  std::int64_t bad;
  {
    float* to_support = support.mutable_data();
    float* to_query = query.mutable_data();
    py::gil_scoped_release release;
    bad = tfmeta::Gather(source, {index, turn, tasks, ways, shots, queries}, to_support, to_query,
                         threads);
  }
  if (bad >= 0) {
    Fail("`examples` must be finite numbers",
         "a NaN or an infinity in example " + std::to_string(index[bad]));
  }
  return py::make_tuple(support, query);
}

int Threads(int threads) {
  CheckAtLeast("threads", threads, 0);
  static const int cores = std::max(1u, std::thread::hardware_concurrency());  // asked once: slow
  return threads > 0 ? threads : cores;
}

template <typename T, tfmeta::Measure measure>
py::array DistancesOf(const py::array& queries, const py::array& prototypes, int threads) {
  const T* const x = Data<T>("queries", queries, 3);
  const T* const y = Data<T>("prototypes", prototypes, 3);
  if (queries.shape(0) != prototypes.shape(0) || queries.shape(2) != prototypes.shape(2)) {
    Fail("`queries` and `prototypes` must be [tasks, q, d] and [tasks, ways, d]",
         "shapes " + Text(queries.attr("shape")) + " and " + Text(prototypes.attr("shape")));
  }
  threads = Threads(threads);
  const tfmeta::Distances<T> distances = {measure, queries.shape(0), queries.shape(1),
                                          prototypes.shape(1), queries.shape(2)};
  py::array_t<T> out = AlignedArray<T>({distances.tasks, distances.queries, distances.ways});
  T* const to = out.mutable_data();
  {
    py::gil_scoped_release release;
    distances.Forward(x, y, to, threads);
  }
  return out;
}

template <tfmeta::Measure measure>
py::array Distances(const py::array& queries, const py::array& prototypes, int threads) {
  const bool doubles = HasType<double>(queries);
  return doubles ? DistancesOf<double, measure>(queries, prototypes, threads)
                 : DistancesOf<float, measure>(queries, prototypes, threads);
}

template <typename T>
py::array PrototypesOf(const py::array& embeddings, const py::array& labels, std::int64_t ways,
                       int threads) {
  const T* const from = Data<T>("embeddings", embeddings, 3);
  const auto* const label = Data<std::int64_t>("labels", labels, 2);
  if (labels.shape(0) != embeddings.shape(0) || labels.shape(1) != embeddings.shape(1)) {
    Fail("`embeddings` and `labels` must be [tasks, n, d] and [tasks, n]",
         "shapes " + Text(embeddings.attr("shape")) + " and " + Text(labels.attr("shape")));
  }
  CheckAtLeast("ways", ways, 1);
  threads = Threads(threads);
  const tfmeta::Prototypes prototypes = {embeddings.shape(0), embeddings.shape(1), ways,
                                         embeddings.shape(2)};
  py::array_t<T> out(Shape{prototypes.tasks, ways, prototypes.depth});
  std::vector<std::int64_t> counts(Product({prototypes.tasks, ways}));
  const std::int64_t bad = prototypes.Count(label, counts.data());
  if (bad >= 0) {
    Fail("`labels` must be in 0..ways-1, with ways=" + std::to_string(ways),
         std::to_string(label[bad]));
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) {
      Fail("each task must have an example of each class in 0..ways-1, with ways=" +
               std::to_string(ways),
           "`labels` without class " + std::to_string(i % ways) + " in task " +
               std::to_string(i / ways));
    }
  }
  T* const to = out.mutable_data();
  {
    py::gil_scoped_release release;
    prototypes.Forward(from, label, counts.data(), to, threads);
  }
  return out;
}

py::array Prototypes(const py::array& embeddings, const py::array& labels, std::int64_t ways,
                     int threads) {
  return HasType<double>(embeddings) ? PrototypesOf<double>(embeddings, labels, ways, threads)
                                     : PrototypesOf<float>(embeddings, labels, ways, threads);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "Draws and gathers episodes, and measures distances; see csrc/{episodes,gather,distances}.h.";
  module.def("sample", &Sample, py::arg("class_offsets"), py::arg("class_indices"),
             py::arg("quarter_turns"), py::arg("ways"), py::arg("shots"), py::arg("queries"),
             py::arg("seed"), py::arg("step"), py::arg("tasks"), py::arg("random_rotation") = false,
             "Draw which classes and examples make up the tasks of meta-batch `step`.");
  module.def("gather", &Gather, py::arg("examples"), py::arg("indices"), py::arg("turns"),
             py::arg("shots"), py::arg("threads") = 1, py::arg("mapped_file") = false,
             "Copy drawn examples into float32 support and query arrays.");
  module.def("prototypes", &Prototypes, py::arg("embeddings"), py::arg("labels"), py::arg("ways"),
             py::arg("threads") = 0, "Return the mean embedding of each class.");
  module.def("squared_euclidean", &Distances<tfmeta::Measure::kSquaredEuclidean>,
             py::arg("queries"), py::arg("prototypes"), py::arg("threads") = 0,
             "Return the squared distance of every query to every prototype.");
  module.def("cosine_similarity", &Distances<tfmeta::Measure::kCosine>, py::arg("queries"),
             py::arg("prototypes"), py::arg("threads") = 0,
             "Return the cosine of every query and every prototype.");
}
