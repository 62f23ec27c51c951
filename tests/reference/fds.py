"""FDS (Micaelli and Storkey 2021, arXiv:2007.07869). The modules are `lrenv/training/hypergradients.py` and
`agents/fds/training.py`.

The state s_t = (w_t, v_t) of SGD with momentum, v <- mu v + g + xi w and w <- w - lr v, depends on the schedule: lr, mu
and xi have a value for each of S equal segments of the T steps. The tangents Z_t = ds_t / dlambda of all values follow

    Z_(t+1) = A_t Z_t + B_t,    A_t = ds_(t+1) / ds_t,    B_t = ds_(t+1) / dlambda at fixed s_t,

and the hypergradient is Z_T^T (dL_val / dw_T, 0). The model is softmax regression, whose Hessian is known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NAMES = ("lr", "momentum", "weight_decay")


class SoftmaxRegression:
    """Cross-entropy of logits = J w; w is the weights, row by row, and then the biases."""

    def __init__(self, inputs: Array, targets: NDArray[np.int64], classes: int) -> None:
        eye = np.eye(classes)
        self.jacobians = [np.concatenate([np.kron(eye, x), eye], 1) for x in inputs]  # (classes, P) each
        self.onehots = eye[targets]

    def derivatives(self, w: Array) -> tuple[float, Array, Array]:
        """Mean loss, gradient (P,) and Hessian (P, P)."""
        loss, gradient, hessian = 0.0, 0.0, 0.0
        for J, y in zip(self.jacobians, self.onehots, strict=True):
            p = np.exp(J @ w - np.max(J @ w))
            p /= p.sum()
            loss += -np.log(p @ y)
            gradient = gradient + J.T @ (p - y)
            hessian = hessian + J.T @ (np.diag(p) - np.outer(p, p)) @ J
        m = len(self.onehots)
        return loss / m, gradient / m, hessian / m


def hypergradients(
    w: Array, schedule: dict[str, Array], batches: list[SoftmaxRegression], validation: SoftmaxRegression
) -> tuple[float, dict[str, Array]]:
    """The last validation loss, and its derivatives by the schedule's values, name -> (S,)."""
    T, P = len(batches), len(w)
    places = np.cumsum([0, *(len(schedule[name]) for name in NAMES)])
    v, Z = np.zeros(P), np.zeros((2 * P, places[-1]))
    I = np.eye(P)  # noqa: E741
    for t, batch in enumerate(batches):
        segments = [t * len(schedule[name]) // T for name in NAMES]
        lr, mu, xi = (schedule[name][s] for name, s in zip(NAMES, segments, strict=True))
        _, g, H = batch.derivatives(w)
        v_next = mu * v + g + xi * w
        A = np.block([[I - lr * (H + xi * I), -lr * mu * I], [H + xi * I, mu * I]])
        B = np.zeros_like(Z)
        columns = {
            "lr": np.concatenate([-v_next, np.zeros(P)]),
            "momentum": np.concatenate([-lr * v, v]),
            "weight_decay": np.concatenate([-lr * w, w]),
        }
        for place, s, name in zip(places[:-1], segments, NAMES, strict=True):
            B[:, place + s] = columns[name]
        Z = A @ Z + B
        w, v = w - lr * v_next, v_next
    loss, slope, _ = validation.derivatives(w)
    each = Z[:P].T @ slope
    return loss, dict(zip(NAMES, np.split(each, places[1:-1]), strict=True))


def outer_step(values: Array, sizes: Array, signs: Array, gradient: Array) -> tuple[Array, Array, Array]:
    """lambda <- lambda - gamma sign(gradient); gamma is halved first where the sign has flipped."""
    new = np.sign(gradient)
    sizes = np.where(new * signs < 0, sizes / 2, sizes)
    return values - sizes * new, sizes, new
