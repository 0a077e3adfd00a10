// The kernels as TensorFlow operations: the only file that knows TensorFlow, through its C API.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "batch_norm.h"
#include "convolution.h"
#include "distances.h"
#include "max_pool.h"
#include "tf_api.h"

namespace {

using tfmeta::BatchNorm;
using tfmeta::Convolution;
using tfmeta::Distances;
using tfmeta::MaxPool;
using tfmeta::Measure;
using tfmeta::Prototypes;

using Dims = std::vector<std::int64_t>;

struct Delete {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
  void operator()(TF_ShapeHandle* handle) const { TF_DeleteShapeHandle(handle); }
};
template <typename T>
using Owned = std::unique_ptr<T, Delete>;

// As many numbers as no memory holds, and as no arithmetic with a few of them overflows.
constexpr std::int64_t kLargest = std::int64_t{1} << 40;

// The inputs and outputs of one call. After the first failure all else does nothing.
class Call {
 public:
  explicit Call(TF_OpKernelContext* context) : context_(context), status_(TF_NewStatus()) {}
  ~Call() {
    if (!ok()) TF_OpKernelContext_Failure(context_, status_.get());
  }

  bool ok() const { return TF_GetCode(status_.get()) == TF_OK; }

  void Expect(bool holds, const char* message) {
    if (ok() && !holds) TF_SetStatus(status_.get(), TF_INVALID_ARGUMENT, message);
  }

  const TF_Tensor* Input(int index) {
    TF_Tensor* tensor = nullptr;
    if (ok()) TF_GetInput(context_, index, &tensor, status_.get());
    tensors_.emplace_back(tensor);
    return tensor;
  }

  template <typename T = float>
  T* Output(int index, const Dims& dims) {
    constexpr TF_DataType type = sizeof(T) == sizeof(float) ? TF_FLOAT : TF_DOUBLE;
    // TensorFlow itself says where there is no memory, but ends the process for a size that
    // overflows.
    std::int64_t size = 1;
    for (const std::int64_t n : dims) {
      Expect(n >= 0 && n <= kLargest / std::max<std::int64_t>(1, size),
             "window and ways must lead to a result that memory can hold");
      if (!ok()) return nullptr;
      size *= n;
    }
    const std::size_t bytes = size * sizeof(T);
    const int rank = static_cast<int>(dims.size());
    if (!ok()) return nullptr;
    tensors_.emplace_back(
        TF_AllocateOutput(context_, index, type, dims.data(), rank, bytes, status_.get()));
    return ok() ? static_cast<T*>(TF_TensorData(tensors_.back().get())) : nullptr;
  }

 private:
  TF_OpKernelContext* context_;
  Owned<TF_Status> status_;
  std::vector<Owned<TF_Tensor>> tensors_;
};

template <typename T = float>
const T* Data(const TF_Tensor* tensor) {
  return static_cast<const T*>(TF_TensorData(tensor));
}

Dims Shape(const TF_Tensor* tensor) {
  Dims dims(TF_NumDims(tensor));
  for (std::size_t i = 0; i < dims.size(); ++i) dims[i] = TF_Dim(tensor, static_cast<int>(i));
  return dims;
}

// What an operation does, as its attributes say, and on how many threads: 0 for one on each core.
template <typename Work>
struct Kernel {
  Work work;
  std::int64_t threads;

  int Threads() const {
    static const int cores = std::max(1u, std::thread::hardware_concurrency());  // asked once: slow
    // No more than an int holds, nor than any machine has.
    return threads > 0 ? static_cast<int>(std::min<std::int64_t>(threads, 1024)) : cores;
  }
};

template <typename Work>
const Kernel<Work>& KernelOf(void* kernel) {
  return *static_cast<Kernel<Work>*>(kernel);
}

// Makes a kernel; `read` sets the work by the attributes.
template <typename Work, void (*read)(TF_OpKernelConstruction*, Work&, TF_Status*)>
void* Create(TF_OpKernelConstruction* construction) {
  const Owned<TF_Status> status(TF_NewStatus());
  auto kernel = std::make_unique<Kernel<Work>>();
  read(construction, kernel->work, status.get());
  if (TF_GetCode(status.get()) == TF_OK) {
    TF_OpKernelConstruction_GetAttrInt64(construction, "threads", &kernel->threads, status.get());
  }
  if (TF_GetCode(status.get()) == TF_OK) return kernel.release();
  TF_OpKernelConstruction_Failure(construction, status.get());
  return nullptr;
}

// ---- TfmetaBatchNorm(x, gamma, beta; epsilon) -> (y, mean, variance),
// TfmetaBatchNormFirst(dy, x, gamma, mean, variance; epsilon) -> (to_x, to_gamma, to_beta),
// TfmetaBatchNormSecond(dy, x, gamma, mean, variance, a, p, q; epsilon) -> (to_dy, to_x, to_gamma)

void ReadBatchNorm(TF_OpKernelConstruction* construction, BatchNorm& norm, TF_Status* status) {
  TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &norm.epsilon, status);
}

void ComputeBatchNorm(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *x = call.Input(0), *gamma = call.Input(1), *beta = call.Input(2);
  if (!call.ok()) return;
  const Dims wide = Shape(x);
  call.Expect(wide.size() == 2, "x must be [rows, channels]");
  if (!call.ok()) return;
  const Dims narrow = {wide[1]};
  call.Expect(Shape(gamma) == narrow && Shape(beta) == narrow, "gamma and beta must be [channels]");
  float* const y = call.Output(0, wide);
  float *const mean = call.Output(1, narrow), *const variance = call.Output(2, narrow);
  if (!call.ok()) return;
  BatchNorm norm = KernelOf<BatchNorm>(kernel).work;
  norm.rows = wide[0], norm.channels = wide[1], norm.x = Data(x), norm.gamma = Data(gamma);
  norm.Forward(Data(beta), y, mean, variance, KernelOf<BatchNorm>(kernel).Threads());
}

template <bool kSecond>
void ComputeBatchNormGradient(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor* inputs[kSecond ? 8 : 5];
  int number = 0;
  for (const TF_Tensor*& input : inputs) input = call.Input(number++);
  if (!call.ok()) return;
  const Dims wide = Shape(inputs[0]);
  call.Expect(wide.size() == 2, "dy must be [rows, channels]");
  if (!call.ok()) return;
  const Dims narrow = {wide[1]};
  call.Expect(Shape(inputs[1]) == wide, "x must be like dy");
  for (int i = 2; i < 5; ++i) {
    call.Expect(Shape(inputs[i]) == narrow, "gamma, mean and variance must be [channels]");
  }
  if constexpr (kSecond) {
    call.Expect(Shape(inputs[5]) == wide, "a must be like dy");
    for (int i = 6; i < 8; ++i) {
      call.Expect(Shape(inputs[i]) == narrow, "p and q must be [channels]");
    }
  }
  BatchNorm norm = KernelOf<BatchNorm>(kernel).work;
  norm.rows = wide[0], norm.channels = wide[1];
  norm.dy = Data(inputs[0]), norm.x = Data(inputs[1]), norm.gamma = Data(inputs[2]);
  norm.mean = Data(inputs[3]), norm.variance = Data(inputs[4]);
  const int threads = KernelOf<BatchNorm>(kernel).Threads();
  float* const first = call.Output(0, wide);
  float* const second = call.Output(1, kSecond ? wide : narrow);
  float* const third = call.Output(2, narrow);
  if (!call.ok()) return;
  if constexpr (kSecond) {
    norm.Second(Data(inputs[5]), Data(inputs[6]), Data(inputs[7]), first, second, third, threads);
  } else {
    norm.First(first, second, third, threads);
  }
}

// Results of the shapes of as many inputs, from `first` on.
template <int first, int count>
void ShapesOfInputs(TF_ShapeInferenceContext* context, TF_Status* status) {
  for (int i = 0; i < count; ++i) {
    const Owned<TF_ShapeHandle> shape(TF_NewShapeHandle());
    TF_ShapeInferenceContextGetInput(context, first + i, shape.get(), status);
    TF_ShapeInferenceContextSetOutput(context, i, shape.get(), status);
  }
}

// Reads `window`: numbers whose products cannot overflow, and from 1 on but for `top` and `left`,
// which are the ones at 4 and 5.
template <int n>
std::array<std::int64_t, n> ReadWindow(TF_OpKernelConstruction* construction, TF_Status* status) {
  std::array<std::int64_t, n> window = {};
  TF_OpKernelConstruction_GetAttrInt64List(construction, "window", window.data(), n, status);
  constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
  for (int i = 0; i < n && TF_GetCode(status) == TF_OK; ++i) {
    const std::int64_t least = i == 4 || i == 5 ? -kMost : 1;
    if (window[i] >= least && window[i] <= kMost) continue;
    const std::string message =
        "window: sizes, strides and groups must be at least 1, and all below 2^31. Received: " +
        std::to_string(window[i]) + " at " + std::to_string(i);
    TF_SetStatus(status, TF_INVALID_ARGUMENT, message.c_str());
  }
  return window;
}

// ---- TfmetaMaxPoolTake(x, values; window) -> out, TfmetaMaxPoolPut(x, values; window) -> out:
// `window` is a MaxPool up to out_width.

void ReadMaxPool(TF_OpKernelConstruction* construction, MaxPool& pool, TF_Status* status) {
  const auto w = ReadWindow<8>(construction, status);
  pool = {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], 0, 0, 0, 0};
}

template <bool kTake>
void ComputeMaxPool(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *images = call.Input(0), *values = call.Input(1);
  if (!call.ok()) return;
  const Dims dims = Shape(images);
  call.Expect(dims.size() == 4, "x must be [n, height, width, channels]");
  if (!call.ok()) return;
  MaxPool pool = KernelOf<MaxPool>(kernel).work;
  pool.examples = dims[0], pool.height = dims[1], pool.width = dims[2], pool.channels = dims[3];
  const Dims pooled = {dims[0], pool.out_height, pool.out_width, dims[3]};
  call.Expect(Shape(values) == (kTake ? dims : pooled),
              kTake ? "values must be like x" : "values must be one of each window");
  const bool inside = (pool.out_height - 1) * pool.row_stride - pool.top < pool.height &&
                      (pool.out_width - 1) * pool.column_stride - pool.left < pool.width &&
                      pool.top < pool.window_height && pool.left < pool.window_width;
  call.Expect(inside, "each window must have a pixel of x in it");
  float* out = call.Output(0, kTake ? pooled : dims);
  if (!call.ok()) return;
  const int threads = KernelOf<MaxPool>(kernel).Threads();
  if constexpr (kTake) {
    pool.Take(Data(images), Data(values), out, threads);
  } else {
    pool.Put(Data(images), Data(values), out, threads);
  }
}

// ---- TfmetaConvolution(x, kernel; window) -> y, TfmetaConvolutionToInput(y, kernel; window) -> x,
// TfmetaConvolutionToKernel(x, y; window) -> kernel: `window` is a Convolution up to groups.

void ReadConvolution(TF_OpKernelConstruction* construction, Convolution& convolution,
                     TF_Status* status) {
  const auto w = ReadWindow<11>(construction, status);
  convolution = {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], 0, 0, 0};
}

// Sets what the shape of one operand, `[examples, height, width, groups * each]`, tells.
std::int64_t EachOf(Call& call, const Dims& dims, std::int64_t height, std::int64_t width,
                    Convolution& convolution) {
  call.Expect(dims.size() == 4 && dims[1] == height && dims[2] == width &&
                  dims[3] % convolution.groups == 0,
              "an image must be [n, height, width, groups * channels], of the window's sizes");
  if (!call.ok()) return 0;
  convolution.examples = dims[0];
  return dims[3] / convolution.groups;
}

// Sets what the shape of the kernels, `[*size, channels, groups * filters]`, tells.
void SetKernel(Call& call, const Dims& dims, Convolution& convolution) {
  call.Expect(dims.size() == 4 && dims[0] == convolution.kernel_height &&
                  dims[1] == convolution.kernel_width && dims[3] % convolution.groups == 0,
              "kernel must be [height, width, channels, groups * filters], of the window's sizes");
  if (!call.ok()) return;
  convolution.channels = dims[2], convolution.filters = dims[3] / convolution.groups;
}

void ComputeConvolution(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *x = call.Input(0), *filters = call.Input(1);
  if (!call.ok()) return;
  Convolution c = KernelOf<Convolution>(kernel).work;
  SetKernel(call, Shape(filters), c);
  const bool same = c.channels == EachOf(call, Shape(x), c.height, c.width, c);
  call.Expect(same, "x and kernel must have as many channels");
  float* y = call.Output(0, {c.examples, c.out_height, c.out_width, c.groups * c.filters});
  if (call.ok()) c.Forward(Data(x), Data(filters), y, KernelOf<Convolution>(kernel).Threads());
}

void ComputeConvolutionToInput(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *y = call.Input(0), *filters = call.Input(1);
  if (!call.ok()) return;
  Convolution c = KernelOf<Convolution>(kernel).work;
  SetKernel(call, Shape(filters), c);
  const bool same = c.filters == EachOf(call, Shape(y), c.out_height, c.out_width, c);
  call.Expect(same, "y and kernel must have as many filters");
  float* x = call.Output(0, {c.examples, c.height, c.width, c.groups * c.channels});
  if (call.ok()) c.ToInput(Data(y), Data(filters), x, KernelOf<Convolution>(kernel).Threads());
}

void ComputeConvolutionToKernel(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *x = call.Input(0), *y = call.Input(1);
  if (!call.ok()) return;
  Convolution c = KernelOf<Convolution>(kernel).work;
  c.channels = EachOf(call, Shape(x), c.height, c.width, c);
  c.filters = EachOf(call, Shape(y), c.out_height, c.out_width, c);
  if (!call.ok()) return;
  call.Expect(TF_Dim(x, 0) == TF_Dim(y, 0), "x and y must have as many examples");
  float* to = call.Output(0, {c.kernel_height, c.kernel_width, c.channels, c.groups * c.filters});
  if (call.ok()) c.ToKernel(Data(x), Data(y), to, KernelOf<Convolution>(kernel).Threads());
}

// ---- TfmetaProduct(x, kernel) -> y, TfmetaProductToInput(y, kernel) -> x,
// TfmetaProductToKernel(x, y) -> kernel: products of the matrices of each task, x [tasks, n, d],
// kernel [tasks, d, m], y [tasks, n, m], and their derivatives. A row is an image of one pixel.

// Of operations that are told nothing but on how many threads they run.
struct Nothing {};

void ReadNothing(TF_OpKernelConstruction*, Nothing&, TF_Status*) {}

enum class Product { kForward, kToInput, kToKernel };

template <Product product>
void ComputeProduct(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *first = call.Input(0), *second = call.Input(1);
  if (!call.ok()) return;
  const Dims a = Shape(first), b = Shape(second);
  call.Expect(a.size() == 3 && b.size() == 3 && a[0] == b[0],
              "both must be matrices of as many tasks");
  if (!call.ok()) return;
  constexpr bool kToInput = product == Product::kToInput, kToKernel = product == Product::kToKernel;
  constexpr int kOfA = kToKernel ? 1 : 2, kOfB = kToInput ? 2 : 1;
  call.Expect(a[kOfA] == b[kOfB], "rows and columns of the two matrices must fit");
  const std::int64_t n = a[1], d = kToInput ? b[1] : a[2], m = b[2];
  const Dims sizes = kToKernel ? Dims{d, m} : Dims{n, kToInput ? d : m};
  float* to = call.Output(0, {a[0], sizes[0], sizes[1]});
  if (!call.ok()) return;
  const Convolution one{1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, n, d, m};
  const int threads = KernelOf<Nothing>(kernel).Threads();
  const float *from = Data(first), *by = Data(second);
  for (std::int64_t task = 0; task < a[0]; ++task) {
    if constexpr (kToKernel) {
      one.ToKernel(from, by, to, threads);
    } else if constexpr (kToInput) {
      one.ToInput(from, by, to, threads);
    } else {
      one.Forward(from, by, to, threads);
    }
    from += a[1] * a[2], by += b[1] * b[2], to += sizes[0] * sizes[1];
  }
}

// ---- TfmetaSquaredEuclidean(queries, prototypes) -> distances, TfmetaCosineSimilarity likewise,
// and Tfmeta...Gradient(queries, prototypes, adjoint) -> (to_queries, to_prototypes): float or
// double.

// Calls body(T{}) with the type of a tensor.
template <typename Body>
void OfType(const TF_Tensor* tensor, const Body& body) {
  if (TF_TensorType(tensor) == TF_FLOAT) {
    body(float{});
  } else {
    body(double{});
  }
}

template <Measure measure, bool kGradient>
void ComputeDistances(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *queries = call.Input(0), *prototypes = call.Input(1);
  const TF_Tensor* const adjoint = kGradient ? call.Input(2) : nullptr;
  if (!call.ok()) return;
  const Dims from = Shape(queries), to = Shape(prototypes);
  call.Expect(from.size() == 3 && to.size() == 3 && from[0] == to[0] && from[2] == to[2],
              "queries must be [tasks, q, d], prototypes [tasks, ways, d]");
  if (!call.ok()) return;
  const Dims pairs = {from[0], from[1], to[1]};
  const int threads = KernelOf<Nothing>(kernel).Threads();
  OfType(queries, [&](auto zero) {
    using T = decltype(zero);
    const Distances<T> distances = {measure, from[0], from[1], to[1], from[2]};
    const T *x = Data<T>(queries), *y = Data<T>(prototypes);
    if constexpr (kGradient) {
      call.Expect(Shape(adjoint) == pairs, "adjoint must be [tasks, q, ways]");
      T *to_x = call.Output<T>(0, from), *to_y = call.Output<T>(1, to);
      if (call.ok()) distances.Backward(x, y, Data<T>(adjoint), to_x, to_y, threads);
    } else {
      T* const out = call.Output<T>(0, pairs);
      if (call.ok()) distances.Forward(x, y, out, threads);
    }
  });
}

void ShapeOfDistances(TF_ShapeInferenceContext* context, TF_Status* status) {
  const Owned<TF_ShapeHandle> from(TF_NewShapeHandle()), to(TF_NewShapeHandle());
  TF_ShapeInferenceContextGetInput(context, 0, from.get(), status);
  TF_ShapeInferenceContextGetInput(context, 1, to.get(), status);
  TF_ShapeInferenceContextSubshape(context, from.get(), 0, 2, from.get(), status);
  if (TF_GetCode(status) != TF_OK) return;
  TF_ShapeInferenceContextSubshape(context, to.get(), 1, 2, to.get(), status);
  if (TF_GetCode(status) != TF_OK) return;
  TF_ShapeInferenceContextConcatenateShapes(context, from.get(), to.get(), from.get(), status);
  if (TF_GetCode(status) == TF_OK) {
    TF_ShapeInferenceContextSetOutput(context, 0, from.get(), status);
  }
}

// ---- TfmetaPrototypes(embeddings, labels, ways) -> means, TfmetaPrototypesGradient(to_means,
// labels) -> to_embeddings: float or double.

template <bool kGradient>
void ComputePrototypes(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *from = call.Input(0), *labels = call.Input(1);
  const TF_Tensor* const ways = kGradient ? nullptr : call.Input(2);
  if (!call.ok()) return;
  const Dims in = Shape(from), examples = Shape(labels);
  call.Expect(in.size() == 3 && examples.size() == 2 && in[0] == examples[0] &&
                  (kGradient || in[1] == examples[1]),
              "embeddings must be [tasks, n, d], labels [tasks, n]");
  call.Expect(kGradient || TF_NumDims(ways) == 0, "ways must be a number of at least 0");
  if (!call.ok()) return;
  const std::int64_t classes = kGradient ? in[1] : *Data<std::int64_t>(ways);
  call.Expect(classes >= 0, "ways must be a number of at least 0");
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  call.Expect(
      classes <= kMost / std::max<std::int64_t>(1, in[0]) / std::max<std::int64_t>(1, in[2]),
      "ways must be such that tasks, ways and depth make less than 2^31 numbers");
  if (!call.ok()) return;
  const Prototypes prototypes = {in[0], examples[1], classes, in[2]};
  // Checked and used as a copy: a tensor may be the memory of an array that others write to.
  const auto* const given = Data<std::int64_t>(labels);
  const std::vector<std::int64_t> label(given, given + in[0] * examples[1]);
  std::vector<std::int64_t> counts(in[0] * classes);
  call.Expect(prototypes.Count(label.data(), counts.data()) < 0,
              "labels must be in 0..ways-1, or -1 for no class");
  const int threads = KernelOf<Nothing>(kernel).Threads();
  OfType(from, [&](auto zero) {
    using T = decltype(zero);
    T* const out = call.Output<T>(0, {in[0], kGradient ? examples[1] : classes, in[2]});
    if (!call.ok()) return;
    if constexpr (kGradient) {
      prototypes.Backward(Data<T>(from), label.data(), counts.data(), out, threads);
    } else {
      prototypes.Forward(Data<T>(from), label.data(), counts.data(), out, threads);
    }
  });
}

// ---- Registration

// TensorFlow starts an operation when those are done whose results it takes. ThreadSanitizer, which
// does not see how, is told.
#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
struct Ordered {
  Ordered() { __tsan_acquire(&all); }
  ~Ordered() { __tsan_release(&all); }
  inline static char all;
};
#else
struct Ordered {
  ~Ordered() {}  // or it would be an unused variable
};
#endif

// Calls `compute`. An exception must not go on into TensorFlow.
template <void (*compute)(void*, TF_OpKernelContext*)>
void Guarded(void* kernel, TF_OpKernelContext* context) {
  const Ordered ordered;
  try {
    compute(kernel, context);
  } catch (const std::bad_alloc&) {
    const Owned<TF_Status> status(TF_NewStatus());
    TF_SetStatus(status.get(), TF_RESOURCE_EXHAUSTED, "there is no memory for what is asked");
    TF_OpKernelContext_Failure(context, status.get());
  }
}

template <typename Work>
void Destroy(void* kernel) {
  delete static_cast<Kernel<Work>*>(kernel);
}

template <typename Work, void (*read)(TF_OpKernelConstruction*, Work&, TF_Status*)>
void Register(const char* name, const char* attribute, std::initializer_list<const char*> inputs,
              std::initializer_list<const char*> outputs,
              void (*shape)(TF_ShapeInferenceContext*, TF_Status*),
              void (*compute)(void*, TF_OpKernelContext*)) {
  const Owned<TF_Status> status(TF_NewStatus());
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  if (attribute) TF_OpDefinitionBuilderAddAttr(op, attribute);
  TF_OpDefinitionBuilderAddAttr(op, "threads: int");
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(op, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(op, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, shape);
  TF_RegisterOpDefinition(op, status.get());
  TF_RegisterKernelBuilder(
      name, TF_NewKernelBuilder(name, "CPU", &Create<Work, read>, compute, &Destroy<Work>),
      status.get());
}

const bool registered = [] {
  const auto norm = &Register<BatchNorm, ReadBatchNorm>;
  norm("TfmetaBatchNorm", "epsilon: float", {"x: float", "gamma: float", "beta: float"},
       {"y: float", "mean: float", "variance: float"}, &ShapesOfInputs<0, 3>,
       &Guarded<ComputeBatchNorm>);
  norm("TfmetaBatchNormFirst", "epsilon: float",
       {"dy: float", "x: float", "gamma: float", "mean: float", "variance: float"},
       {"to_x: float", "to_gamma: float", "to_beta: float"}, &ShapesOfInputs<1, 3>,
       &Guarded<ComputeBatchNormGradient<false>>);
  norm("TfmetaBatchNormSecond", "epsilon: float",
       {"dy: float", "x: float", "gamma: float", "mean: float", "variance: float", "a: float",
        "p: float", "q: float"},
       {"to_dy: float", "to_x: float", "to_gamma: float"}, &ShapesOfInputs<0, 3>,
       &Guarded<ComputeBatchNormGradient<true>>);
  const auto unknown = &TF_ShapeInferenceContextSetUnknownShape;
  const auto max_pool = &Register<MaxPool, ReadMaxPool>;
  max_pool("TfmetaMaxPoolTake", "window: list(int)", {"x: float", "values: float"}, {"out: float"},
           unknown, &Guarded<ComputeMaxPool<true>>);
  max_pool("TfmetaMaxPoolPut", "window: list(int)", {"x: float", "values: float"}, {"out: float"},
           unknown, &Guarded<ComputeMaxPool<false>>);
  const auto convolution = &Register<Convolution, ReadConvolution>;
  convolution("TfmetaConvolution", "window: list(int)", {"x: float", "kernel: float"}, {"y: float"},
              unknown, &Guarded<ComputeConvolution>);
  convolution("TfmetaConvolutionToInput", "window: list(int)", {"y: float", "kernel: float"},
              {"x: float"}, unknown, &Guarded<ComputeConvolutionToInput>);
  convolution("TfmetaConvolutionToKernel", "window: list(int)", {"x: float", "y: float"},
              {"kernel: float"}, unknown, &Guarded<ComputeConvolutionToKernel>);
  const auto product = &Register<Nothing, ReadNothing>;
  product("TfmetaProduct", nullptr, {"x: float", "kernel: float"}, {"y: float"}, unknown,
          &Guarded<ComputeProduct<Product::kForward>>);
  product("TfmetaProductToInput", nullptr, {"y: float", "kernel: float"}, {"x: float"}, unknown,
          &Guarded<ComputeProduct<Product::kToInput>>);
  product("TfmetaProductToKernel", nullptr, {"x: float", "y: float"}, {"kernel: float"}, unknown,
          &Guarded<ComputeProduct<Product::kToKernel>>);
  const auto distances = &Register<Nothing, ReadNothing>;
  const char *const types = "T: {float, double}", *const q = "queries: T",
                    *const c = "prototypes: T", *const g = "adjoint: T";
  constexpr Measure kSquared = Measure::kSquaredEuclidean, kCosine = Measure::kCosine;
  distances("TfmetaSquaredEuclidean", types, {q, c}, {"distances: T"}, &ShapeOfDistances,
            &Guarded<ComputeDistances<kSquared, false>>);
  distances("TfmetaCosineSimilarity", types, {q, c}, {"similarity: T"}, &ShapeOfDistances,
            &Guarded<ComputeDistances<kCosine, false>>);
  distances("TfmetaSquaredEuclideanGradient", types, {q, c, g},
            {"to_queries: T", "to_prototypes: T"}, &ShapesOfInputs<0, 2>,
            &Guarded<ComputeDistances<kSquared, true>>);
  distances("TfmetaCosineSimilarityGradient", types, {q, c, g},
            {"to_queries: T", "to_prototypes: T"}, &ShapesOfInputs<0, 2>,
            &Guarded<ComputeDistances<kCosine, true>>);
  distances("TfmetaPrototypes", types, {"embeddings: T", "labels: int64", "ways: int64"},
            {"means: T"}, unknown, &Guarded<ComputePrototypes<false>>);
  distances("TfmetaPrototypesGradient", types, {"to_means: T", "labels: int64"},
            {"to_embeddings: T"}, unknown, &Guarded<ComputePrototypes<true>>);
  return true;
}();

}  // namespace

// For Python, which asks the library itself and no operation of it.
extern "C" __attribute__((visibility("default"))) const char* tfmeta_instructions() {
  return tfmeta::Instructions();
}
