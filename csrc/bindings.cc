// The Python module tfmeta._core: checks and converts arguments, releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "augmentation.h"
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

constexpr py::ssize_t kAnyRank = -1;

// The data of an array, or an error that names the argument.
template <typename T>
const T* Data(const char* name, const py::array& array, py::ssize_t rank) {
  constexpr int kNeeded = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!HasType<T>(array) || (array.flags() & kNeeded) != kNeeded ||
      (rank != kAnyRank && array.ndim() != rank)) {
    Fail("`" + std::string(name) + "` must be a contiguous array of " + Text(py::dtype::of<T>()) +
             (rank == kAnyRank ? "" : " of rank " + std::to_string(rank)),
         "dtype " + Text(array.dtype()) + ", shape " + Text(array.attr("shape")) + ", strides " +
             Text(array.attr("strides")));
  }
  return static_cast<const T*>(array.data());
}

// Numbers that say where something lies are checked and used as a copy: another thread may write to
// the array in between, for the GIL is released and NumPy heeds no lock.
template <typename T>
std::vector<T> Copied(const char* name, const py::array& array, py::ssize_t rank) {
  const T* data = Data<T>(name, array, rank);
  return {data, data + array.size()};
}

// Of the lengths of an array's axes. NumPy refuses those that overflow without the ones of length
// 0.
template <typename Factors = std::initializer_list<std::int64_t>>
std::int64_t Product(const Factors& factors) {
  std::int64_t product = 1, counted = 1;
  for (const std::int64_t factor : factors) {
    if (factor != 0 && counted > std::numeric_limits<std::int64_t>::max() / 8 / factor) {
      throw std::bad_alloc();  // MemoryError: nothing of that size can be held
    }
    if (factor != 0) counted *= factor;
    product *= factor;
  }
  return product;
}

// Uninitialised, on a 64-byte boundary: TensorFlow takes such an array without a copy.
template <typename T = float>
py::array_t<T> AlignedArray(const Shape& shape) {
  const std::int64_t size = Product(shape);
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

void CheckRange(const char* name, std::pair<std::int64_t, std::int64_t> range, std::int64_t least) {
  CheckAtLeast(name, range.first, least);
  if (range.first > range.second) {
    Fail("`" + std::string(name) + "` must be (least, most)",
         "(" + std::to_string(range.first) + ", " + std::to_string(range.second) + ")");
  }
}

// Offsets that ascend from 0 to the number of classes in all pools, which exist.
void CheckPools(const std::vector<std::int64_t>& offsets, const std::vector<std::int64_t>& classes,
                std::int64_t num_classes) {
  const auto members = static_cast<std::int64_t>(classes.size());
  if (offsets.size() < 2 || offsets.size() > std::numeric_limits<std::uint32_t>::max() ||
      offsets.front() != 0 || offsets.back() != members ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    Fail("`pool_offsets` must ascend from 0 to the length of `pool_classes`",
         std::to_string(offsets.size()) + " offsets, " + std::to_string(members) + " classes");
  }
  for (const std::int64_t c : classes) {
    if (c < 0 || c >= num_classes) {
      Fail("`pool_classes` must be at least 0 and less than " + std::to_string(num_classes),
           std::to_string(c));
    }
  }
}

py::tuple Sample(const py::array& class_offsets, const py::array& class_indices,
                 const py::array& quarter_turns, const py::array& pool_offsets,
                 const py::array& pool_classes, std::pair<std::int64_t, std::int64_t> ways,
                 std::pair<std::int64_t, std::int64_t> shots, std::int64_t queries,
                 std::uint64_t seed, std::uint64_t step, std::int64_t tasks,
                 std::int64_t first_task, bool random_rotation, bool balanced, bool weighted) {
  const auto offsets = Copied<std::int64_t>("class_offsets", class_offsets, 1);
  const auto* indices = Data<std::int64_t>("class_indices", class_indices, 1);
  const auto* turns = Data<std::uint8_t>("quarter_turns", quarter_turns, 1);
  const auto of_pools = Copied<std::int64_t>("pool_offsets", pool_offsets, 1);
  const auto classes = Copied<std::int64_t>("pool_classes", pool_classes, 1);
  const std::int64_t num_classes = quarter_turns.size();
  if (class_offsets.size() != num_classes + 1) {
    Fail("`class_offsets` must have one entry more than `quarter_turns`",
         "lengths " + std::to_string(class_offsets.size()) + " and " + std::to_string(num_classes));
  }
  CheckPools(of_pools, classes, num_classes);
  CheckRange("ways", ways, 1);
  CheckRange("shots", shots, 0);
  CheckAtLeast("queries", queries, 0);
  CheckAtLeast("tasks", tasks, 0);
  CheckAtLeast("first_task", first_task, 0);
  if (ways.second > pool_classes.size() ||
      num_classes > std::numeric_limits<std::uint32_t>::max()) {
    Fail("`ways` must be at most the number of classes, and that below 2**32",
         "ways=" + std::to_string(ways.second) + ", " + std::to_string(pool_classes.size()) +
             " classes");
  }
  if (shots.second > class_indices.size() || queries > class_indices.size() - shots.second) {
    Fail("`shots` + `queries` must be at most the length of `class_indices`, " +
             std::to_string(class_indices.size()),
         "shots=" + std::to_string(shots.second) + ", queries=" + std::to_string(queries));
  }
  if (weighted) {
    for (std::int64_t c = 0; c < num_classes; ++c) {
      if (offsets[c] > offsets[c + 1]) Fail("`class_offsets` must ascend", Text(class_offsets));
    }
    if (offsets[0] < 0 || offsets[num_classes] > class_indices.size()) {
      Fail("`class_offsets` must be within `class_indices` of length " +
               std::to_string(class_indices.size()),
           Text(class_offsets));
    }
    if (pool_classes.size() > 0 &&
        class_indices.size() > std::numeric_limits<std::uint32_t>::max()) {
      Fail("`class_indices` must be shorter than 2**32 for `weighted` classes",
           std::to_string(class_indices.size()));
    }
  }
  const std::int64_t most = ways.second, examples = shots.second + queries;
  Product({tasks, most, examples});
  py::array_t<std::int64_t> drawn_classes(Shape{tasks, most});
  py::array_t<std::int64_t> drawn_indices(Shape{tasks, most, examples});
  py::array_t<std::uint8_t> drawn_turns(Shape{tasks, most});
  const tfmeta::Episodes episodes{drawn_classes.mutable_data(), drawn_indices.mutable_data(),
                                  drawn_turns.mutable_data()};
  {
    py::gil_scoped_release release;
    tfmeta::SampleEpisodes({offsets.data(), indices, turns, num_classes, class_indices.size()},
                           {of_pools.data(), classes.data(), pool_offsets.size() - 1},
                           {{ways.first, ways.second},
                            {shots.first, shots.second},
                            queries,
                            random_rotation,
                            balanced,
                            weighted},
                           seed, step, first_task, tasks, episodes);
  }
  return py::make_tuple(drawn_classes, drawn_indices, drawn_turns);
}

py::array_t<tfmeta::Augmentation> Augmentations(std::int64_t places, std::int64_t rows,
                                                std::int64_t columns, std::uint64_t seed,
                                                std::uint64_t step, std::int64_t tasks,
                                                std::int64_t first, bool flip, std::int64_t crop,
                                                float brightness, float contrast,
                                                std::int64_t cutout) {
  CheckAtLeast("places", places, 0);
  CheckAtLeast("tasks", tasks, 0);
  CheckAtLeast("first", first, 0);
  constexpr std::int64_t kMost = 1 << 24;  // so that whatever is drawn is an int32
  if (rows < 1 || rows > kMost || columns < 1 || columns > kMost) {
    Fail("`rows` and `columns` must be from 1 to 2**24",
         "rows=" + std::to_string(rows) + ", columns=" + std::to_string(columns));
  }
  CheckAtLeast("crop", crop, 0);
  CheckAtLeast("cutout", cutout, 0);
  if (crop > kMost || cutout > rows || cutout > columns) {
    Fail("`crop` must be at most 2**24, and `cutout` at most `rows` and `columns`",
         "crop=" + std::to_string(crop) + ", cutout=" + std::to_string(cutout) +
             ", rows=" + std::to_string(rows) + ", columns=" + std::to_string(columns));
  }
  if (!(brightness >= 0 && brightness <= 1 && contrast >= 0 && contrast <= 1)) {
    Fail("`brightness` and `contrast` must be from 0 to 1",
         "brightness=" + std::to_string(brightness) + ", contrast=" + std::to_string(contrast));
  }
  Product({tasks, places, sizeof(tfmeta::Augmentation)});
  py::array_t<tfmeta::Augmentation> drawn(Shape{tasks, places});
  tfmeta::Augmentation* to = drawn.mutable_data();
  const tfmeta::AugmentationRanges ranges{flip,
                                          static_cast<std::int32_t>(crop),
                                          brightness,
                                          contrast,
                                          static_cast<std::int32_t>(cutout),
                                          static_cast<std::int32_t>(rows),
                                          static_cast<std::int32_t>(columns)};
  py::gil_scoped_release release;
  tfmeta::DrawAugmentations(ranges, seed, step, first, tasks, places, to);
  return drawn;
}

tfmeta::Element CheckElement(const py::array& array) {
  if (HasType<std::uint8_t>(array)) return tfmeta::Element::kUint8;
  if (HasType<std::uint16_t>(array)) return tfmeta::Element::kUint16;
  if (HasType<float>(array)) return tfmeta::Element::kFloat32;
  if (array.dtype().equal(py::dtype("float16"))) return tfmeta::Element::kFloat16;
  Fail("`examples` must be of dtype uint8, uint16, float16 or float32",
       "dtype " + Text(array.dtype()));
}

// An array, or several that are seen as one along the first axis.
std::vector<py::array> Shards(const py::object& examples) {
  if (py::isinstance<py::array>(examples)) return {py::reinterpret_borrow<py::array>(examples)};
  std::vector<py::array> shards;
  if (py::isinstance<py::list>(examples) || py::isinstance<py::tuple>(examples)) {
    for (const py::handle& shard : examples) {
      if (!py::isinstance<py::array>(shard)) break;
      shards.push_back(py::reinterpret_borrow<py::array>(shard));
    }
    if (!shards.empty() && shards.size() == py::len(examples)) return shards;
  }
  throw py::type_error("`examples` must be an array, or a list of arrays. Received: " +
                       Text(py::type::of(examples)));
}

tfmeta::Examples CheckArray(const py::array& array, bool mapped_file) {
  const tfmeta::Element element = CheckElement(array);
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
  const bool images = rank > 2;
  return {{{static_cast<const unsigned char*>(array.data()), 0}},
          array.strides(0),
          element,
          array.shape(0),
          size,
          images ? array.shape(1) : 0,
          images ? array.shape(2) : 0,
          mapped_file};
}

tfmeta::Examples CheckExamples(const std::vector<py::array>& arrays, bool mapped_file) {
  tfmeta::Examples examples = CheckArray(arrays[0], mapped_file);
  if (arrays.size() == 1) return examples;
  examples.stride = examples.size * arrays[0].itemsize();
  examples.shards.clear();
  examples.count = 0;
  for (const py::array& array : arrays) {
    const tfmeta::Examples one = CheckArray(array, mapped_file);
    if (!array.dtype().equal(arrays[0].dtype()) || array.ndim() != arrays[0].ndim() ||
        !std::equal(array.shape() + 1, array.shape() + array.ndim(), arrays[0].shape() + 1)) {
      Fail("`examples` must be of one type and shape in all shards",
           Text(array.dtype()) + " " + Text(array.attr("shape")) + " behind " +
               Text(arrays[0].dtype()) + " " + Text(arrays[0].attr("shape")));
    }
    if (one.count > 1 && one.stride != examples.stride) {
      Fail("shards of `examples` must be contiguous", "strides " + Text(array.attr("strides")));
    }
    examples.shards.push_back({one.shards[0].data, examples.count});
    examples.count += one.count;
  }
  return examples;
}

// One number for each channel: the last axis of examples, but for grey images `[n, h, w]`.
tfmeta::Normalization CheckNormalization(const py::array& examples,
                                         const std::optional<py::array>& scale,
                                         const std::optional<py::array>& offset) {
  if (!scale && !offset) return {nullptr, nullptr, 1};
  if (!scale || !offset) Fail("`scale` and `offset` must be given together", "one of them");
  const py::ssize_t rank = examples.ndim();
  const py::ssize_t channels = rank == 1 || rank == 3 ? 1 : examples.shape(rank - 1);
  const tfmeta::Normalization given{Data<float>("scale", *scale, 1),
                                    Data<float>("offset", *offset, 1), channels};
  if (scale->size() != channels || offset->size() != channels) {
    Fail("`scale` and `offset` must have a number for each channel, " + std::to_string(channels),
         "lengths " + std::to_string(scale->size()) + " and " + std::to_string(offset->size()));
  }
  return given;
}

py::array_t<float> Gather(const py::object& given, const py::array& indices, const py::array& turns,
                          const std::optional<py::array>& augmentations,
                          const std::optional<py::array>& scale,
                          const std::optional<py::array>& offset, int threads, bool mapped_file) {
  const std::vector<py::array> shards = Shards(given);
  const py::array& examples = shards[0];
  const tfmeta::Examples source = CheckExamples(shards, mapped_file);
  const tfmeta::Normalization normalization = CheckNormalization(examples, scale, offset);
  const auto index = Copied<std::int64_t>("indices", indices, kAnyRank);
  const auto turn = Copied<std::uint8_t>("turns", turns, kAnyRank);
  std::vector<tfmeta::Augmentation> changes;
  if (augmentations) {
    changes = Copied<tfmeta::Augmentation>("augmentations", *augmentations, kAnyRank);
  }
  const auto check_shape = [&](const char* name, const py::array& array) {
    if (array.ndim() == indices.ndim() &&
        std::equal(array.shape(), array.shape() + array.ndim(), indices.shape())) {
      return;
    }
    Fail("`" + std::string(name) + "` must have the shape of `indices`",
         "shapes " + Text(array.attr("shape")) + " and " + Text(indices.attr("shape")));
  };
  check_shape("turns", turns);
  if (augmentations) check_shape("augmentations", *augmentations);
  CheckAtLeast("threads", threads, 1);
  for (const std::int64_t i : index) {
    if (i < -1 || i >= source.count) {
      Fail("`indices` must be at least -1 and less than the number of examples, " +
               std::to_string(source.count),
           std::to_string(i));
    }
  }
  const bool square = source.rows > 0 && source.rows == source.columns;
  if (!square && std::any_of(turn.begin(), turn.end(), [](auto t) { return t % 4 != 0; })) {
    Fail("`examples` must be square images `[n, height, width, ...]` to be turned",
         "shape " + Text(examples.attr("shape")));
  }
  if (augmentations && source.rows == 0) {
    Fail("`examples` must be images `[n, height, width, ...]` to be augmented",
         "shape " + Text(examples.attr("shape")));
  }

  Shape shape(indices.shape(), indices.shape() + indices.ndim());
  shape.insert(shape.end(), examples.shape() + 1, examples.shape() + examples.ndim());
  py::array_t<float> gathered = AlignedArray<float>(shape);
  std::int64_t bad;
  {
    float* to = gathered.mutable_data();
    py::gil_scoped_release release;
    const auto count = static_cast<std::int64_t>(index.size());
    bad = tfmeta::Gather(
        source, {index.data(), turn.data(), augmentations ? changes.data() : nullptr, count},
        normalization, to, threads);
  }
  if (bad >= 0) {
    Fail("`examples` must be finite numbers",
         "a NaN or an infinity in example " + std::to_string(index[static_cast<std::size_t>(bad)]));
  }
  return gathered;
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
  const auto label = Copied<std::int64_t>("labels", labels, 2);
  if (labels.shape(0) != embeddings.shape(0) || labels.shape(1) != embeddings.shape(1)) {
    Fail("`embeddings` and `labels` must be [tasks, n, d] and [tasks, n]",
         "shapes " + Text(embeddings.attr("shape")) + " and " + Text(labels.attr("shape")));
  }
  CheckAtLeast("ways", ways, 1);
  if (ways > labels.shape(1)) {
    Fail("`ways` must be at most the number of a task's examples, " +
             std::to_string(labels.shape(1)) + ", for each class to have one",
         "ways=" + std::to_string(ways));
  }
  threads = Threads(threads);
  const tfmeta::Prototypes prototypes = {embeddings.shape(0), embeddings.shape(1), ways,
                                         embeddings.shape(2)};
  py::array_t<T> out = AlignedArray<T>({prototypes.tasks, ways, prototypes.depth});
  std::vector<std::int64_t> counts(Product({prototypes.tasks, ways}));
  std::int64_t bad = prototypes.Count(label.data(), counts.data());
  for (std::int64_t i = 0; bad < 0 && i < labels.size(); ++i) bad = label[i] < 0 ? i : -1;
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
    prototypes.Forward(from, label.data(), counts.data(), to, threads);
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
      "Draws and gathers episodes, and measures distances; see csrc/episodes.h, csrc/gather.h and "
      "csrc/distances.h.";
  module.def("sample", &Sample, py::arg("class_offsets"), py::arg("class_indices"),
             py::arg("quarter_turns"), py::arg("pool_offsets"), py::arg("pool_classes"),
             py::arg("ways"), py::arg("shots"), py::arg("queries"), py::arg("seed"),
             py::arg("step"), py::arg("tasks"), py::arg("first_task") = 0,
             py::arg("random_rotation") = false, py::arg("balanced") = true,
             py::arg("weighted") = false,
             "Draw which classes and examples make up the tasks of meta-batch `step`.");
  PYBIND11_NUMPY_DTYPE(tfmeta::Augmentation, flip, top, left, brightness, contrast, cut_top,
                       cut_left, cut_height, cut_width);
  module.def("augmentations", &Augmentations, py::arg("places"), py::arg("rows"),
             py::arg("columns"), py::arg("seed"), py::arg("step"), py::arg("tasks"),
             py::arg("first") = 0, py::kw_only(), py::arg("flip") = false, py::arg("crop") = 0,
             py::arg("brightness") = 0.0f, py::arg("contrast") = 0.0f, py::arg("cutout") = 0,
             "Draw how each image of the tasks of meta-batch `step` is changed.");
  module.def("gather", &Gather, py::arg("examples"), py::arg("indices"), py::arg("turns"),
             py::arg("augmentations") = py::none(), py::arg("scale") = py::none(),
             py::arg("offset") = py::none(), py::arg("threads") = 1, py::arg("mapped_file") = false,
             "Copy drawn examples into a float32 array: turned, augmented, normalised.");
  module.def("prototypes", &Prototypes, py::arg("embeddings"), py::arg("labels"), py::arg("ways"),
             py::arg("threads") = 0, "Return the mean embedding of each class.");
  module.def("squared_euclidean", &Distances<tfmeta::Measure::kSquaredEuclidean>,
             py::arg("queries"), py::arg("prototypes"), py::arg("threads") = 0,
             "Return the squared distance of every query to every prototype.");
  module.def("cosine_similarity", &Distances<tfmeta::Measure::kCosine>, py::arg("queries"),
             py::arg("prototypes"), py::arg("threads") = 0,
             "Return the cosine of every query and every prototype.");
}
