// The kernels as TensorFlow operations: the only file that knows TensorFlow, through its C API.
#include <algorithm>
#include <initializer_list>
#include <memory>
#include <thread>
#include <vector>

#include "batch_norm.h"
#include "max_pool.h"
#include "tf_api.h"

namespace {

using tfmeta::BatchNormSecond;
using tfmeta::MaxPool;

using Dims = std::vector<std::int64_t>;

struct Delete {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
  void operator()(TF_ShapeHandle* handle) const { TF_DeleteShapeHandle(handle); }
};
template <typename T>
using Owned = std::unique_ptr<T, Delete>;

int Threads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

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

  float* Output(int index, const Dims& dims) {
    std::size_t bytes = sizeof(float);
    for (const std::int64_t n : dims) bytes *= n;
    const int rank = static_cast<int>(dims.size());
    if (!ok()) return nullptr;
    tensors_.emplace_back(
        TF_AllocateOutput(context_, index, TF_FLOAT, dims.data(), rank, bytes, status_.get()));
    return ok() ? static_cast<float*>(TF_TensorData(tensors_.back().get())) : nullptr;
  }

 private:
  TF_OpKernelContext* context_;
  Owned<TF_Status> status_;
  std::vector<Owned<TF_Tensor>> tensors_;
};

const float* Data(const TF_Tensor* tensor) {
  return static_cast<const float*>(TF_TensorData(tensor));
}

Dims Shape(const TF_Tensor* tensor) {
  Dims dims(TF_NumDims(tensor));
  for (std::size_t i = 0; i < dims.size(); ++i) dims[i] = TF_Dim(tensor, static_cast<int>(i));
  return dims;
}

// ---- TfmetaBatchNormSecond(dy, x, gamma, a, p, q; epsilon) -> (to_dy, to_x, to_gamma)

void* CreateBatchNorm(TF_OpKernelConstruction* construction) {
  const Owned<TF_Status> status(TF_NewStatus());
  auto kernel = std::make_unique<BatchNormSecond>();
  TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &kernel->epsilon, status.get());
  if (TF_GetCode(status.get()) == TF_OK) return kernel.release();
  TF_OpKernelConstruction_Failure(construction, status.get());
  return nullptr;
}

void ComputeBatchNorm(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor* inputs[6];
  for (int i = 0; i < 6; ++i) inputs[i] = call.Input(i);
  if (!call.ok()) return;
  const Dims wide = Shape(inputs[0]);
  call.Expect(wide.size() == 2, "dy must be [rows, channels]");
  if (!call.ok()) return;
  const Dims narrow = {wide[1]};
  call.Expect(Shape(inputs[1]) == wide && Shape(inputs[3]) == wide, "x and a must be like dy");
  for (const int i : {2, 4, 5}) {
    call.Expect(Shape(inputs[i]) == narrow, "gamma, p and q must be [channels]");
  }
  BatchNormSecond second = *static_cast<BatchNormSecond*>(kernel);
  second.to_dy = call.Output(0, wide);
  second.to_x = call.Output(1, wide);
  second.to_gamma = call.Output(2, narrow);
  if (!call.ok()) return;
  second.rows = wide[0], second.channels = wide[1];
  second.dy = Data(inputs[0]), second.x = Data(inputs[1]), second.gamma = Data(inputs[2]);
  second.a = Data(inputs[3]), second.p = Data(inputs[4]), second.q = Data(inputs[5]);
  second.ComputeAll(Threads());
}

void ShapeOfBatchNorm(TF_ShapeInferenceContext* context, TF_Status* status) {
  for (int i = 0; i < 3; ++i) {
    const Owned<TF_ShapeHandle> shape(TF_NewShapeHandle());
    TF_ShapeInferenceContextGetInput(context, i, shape.get(), status);
    TF_ShapeInferenceContextSetOutput(context, i, shape.get(), status);
  }
}

// ---- TfmetaMaxPoolTake(x, values; window) -> out: `window` is a MaxPool from window_height on.

constexpr int kWindow = 8;

void* CreateMaxPool(TF_OpKernelConstruction* construction) {
  const Owned<TF_Status> status(TF_NewStatus());
  std::int64_t w[kWindow] = {};
  TF_OpKernelConstruction_GetAttrInt64List(construction, "window", w, kWindow, status.get());
  if (TF_GetCode(status.get()) == TF_OK) {
    return new MaxPool{0, 0, 0, 0, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
  }
  TF_OpKernelConstruction_Failure(construction, status.get());
  return nullptr;
}

void ComputeMaxPool(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const TF_Tensor *images = call.Input(0), *values = call.Input(1);
  if (!call.ok()) return;
  const Dims dims = Shape(images);
  call.Expect(dims.size() == 4, "x must be [n, height, width, channels]");
  call.Expect(Shape(values) == dims, "values must be like x");
  if (!call.ok()) return;
  MaxPool pool = *static_cast<MaxPool*>(kernel);
  pool.examples = dims[0], pool.height = dims[1], pool.width = dims[2], pool.channels = dims[3];
  const bool inside = (pool.out_height - 1) * pool.row_stride - pool.top < pool.height &&
                      (pool.out_width - 1) * pool.column_stride - pool.left < pool.width &&
                      pool.top < pool.window_height && pool.left < pool.window_width;
  call.Expect(inside, "each window must have a pixel of x in it");
  float* out = call.Output(0, {dims[0], pool.out_height, pool.out_width, dims[3]});
  if (call.ok()) pool.Take(Data(images), Data(values), out, Threads());
}

// ---- Registration

template <typename Kernel>
void Destroy(void* kernel) {
  delete static_cast<Kernel*>(kernel);
}

template <typename Kernel>
void Register(const char* name, const char* attribute, std::initializer_list<const char*> inputs,
              std::initializer_list<const char*> outputs,
              void (*shape)(TF_ShapeInferenceContext*, TF_Status*),
              void* (*create)(TF_OpKernelConstruction*),
              void (*compute)(void*, TF_OpKernelContext*)) {
  const Owned<TF_Status> status(TF_NewStatus());
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  TF_OpDefinitionBuilderAddAttr(op, attribute);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(op, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(op, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, shape);
  TF_RegisterOpDefinition(op, status.get());
  TF_RegisterKernelBuilder(
      name, TF_NewKernelBuilder(name, "CPU", create, compute, &Destroy<Kernel>), status.get());
}

const bool registered = [] {
  Register<BatchNormSecond>(
      "TfmetaBatchNormSecond", "epsilon: float",
      {"dy: float", "x: float", "gamma: float", "a: float", "p: float", "q: float"},
      {"to_dy: float", "to_x: float", "to_gamma: float"}, &ShapeOfBatchNorm, &CreateBatchNorm,
      &ComputeBatchNorm);
  Register<MaxPool>("TfmetaMaxPoolTake", "window: list(int)", {"x: float", "values: float"},
                    {"out: float"}, &TF_ShapeInferenceContextSetUnknownShape, &CreateMaxPool,
                    &ComputeMaxPool);
  return true;
}();

}  // namespace
