"""Triton kernels for convolutions of n trainees, each with weights and images of its own.

Examples lie innermost in memory: images are (n, c, h, w, b). Then a kernel's vectors run along the batch, so that every
load is contiguous at any pixel, and one test tells for a whole vector whether a pixel lies in the padding. This is the
layout of cuda-convnet (Krizhevsky 2012).

- `convolve` works on CUDA cores in float32. A program computes a window of 2 x 2 pixels for some output channels and
  examples; each thread holds all of the window for its examples in registers. Optionally it applies ReLU to the window
  and writes its maximum only. The gradient of the input is the same kernel with flipped weights.
- `weight_gradient` works on CUDA cores, too: a thread holds sums over its examples for some output channels and taps.
  Partial sums of programs are added afterwards, always in the same order.
- `unpool` writes the gradient of a window to the pixel that was its maximum.

Offsets within one trainee's tensors must fit 31 bits; across trainees they are 64 bits.

Sizes are constants of each compiled kernel: C, H and W of the input and OC, OH and OW of the output, B examples,
kernels of KH x KW with padding PH and PW; OP is OC rounded up to a multiple of BO, the output channels per program.
"""

# mypy: ignore-errors
# Functions here are written in Triton's language, which gives annotations meanings of its own.

import triton
import triton.language as tl


@triton.jit
def convolve(
    x,  # (n, C, H, W, B), or (1, C, H, W, B) if SHARED
    weight,  # (n, KH, KW, C, OP), zero from channel OC on
    bias,  # (n, OC), read if BIASED
    out,  # (n, OC, OH, OW, B), of windows if POOLED
    which,  # the same in int8, written to if POOLED
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    B: tl.constexpr,
    OC: tl.constexpr,
    OP: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    SHARED: tl.constexpr,
    BIASED: tl.constexpr,
    POOLED: tl.constexpr,
    MASKED: tl.constexpr,  # whether a window may reach over the edge of the image
    UNROLL: tl.constexpr,  # input channels per turn of the loop; divides C
    BO: tl.constexpr,
    BB: tl.constexpr,  # examples per program
):
    """Convolves with stride 1.

    If POOLED, `which` receives the place of each window's maximum, row by row, or 4 if that is not positive.
    """
    rows: tl.constexpr = OH if POOLED else (OH + 1) // 2
    columns: tl.constexpr = OW if POOLED else (OW + 1) // 2
    position = tl.program_id(0)
    column = position % columns
    position //= columns
    row = position % rows
    position //= rows
    lanes = position % tl.cdiv(B, BB) * BB + tl.arange(0, BB)[None, :]
    position //= tl.cdiv(B, BB)
    channels = position % (OP // BO) * BO + tl.arange(0, BO)[:, None]
    trainee = (position // (OP // BO)).to(tl.int64)
    if not SHARED:
        x += trainee * (C * H * W * B)
    weight += trainee * (KH * KW * C * OP)

    there = lanes < B
    top = 2 * row - PH
    left = 2 * column - PW
    first = tl.zeros([BO, BB], tl.float32)
    second = tl.zeros([BO, BB], tl.float32)
    third = tl.zeros([BO, BB], tl.float32)
    fourth = tl.zeros([BO, BB], tl.float32)
    # Taps that meet nothing but padding, from every pixel of the window, are left out.
    for i in range(tl.maximum(0, -1 - top), tl.minimum(KH, H - top)):
        for j in range(tl.maximum(0, -1 - left), tl.minimum(KW, W - left)):
            pixel = x + ((top + i) * W + left + j) * B + lanes
            taps = weight + (i * KW + j) * (C * OP) + channels
            upper = top + i >= 0
            lower = top + i + 1 < H
            west = left + j >= 0
            east = left + j + 1 < W
            for start in range(0, C, UNROLL):
                for more in tl.static_range(UNROLL):
                    at = pixel + (start + more) * (H * W * B)
                    w = tl.load(taps + (start + more) * OP)
                    if MASKED:
                        first += w * tl.load(at, mask=there & (upper & west), other=0.0)
                        second += w * tl.load(at + B, mask=there & (upper & east), other=0.0)
                        third += w * tl.load(at + W * B, mask=there & (lower & west), other=0.0)
                        fourth += w * tl.load(at + (W + 1) * B, mask=there & (lower & east), other=0.0)
                    else:
                        first += w * tl.load(at, mask=there, other=0.0)
                        second += w * tl.load(at + B, mask=there, other=0.0)
                        third += w * tl.load(at + W * B, mask=there, other=0.0)
                        fourth += w * tl.load(at + (W + 1) * B, mask=there, other=0.0)
    kept = channels < OC
    if BIASED:
        shift = tl.load(bias + trainee * OC + channels, mask=kept, other=0.0)
        first += shift
        second += shift
        third += shift
        fourth += shift
    written = there & kept
    out += trainee * (OC * OH * OW * B)
    if POOLED:
        # NaN is the greatest of all, as in PyTorch's pools.
        best = first
        place = tl.zeros([BO, BB], tl.int8)
        greater = (second > best) | (second != second)
        best = tl.where(greater, second, best)
        place = tl.where(greater, 1, place)
        greater = (third > best) | (third != third)
        best = tl.where(greater, third, best)
        place = tl.where(greater, 2, place)
        greater = (fourth > best) | (fourth != fourth)
        best = tl.where(greater, fourth, best)
        place = tl.where(greater, 3, place)
        offset = (channels * (OH * OW) + row * OW + column) * B + lanes
        tl.store(out + offset, tl.where(best <= 0, 0.0, best), mask=written)
        which += trainee * (OC * OH * OW * B)
        tl.store(which + offset, tl.where(best <= 0, 4, place).to(tl.int8), mask=written)
    else:
        at = out + (channels * (OH * OW) + 2 * row * OW + 2 * column) * B + lanes
        if MASKED:
            south = 2 * row + 1 < OH
            right = 2 * column + 1 < OW
            tl.store(at, first, mask=written)
            tl.store(at + B, second, mask=written & right)
            tl.store(at + OW * B, third, mask=written & south)
            tl.store(at + (OW + 1) * B, fourth, mask=written & (south & right))
        else:
            tl.store(at, first, mask=written)
            tl.store(at + B, second, mask=written)
            tl.store(at + OW * B, third, mask=written)
            tl.store(at + (OW + 1) * B, fourth, mask=written)


# A warp's 32 threads hold 32 examples, and the warps differ in their taps: then no number changes threads in the loop.
# Triton would give a thread four consecutive examples of an aligned tensor; and it distributes the warps over the axis
# that is hinted to be the most contiguous after the last one.
@triton.jit(do_not_specialize_on_alignment=["x", "grad", "which"])
def weight_gradient(
    x,  # (n, C, H, W, B)
    grad,  # (n, OC, OH, OW, B), of windows if POOLED
    which,  # the same in int8, read if POOLED
    partial,  # (n, SPLITS, OP, KP)
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    B: tl.constexpr,
    OC: tl.constexpr,
    OP: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    POOLED: tl.constexpr,
    KP: tl.constexpr,  # columns: those of the weights, that of the bias, and zeros
    SPLITS: tl.constexpr,  # programs among which pixels and examples are divided
    BO: tl.constexpr,
    BK: tl.constexpr,  # taps per thread
    WARPS: tl.constexpr,
):
    """Computes partial sums over pixels and examples; column C * KH * KW, after those of the weights, is the bias's.

    A thread sums the products of BO channels and BK taps over its share of the examples by itself; the sums of a warp's
    threads are added at the end only. Axes are (BO, BK, WARPS, 32).
    """
    SIDE: tl.constexpr = 2 if POOLED else 1
    SIZE: tl.constexpr = C * KH * KW
    position = tl.program_id(0)
    chunk = position % (KP // (BK * WARPS))
    position //= KP // (BK * WARPS)
    first = position % (OP // BO) * BO
    position //= OP // BO
    split = position % SPLITS
    trainee = (position // SPLITS).to(tl.int64)
    x += trainee * (C * H * W * B)
    offset = trainee * (OC * OH * OW * B) + first * (OH * OW * B)
    grad += offset
    which += offset

    warps = tl.arange(0, WARPS)[None, None, :, None]
    columns = (chunk * WARPS + warps) * BK + tl.arange(0, BK)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, None, :]
    i = columns // KW % KH
    j = columns % KW
    taps = (((columns // (KH * KW)) * H + i) * W + j) * B
    inner = columns < SIZE
    ones = columns == SIZE
    channels = tl.arange(0, BO)[:, None, None, None]
    kept = first + channels < OC
    outputs = lane + tl.broadcast_to(channels * (OH * OW * B), [BO, 1, WARPS, 1])  # each warp loads for itself
    total = tl.zeros([BO, BK, WARPS, 32], tl.float32)
    for item in range(split, OH * tl.cdiv(B, 32), SPLITS):
        row = item % OH
        start = item // OH * 32
        there = start + lane < B
        here = there & kept
        pixel = row * OW * B + start
        ahead = tl.load(tl.max_contiguous(grad + pixel + outputs, [1, 1, WARPS, 32]), mask=here, other=0.0)
        if POOLED:
            ahead_place = tl.load(tl.max_contiguous(which + pixel + outputs, [1, 1, WARPS, 32]), mask=here, other=4)
        for column in range(0, OW):
            # Gradients, whose loads take longest, are loaded one pixel in advance.
            seen = ahead
            pixel += B
            more = here & (column + 1 < OW)
            ahead = tl.load(tl.max_contiguous(grad + pixel + outputs, [1, 1, WARPS, 32]), mask=more, other=0.0)
            if POOLED:
                place = ahead_place
                ahead_place = tl.load(tl.max_contiguous(which + pixel + outputs, [1, 1, WARPS, 32]), mask=more, other=4)
            for q in range(SIDE * SIDE):
                top = SIDE * row + q // SIDE - PH
                left = SIDE * column + q % SIDE - PW
                mask = there & inner
                if PH > 0:
                    mask = mask & (i + top >= 0) & (i + top < H)
                if PW > 0:
                    mask = mask & (j + left >= 0) & (j + left < W)
                source = x + ((top * W + left) * B + start) + lane + taps
                patch = tl.load(tl.max_contiguous(source, [1, 1, WARPS, 32]), mask=mask, other=0.0)
                patch = tl.where(ones, 1.0, patch)
                if POOLED:
                    total += tl.where(place == q, seen, 0.0) * patch
                else:
                    total += seen * patch
    sums = tl.sum(total, 3)
    rows = (split * OP + first + tl.arange(0, BO)[:, None, None]) * KP
    tl.store(partial + trainee * (SPLITS * OP * KP) + rows + tl.reshape(columns, [1, BK, WARPS]), sums)


@triton.jit
def unpool(
    grad,  # (m, OH, OW, B), of windows
    which,  # the same in int8
    out,  # (m, H, W, B), of pixels; those in no window are left as they are
    H: tl.constexpr,
    W: tl.constexpr,
    B: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    BB: tl.constexpr,
):
    """Writes each window's gradient to the pixel of its maximum, and zero to the three others."""
    position = tl.program_id(0)
    lanes = position % tl.cdiv(B, BB) * BB + tl.arange(0, BB)
    position //= tl.cdiv(B, BB)
    column = position % OW
    row = position // OW % OH
    image = (position // (OW * OH)).to(tl.int64)
    there = lanes < B
    at = position.to(tl.int64) * B + lanes
    seen = tl.load(grad + at, mask=there)
    place = tl.load(which + at, mask=there)
    to = out + ((image * H + 2 * row) * W + 2 * column) * B + lanes
    tl.store(to, tl.where(place == 0, seen, 0.0), mask=there)
    tl.store(to + B, tl.where(place == 1, seen, 0.0), mask=there)
    tl.store(to + W * B, tl.where(place == 2, seen, 0.0), mask=there)
    tl.store(to + (W + 1) * B, tl.where(place == 3, seen, 0.0), mask=there)
