"""A multi-class support vector machine, solved for several tasks, with its implicit derivative.

Crammer and Singer, *On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines*,
JMLR 2001. The interior-point method is that of Mehrotra, *On the Implementation of a Primal-dual
Interior Point Method*, SIAM Journal on Optimization 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfmeta.types import Tensor

# A step goes so far of the way to where a number would be zero.
_OF_THE_WAY = 0.995
# What makes a class's matrix regular, of its greatest number, and how often the equations are
# solved with it for what is left. On the way a matrix is mostly regular by itself, and a larger
# number would hold the steps back.
_ON_THE_WAY, _AT_THE_END = (1e-10, 2), (1e-6, 8)
# Of the tolerance, where the steps end: the gap is computed otherwise, and rounded.
_WELL = 0.1


class Program(NamedTuple):
    """The quadratic programs of several tasks, in the units of their costs.

    For the examples n of a task and its classes k, with a kernel K and one-hot labels Y:
    least `½ ⟨α, K α⟩ − ⟨α, Y⟩` of `α = Y − β`, where `β ≥ 0` and `Σ_k β_nk = 1`. The scores of the
    examples are `K α`, and the least is less the least of `½ ‖W‖² + Σ_n max_k(1 − Y_nk + s_nk −
    s_ny)`, a sum over the hinge losses of scores s, of which it is the dual.

    Attributes:
        kernel: K `[tasks, n, n]`, positive definite.
        targets: Y `[tasks, n, ways]`; a row of zeros is no example.
        allowed: 1 where β may be more than 0 and 0 elsewhere, `[tasks, n, ways]`: not of what is no
            example, nor of a class without an example.
    """

    kernel: Tensor
    targets: Tensor
    allowed: Tensor

    @classmethod
    def of(cls, kernel: Tensor, targets: Tensor) -> Program:
        """Return the programs with these labels."""
        present = tf.reduce_max(targets, 1, keepdims=True)
        return cls(kernel, targets, tf.reduce_sum(targets, -1, keepdims=True) * present)

    def slope(self, beta: Tensor) -> Tensor:
        """Return the derivative of what is to be least, `Y − K α`."""
        return self.targets - tf.matmul(self.kernel, self.targets - beta)

    def bounds(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Return how large the sums of loss and penalty are at β, and how large they must be.

        Both `[tasks]`, over the number of examples, so that weights of zero have 1. The second
        holds for a β that is feasible.
        """
        alpha = self.targets - beta
        scores = tf.matmul(self.kernel, alpha)
        penalty = tf.reduce_sum(alpha * scores, [1, 2]) / 2
        examples = tf.reduce_sum(self.targets, [1, 2])
        others = self.allowed * (1 - self.targets + scores)
        # No class has less than that of the example itself.
        own = tf.reduce_sum(self.targets * scores, -1, keepdims=True)
        worst = tf.reduce_max(tf.where(self.allowed > 0, others - own, 0.0), -1)
        upper = penalty + tf.reduce_sum(worst, 1)
        lower = tf.reduce_sum(self.targets * alpha, [1, 2]) - penalty
        return upper / examples, lower / examples


def solution(
    kernel: Tensor, targets: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return α of the `Program` with its derivative, and how far it may be from the least.

    Where β is more than 0 the slopes of an example are equal: a system of equations, which holds
    for kernels nearby, too, and so is differentiated in the place of the steps.

    Args:
        kernel: `[tasks, n, n]`, in double precision.
        targets: One-hot `[tasks, n, ways]`; a row of zeros is no example.
        steps: How many steps are taken at most.
        tolerance: They end where the gap is less in each task.

    Returns:
        `(α, gap)`: `[tasks, n, ways]` and `[tasks]`, the difference of the two `Program.bounds`.
    """
    program = Program.of(kernel, targets)
    fixed = program._replace(kernel=tf.stop_gradient(kernel))
    beta, slack = interior_point(fixed, steps, _WELL * tolerance)
    beta, slack = tf.stop_gradient(beta), tf.stop_gradient(slack)
    free = program.allowed * tf.cast(beta > slack, beta.dtype)
    solve = solver(fixed.kernel, free, tf.zeros_like(free), *_AT_THE_END)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def to_solution(right: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        sums = tf.reduce_max(free, -1) - tf.reduce_sum(free * beta, -1)
        # The matrix is symmetric, and so its inverse is its own derivative's.
        return solve(right, sums)[0], lambda upstream: solve(upstream, tf.zeros_like(sums))[0]

    step = to_solution(-program.slope(free * beta))
    end = free * beta + step
    # Where a number is near to 0 and its slope as well, it may be taken for the other; then the
    # steps' own end is better, and as good as the tolerance.
    (before, least), (after, _) = fixed.bounds(beta), fixed.bounds(tf.stop_gradient(end))
    better = after <= before
    end = tf.where(better[:, None, None], end, beta + step - tf.stop_gradient(step))
    return targets - end, tf.where(better, after, before) - least


def interior_point(program: Program, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return β and the slopes' excess over their least, both positive, with products near 0.

    Each step goes towards `β_i s_i = σ μ`, μ the mean of these products now. It is one of Newton's
    method with a correction for the product of the changes, and σ is as the step without it would
    lower μ.

    Args:
        program: The programs.
        steps: How many steps are taken at most.
        tolerance: A task takes no more where the difference of the bounds at β is less.
    """
    kernel, allowed = program.kernel, program.allowed
    count = tf.reduce_sum(allowed, [1, 2], keepdims=True)
    may = allowed > 0

    def unsolved(beta: Tensor) -> Tensor:
        upper, lower = program.bounds(beta)
        return (upper - lower > tolerance)[:, None, None]

    def total(x: Tensor) -> Tensor:
        return tf.reduce_sum(allowed * x, [1, 2], keepdims=True)

    def longest(x: Tensor, change: Tensor) -> Tensor:
        """Return which part of a change leaves all that may be positive so, at most 1."""
        falls = may & (change < 0)
        parts = tf.where(falls, -x / tf.where(falls, change, -1.0), 1.0)
        return tf.minimum(tf.reduce_min(parts, [1, 2], keepdims=True), 1.0)

    def body(k: Tensor, beta: Tensor, slack: Tensor, level: Tensor) -> tuple[Tensor, ...]:
        divisor = tf.where(may, beta, 1.0)
        solve = solver(kernel, allowed, slack / divisor, *_ON_THE_WAY)
        wrong = allowed * (program.slope(beta) - level[..., None] - slack)
        sums = tf.reduce_max(allowed, -1) - tf.reduce_sum(beta, -1)

        def towards(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the changes that change each product by so much, to first order."""
            of_beta, of_level = solve(products / divisor - wrong, sums)
            return of_beta, allowed * (products - slack * of_beta) / divisor, of_level

        of_beta, of_slack, _ = towards(-beta * slack)
        part = tf.minimum(longest(beta, of_beta), longest(slack, of_slack))
        now = total(beta * slack)
        then = total((beta + part * of_beta) * (slack + part * of_slack))
        aim = (then / now) ** 3 * now / count
        of_beta, of_slack, of_level = towards(aim - beta * slack - of_beta * of_slack)
        part = tf.minimum(longest(beta, of_beta), longest(slack, of_slack))
        part = tf.where(part < 1, _OF_THE_WAY * part, part)
        # A task that is done stands still while others go on, and one that rounding has led astray.
        finite = tf.reduce_all(tf.math.is_finite(of_beta + of_slack), [1, 2], keepdims=True)
        on = unsolved(beta) & finite
        beta = tf.where(on, beta + part * of_beta, beta)
        slack = tf.where(on, slack + part * of_slack, slack)
        return k + 1, beta, slack, tf.where(on[..., 0], level + part[..., 0] * of_level, level)

    def going(k: Tensor, beta: Tensor, slack: Tensor, level: Tensor) -> Tensor:
        return tf.reduce_any(unsolved(beta))

    beta = tf.math.divide_no_nan(allowed, tf.reduce_sum(allowed, -1, keepdims=True))
    slope = program.slope(beta)
    least, most = tf.reduce_min(slope, -1), tf.reduce_max(slope, -1)
    level = least - (1 + most - least)
    slack = tf.where(may, slope - level[..., None], 1.0)
    start = (tf.constant(0), beta, slack, level)
    _, beta, slack, _ = tf.while_loop(going, body, start, maximum_iterations=steps)
    return beta, slack


def eliminated(
    kernel: Tensor, free: Tensor, diagonal: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what solves `K v_k + d_k v_k − u = r_k` and `Σ_k v_k = t`, v 0 where it is not free.

    One factor of each class's matrix `[n, n]`, and one of the sum of their inverses.

    Args:
        kernel: K `[tasks, n, n]`.
        free: 1 or 0, `[tasks, n, ways]`.
        diagonal: d `[tasks, n, ways]`.

    Returns:
        A function of r `[tasks, n, ways]` and t `[tasks, n]` that returns v and u.
    """
    mask = tf.linalg.matrix_transpose(free)
    own = mask * tf.linalg.matrix_transpose(diagonal) + 1 - mask
    blocks = mask[..., None] * kernel[:, None] * mask[:, :, None] + tf.linalg.diag(own)
    factors = tf.linalg.cholesky(blocks)
    identity = tf.eye(tf.shape(kernel)[-1], batch_shape=tf.shape(mask)[:2], dtype=kernel.dtype)
    inverses = mask[..., None] * tf.linalg.cholesky_solve(factors, identity)
    nowhere = 1 - tf.reduce_max(mask, 1)
    together = tf.linalg.cholesky(tf.reduce_sum(inverses, 1) + tf.linalg.diag(nowhere))

    def solve(right: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        right = mask * tf.linalg.matrix_transpose(right)
        alone = mask * tf.linalg.cholesky_solve(factors, right[..., None])[..., 0]
        lacking = sums - tf.reduce_sum(alone, 1)
        level = tf.linalg.cholesky_solve(together, lacking[..., None])[..., 0]
        whole = alone + tf.linalg.matvec(inverses, level[:, None])
        return tf.linalg.matrix_transpose(whole), level

    return solve


def solver(
    kernel: Tensor, free: Tensor, diagonal: Tensor, near: float, times: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what solves the equations of `eliminated`, also where a class's matrix is singular.

    That of a class which has more examples than embeddings have numbers is so where d is 0, though
    all equations together are not. So those with a larger d are solved, and again for what is left.

    Args:
        kernel: K `[tasks, n, n]`.
        free: 1 or 0, `[tasks, n, ways]`.
        diagonal: d `[tasks, n, ways]`.
        near: How much larger, as a part of the greatest of K.
        times: How often they are solved.

    Returns:
        A function of r `[tasks, n, ways]` and t `[tasks, n]` that returns v and u.
    """
    most = tf.reduce_max(tf.linalg.diag_part(kernel), -1)
    solve = eliminated(kernel, free, diagonal + near * most[:, None, None])

    def exactly(right: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        def body(k: Tensor, v: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            left = right - tf.matmul(kernel, v) - diagonal * v + level[..., None]
            more, higher = solve(left, sums - tf.reduce_sum(v, -1))
            return k + 1, v + more, level + higher

        start = (tf.constant(0), tf.zeros_like(right), tf.zeros_like(sums))
        _, v, level = tf.while_loop(lambda k, *_: k < times, body, start)
        return v, level

    return exactly
