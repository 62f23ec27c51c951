"""Triton kernels for the linear layers of n trainees, each with weights and a batch of its own.

A batched matrix product of the library leaves most of a GPU idle where matrices are as small as those of a perceptron
with some ten units per layer, and bias, ReLU and their gradients take kernels of their own. Here one program computes
a layer of one trainee, all of it on chip: `linear` its outputs, `linear_gradients` all of its gradients.

Examples lie innermost in memory: activations are (n, features, b). Offsets within one trainee's tensors must fit 31
bits; across trainees they are 64 bits.

Sizes are constants of each compiled kernel: IN inputs, OUT outputs, B examples; IP, OP and BB are the sides of tiles,
powers of two, of which IP >= IN and OP >= OUT. PRECISION is that of products (`tl.dot`).
"""

# mypy: ignore-errors
# Functions here are written in Triton's language, which gives annotations meanings of its own.

import triton
import triton.language as tl


@triton.jit
def linear(
    x,  # (n, IN, B), strided
    weight,  # (n, OUT, IN), its rows contiguous
    bias,  # (n, OUT), strided, read if BIASED
    out,  # (n, OUT, B)
    x_n,
    x_i,
    x_b,
    weight_n,
    bias_n,
    bias_o,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    B: tl.constexpr,
    IP: tl.constexpr,
    OP: tl.constexpr,
    BB: tl.constexpr,
    BIASED: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes W x + b of BB examples of one trainee, and its positive part if RELU; NaN stays NaN."""
    position = tl.program_id(0)
    lanes = position % tl.cdiv(B, BB) * BB + tl.arange(0, BB)[None, :]
    trainee = (position // tl.cdiv(B, BB)).to(tl.int64)
    inputs = tl.arange(0, IP)
    outputs = tl.arange(0, OP)[:, None]
    x += trainee * x_n
    weight += trainee * weight_n
    columns = tl.load(x + inputs[:, None] * x_i + lanes * x_b, mask=(inputs[:, None] < IN) & (lanes < B), other=0.0)
    w = tl.load(weight + outputs * IN + inputs[None, :], mask=(outputs < OUT) & (inputs[None, :] < IN), other=0.0)
    result = tl.dot(w, columns, input_precision=PRECISION)
    if BIASED:
        result += tl.load(bias + trainee * bias_n + outputs * bias_o, mask=outputs < OUT, other=0.0)
    if RELU:
        result = tl.where(result <= 0, 0.0, result)
    tl.store(out + trainee * (OUT * B) + outputs * B + lanes, result, mask=(outputs < OUT) & (lanes < B))


@triton.jit
def linear_gradients(
    x,  # (n, IN, B), strided
    weight,  # (n, OUT, IN), its rows contiguous
    out,  # (n, OUT, B), read if RELU
    grad,  # (n, OUT, B), of the outputs
    grad_x,  # (n, IN, B), written to if OF_X
    grad_weight,  # (n, OUT, IN)
    grad_bias,  # (n, OUT)
    x_n,
    x_i,
    x_b,
    weight_n,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    B: tl.constexpr,
    IP: tl.constexpr,
    OP: tl.constexpr,
    BB: tl.constexpr,
    RELU: tl.constexpr,
    OF_X: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the gradients of one trainee's layer; sums over examples always run in the same order."""
    trainee = tl.program_id(0).to(tl.int64)
    inputs = tl.arange(0, IP)
    outputs = tl.arange(0, OP)
    x += trainee * x_n
    weight += trainee * weight_n
    out += trainee * (OUT * B)
    grad += trainee * (OUT * B)
    grad_x += trainee * (IN * B)
    of_weight = tl.zeros([OP, IP], tl.float32)
    of_bias = tl.zeros([OP], tl.float32)
    if OF_X:
        w = tl.load(
            weight + outputs[None, :] * IN + inputs[:, None],
            mask=(outputs[None, :] < OUT) & (inputs[:, None] < IN),
            other=0.0,
        )
    for start in tl.static_range(0, B, BB):
        lanes = start + tl.arange(0, BB)
        there = (outputs[:, None] < OUT) & (lanes[None, :] < B)
        at = outputs[:, None] * B + lanes[None, :]
        g = tl.load(grad + at, mask=there, other=0.0)
        if RELU:
            g = tl.where(tl.load(out + at, mask=there, other=0.0) <= 0, 0.0, g)
        rows = tl.load(
            x + lanes[:, None] * x_b + inputs[None, :] * x_i,
            mask=(lanes[:, None] < B) & (inputs[None, :] < IN),
            other=0.0,
        )
        of_weight = tl.dot(g, rows, acc=of_weight, input_precision=PRECISION)
        of_bias += tl.sum(g, 1)
        if OF_X:
            tl.store(
                grad_x + inputs[:, None] * B + lanes[None, :],
                tl.dot(w, g, input_precision=PRECISION),
                mask=(inputs[:, None] < IN) & (lanes[None, :] < B),
            )
    tl.store(
        grad_weight + trainee * (OUT * IN) + outputs[:, None] * IN + inputs[None, :],
        of_weight,
        mask=(outputs[:, None] < OUT) & (inputs[None, :] < IN),
    )
    tl.store(grad_bias + trainee * OUT + outputs, of_bias, mask=outputs < OUT)
