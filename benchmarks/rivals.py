"""The outer steps of other libraries, the same arithmetic, as is usual there.

`meta_step.py` and `gpu.py` measure them.

A contestant is a function of a problem, weights and a meta-batch, the last two as Keras has them.
It returns `step`, which takes one outer step and waits for its end, and `first_moments`, Adam's
after the steps so far, again as Keras has them: after one step they are a tenth of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

INNER_RATE, OUTER_RATE, BN_EPSILON = 0.4, 1e-3, 1e-3
BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-7
FILTERS, SIZE = 64, 28

Arrays = list[np.ndarray]
Contestant = tuple[Callable[[], Any], Callable[[], Arrays]]


class Problem(NamedTuple):
    kind: str = "maml"  # or "prototypical": one episode, no inner loop
    network: str = "pooled"
    steps: int = 0
    first_order: bool = False
    tasks: int = 1
    ways: int = 5
    queries: int = 1
    dtype: str = "float32"
    size: int = SIZE
    channels: int = 1

    @property
    def strided(self) -> bool:
        return self.network == "strided"

    @property
    def outputs(self) -> int | None:
        return self.ways if self.kind == "maml" else None

    @property
    def features(self) -> int:
        """Length of what the network's last layer sees."""
        side = self.size
        for _ in range(4):
            side = -(-side // 2) if self.strided else side // 2
        return FILTERS * side**2


def initial_weights(problem: Problem) -> Arrays:
    """Return weights in Keras's order and layout; no two scales or offsets are alike."""
    rng = np.random.default_rng(0)
    weights, channels = [], problem.channels
    for _ in range(4):
        limit = (6 / (9 * (channels + FILTERS))) ** 0.5
        weights.append(rng.uniform(-limit, limit, (3, 3, channels, FILTERS)))
        weights += [mean + 0.1 * rng.standard_normal(FILTERS) for mean in (0, 1, 0)]
        channels = FILTERS
    if problem.outputs is not None:
        limit = (6 / (problem.features + problem.outputs)) ** 0.5
        weights.append(rng.uniform(-limit, limit, (problem.features, problem.outputs)))
        weights.append(0.1 * rng.standard_normal(problem.outputs))
    return [w.astype(problem.dtype) for w in weights]


def meta_batch(problem: Problem) -> Arrays:
    """Return support images and labels, query images and labels, `[tasks, ways*n, ...]`."""
    rng = np.random.default_rng(1)
    parts = []
    for number in (1, problem.queries):
        size, channels = problem.size, problem.channels
        shape = (problem.tasks, problem.ways * number, size, size, channels)
        labels = np.repeat(np.arange(problem.ways), number)
        parts += [rng.random(shape, np.float32).astype(problem.dtype)]
        parts += [np.tile(labels, (problem.tasks, 1))]
    return parts


# PyTorch. Its padding of 1 with a stride of 2 puts the window where TensorFlow's SAME does in the
# mirrored image. So the strided network has mirrored images, kernels and features here; that
# costs nothing in the step, as a padding of its own would.


def _to_torch(array: np.ndarray, strided: bool) -> np.ndarray:
    """Turn a kernel, `[height, width, in, out]` or `[in, out]`, into PyTorch's layout."""
    if array.ndim == 2:
        side = round((len(array) / FILTERS) ** 0.5)
        kernel = _to_torch(array.reshape(side, side, FILTERS, -1), strided)
        return kernel.reshape(array.shape[1], -1)
    if array.ndim == 4:
        array = (array[::-1, ::-1] if strided else array).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array)


def _from_torch(array: np.ndarray, strided: bool) -> np.ndarray:
    if array.ndim == 2:
        side = round((array.shape[1] / FILTERS) ** 0.5)
        kernel = _from_torch(array.reshape(-1, FILTERS, side, side), strided)
        return kernel.reshape(array.shape[::-1])
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        array = array[::-1, ::-1] if strided else array
    return array


def _torch_parts(
    problem: Problem,
    weights: Arrays,
    batch: Arrays,
    channels_last: bool = False,
    batch_norm: Any = None,
    device: str = "cpu",
) -> tuple[Any, Any, list[Any], Callable[[], Arrays]]:
    """Return the network, Adam, the batch as tensors, and `first_moments`."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for block in range(4):
        channels = FILTERS if block else problem.channels
        layers.append(nn.Conv2d(channels, FILTERS, 3, 2 if problem.strided else 1, padding=1))
        # Moving statistics are of no use to MAML with statistics of the batch at hand.
        moving = problem.kind == "prototypical"
        batch_norm = batch_norm or nn.BatchNorm2d
        layers.append(batch_norm(FILTERS, eps=BN_EPSILON, track_running_stats=moving))
        layers.append(nn.ReLU())
        if not problem.strided:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    if problem.outputs is not None:
        layers.append(nn.Linear(problem.features, problem.outputs))
    model = nn.Sequential(*layers).to(device, getattr(torch, problem.dtype))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(_to_torch(weight, problem.strided)))
    tensors = []
    for array in batch:
        if array.ndim == 5:
            array = array[:, :, ::-1, ::-1] if problem.strided else array
            array = np.ascontiguousarray(array.transpose(0, 1, 4, 2, 3))
        tensors.append(torch.from_numpy(array).to(device))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        tensors[::2] = [
            torch.stack([task.contiguous(memory_format=torch.channels_last) for task in images])
            for images in tensors[::2]
        ]
    adam = torch.optim.Adam(
        model.parameters(), OUTER_RATE, betas=(BETA_1, BETA_2), eps=ADAM_EPSILON
    )

    def first_moments() -> Arrays:
        moments = [adam.state[p]["exp_avg"].cpu().numpy() for p in model.parameters()]
        return [_from_torch(m, problem.strided) for m in moments]

    return model, adam, tensors, first_moments


def higher(problem: Problem, weights: Arrays, batch: Arrays) -> Contestant:
    """`higher.innerloop_ctx`, task by task, as in the example that comes with it."""
    import higher
    import torch
    from torch.nn.functional import cross_entropy

    model, adam, batch, first_moments = _torch_parts(problem, weights, batch)
    sgd = torch.optim.SGD(model.parameters(), INNER_RATE)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            with higher.innerloop_ctx(
                model,
                sgd,
                copy_initial_weights=False,
                track_higher_grads=not problem.first_order,
            ) as (adapted, inner):
                for _ in range(problem.steps):
                    inner.step(cross_entropy(adapted(support_x), support_y))
                loss = cross_entropy(adapted(query_x), query_y) / problem.tasks
                if not problem.first_order:
                    loss.backward()
                    continue
                # Without higher gradients, higher cuts the adapted weights off from the model's.
                gradients = torch.autograd.grad(loss, list(adapted.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad += gradient
        adam.step()

    return step, first_moments


def torch_loop(problem: Problem, weights: Arrays, batch: Arrays) -> Contestant:
    """`torch.autograd.grad` and `functional_call`, task by task, with no library in between.

    `channels_last` was no faster with either network, nor were products of unfolded images.
    """
    import torch
    from torch.nn.functional import cross_entropy

    model, adam, batch, first_moments = _torch_parts(problem, weights, batch)
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        named = dict(zip(names, parameters, strict=True))
        return cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    def step() -> None:
        adam.zero_grad()
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            adapted = list(model.parameters())
            for _ in range(problem.steps):
                gradients = torch.autograd.grad(
                    loss(adapted, support_x, support_y),
                    adapted,
                    create_graph=not problem.first_order,
                )
                adapted = [p - INNER_RATE * g for p, g in zip(adapted, gradients, strict=True)]
            (loss(adapted, query_x, query_y) / problem.tasks).backward()
        adam.step()

    return step, first_moments


def torch_vmap(
    problem: Problem,
    weights: Arrays,
    batch: Arrays,
    batch_norm_layers: bool = False,
    device: str = "cpu",
) -> Contestant:
    """`torch.func.grad` for the inner loop, `torch.func.vmap` over the tasks.

    With PyTorch's `batch_norm_layers`, as usual, the second-order gradient is wrong: under `vmap`
    the derivative of that layer's derivative is (pytorch/functorch issue 534; 2.15 still has it).
    So batch normalisation is written out unless they are asked for.
    """
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    class WrittenOut(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            variance, mean = torch.var_mean(x, (0, 2, 3), unbiased=False, keepdim=True)
            scale = torch.rsqrt(variance + self.eps) * self.weight[:, None, None]
            return (x - mean) * scale + self.bias[:, None, None]

    norm = nn.BatchNorm2d if batch_norm_layers else WrittenOut
    model, adam, batch, first_moments = _torch_parts(
        problem, weights, batch, batch_norm=norm, device=device
    )

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        return cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    def task(parameters: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        for _ in range(problem.steps):
            gradients = torch.func.grad(loss)(parameters, support_x, support_y)
            if problem.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            parameters = {name: p - INNER_RATE * gradients[name] for name, p in parameters.items()}
        return loss(parameters, query_x, query_y)

    tasks = torch.func.vmap(task, in_dims=(None, 0, 0, 0, 0))

    def step() -> None:
        adam.zero_grad()
        tasks(dict(model.named_parameters()), *batch).mean().backward()
        adam.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step, first_moments


def torch_prototypical(
    problem: Problem, weights: Arrays, batch: Arrays, channels_last: bool = False
) -> Contestant:
    import torch
    from torch.nn.functional import cross_entropy

    model, adam, batch, first_moments = _torch_parts(problem, weights, batch, channels_last)
    support_x, _, query_x, query_y = (x[0] for x in batch)

    def step() -> None:
        adam.zero_grad()
        embedded = model(torch.cat([support_x, query_x]))
        support, query = embedded[: len(support_x)], embedded[len(support_x) :]
        means = support.reshape(problem.ways, -1, support.shape[1]).mean(1)
        logits = 2 * query @ means.T - means.square().sum(1) - query.square().sum(1, keepdim=True)
        cross_entropy(logits, query_y).backward()
        adam.step()

    return step, first_moments


def jax_vmap(
    problem: Problem,
    weights: Arrays,
    batch: Arrays,
    products: bool = False,
    one_by_one: bool = False,
) -> Contestant:
    """Pure functions under `jax.jit`: `jax.vmap` over the tasks, or `jax.lax.map` one by one.

    XLA is slow on a CPU at the convolutions that come of differentiating twice, and at those with
    kernels that differ from task to task. With `products`, a convolution is a matrix product of
    nine shifted images side by side, which nobody writes unless he has measured. The max-pool has
    no `reduce_window`, whose derivatives are slower; and as a maximum of reshaped images, it has
    wrong ones in float64 under jit (jaxlib 0.12.0).
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    stride = 2 if problem.strided else 1

    def convolved(x: Any, kernel: Any) -> Any:
        if not products:
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        size = -(-x.shape[1] // stride)
        reach = (size - 1) * stride + 1
        padding = max(reach + 2 - x.shape[1], 0)
        edges = (padding // 2, padding - padding // 2)
        x = jnp.pad(x, ((0, 0), edges, edges, (0, 0)))
        shifted = [
            x[:, i : i + reach : stride, j : j + reach : stride] for i in range(3) for j in range(3)
        ]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

    def loss(weights: Any, x: Any, labels: Any) -> Any:
        *blocks, kernel, bias = weights
        for i in range(0, len(blocks), 4):
            conv, offset, gamma, beta = blocks[i : i + 4]
            x = convolved(x, conv) + offset
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = (x - mean) * jax.lax.rsqrt(variance + BN_EPSILON) * gamma + beta
            x = jax.nn.relu(x)
            if not problem.strided:
                even = x.shape[1] // 2 * 2
                x = jnp.maximum(x[:, 0:even:2, :even], x[:, 1:even:2, :even])
                x = jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
        logits = jax.nn.log_softmax(x.reshape(len(x), -1) @ kernel + bias)
        return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()

    def task(weights: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        for _ in range(problem.steps):
            gradients = jax.grad(loss)(weights, support_x, support_y)
            if problem.first_order:
                gradients = jax.lax.stop_gradient(gradients)
            weights = [w - INNER_RATE * g for w, g in zip(weights, gradients, strict=True)]
        return loss(weights, query_x, query_y)

    def outer_gradients(weights: Any, batch: Any) -> Any:
        if not one_by_one:
            tasks = jax.vmap(task, in_axes=(None, 0, 0, 0, 0))
            return jax.grad(lambda w: tasks(w, *batch).mean())(weights)
        each = jax.lax.map(lambda x: jax.grad(task)(weights, *x), batch)
        return [g.mean(0) for g in each]

    @jax.jit
    def update(state: Any, batch: Any) -> Any:
        weights, first, second, number = state
        gradients = outer_gradients(weights, batch)
        number = number + 1
        first = [BETA_1 * m + (1 - BETA_1) * g for m, g in zip(first, gradients, strict=True)]
        second = [BETA_2 * v + (1 - BETA_2) * g**2 for v, g in zip(second, gradients, strict=True)]
        rate = OUTER_RATE * jnp.sqrt(1 - BETA_2**number) / (1 - BETA_1**number)
        moved = [
            w - rate * m / (jnp.sqrt(v) + ADAM_EPSILON)
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        return moved, first, second, number

    tensors = [jnp.asarray(x) for x in batch]
    zeros = [jnp.zeros_like(w) for w in weights]
    state = ([jnp.asarray(w) for w in weights], zeros, zeros, jnp.asarray(0))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(update(state, tensors))

    return step, lambda: [np.asarray(m) for m in state[1]]
