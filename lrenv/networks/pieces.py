"""The pieces of a network that can have rates of their own: its layers and its tensors, told by parameters' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Pieces:
    """The pieces of a network whose parameters lie end to end in P columns.

    Args:
        shapes: parameter name -> shape, in the order of the columns. A layer's parameters stand next to one another.
        owners: the layer of each parameter. By default, that is the module that holds it: its name without the last
            part.

    Attributes:
        layers: the names of the layers, in order.
        sizes: granularity -> how many consecutive columns each piece has. At "trainee" all columns are one piece; at
            "layer" and "tensor" each layer and each tensor is one.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], owners: Sequence[str] | None = None) -> None:
        self._shapes = list(shapes.values())
        self._owners = [name.rpartition(".")[0] for name in shapes] if owners is None else list(owners)
        self.layers = list(dict.fromkeys(self._owners))
        tensors = [shape.numel() for shape in self._shapes]
        of_layers = dict.fromkeys(self.layers, 0)
        for owner, size in zip(self._owners, tensors, strict=True):
            of_layers[owner] += size
        self.sizes = {"trainee": [sum(tensors)], "layer": list(of_layers.values()), "tensor": tensors}

    def of_tensors(self, granularity: str) -> list[int]:
        """Returns which piece each parameter belongs to, by number; "parameter" has pieces smaller than tensors."""
        if granularity == "trainee":
            return [0] * len(self._owners)
        return [self.layers.index(x) for x in self._owners] if granularity == "layer" else [*range(len(self._owners))]

    def summed(self, x: Tensor, granularity: str) -> Tensor:
        """Returns the sums (n, K) over the K pieces of a tensor (n, P); at "parameter" the tensor itself."""
        if granularity == "parameter":
            return x
        return torch.stack([piece.sum(1) for piece in x.split(self.sizes[granularity], 1)], 1)

    def fan_in(self, granularity: str) -> Tensor:
        """Returns how many terms each output of a piece sums up: (K,) for the K pieces, float64.

        A weight (outputs, inputs, ...) has the product of all axes but the first; of an embedding that is its width. A
        layer has that of its first weight, and so have its biases and gains, which are tensors of one axis or none. A
        layer of nothing else, such as a norm, belongs to the weights before it, or to the first of all. A trainee as a
        whole has the geometric mean over its layers. In a network without weights of two axes, all are 1.
        """
        of_weights = [float(shape[1:].numel()) if len(shape) > 1 else None for shape in self._shapes]
        first: dict[str, float] = {}
        for owner, own in zip(self._owners, of_weights, strict=True):
            if own is not None:
                first.setdefault(owner, own)
        last, layers = next(iter(first.values()), 1.0), {}
        for layer in self.layers:
            layers[layer] = last = first.get(layer, last)
        of_layers = torch.tensor(list(layers.values()), dtype=torch.float64)
        if granularity == "layer":
            return of_layers
        if granularity == "trainee":
            return of_layers.log().mean().exp()[None]
        tensors = [layers[x] if own is None else own for x, own in zip(self._owners, of_weights, strict=True)]
        of_tensors = torch.tensor(tensors, dtype=torch.float64)
        if granularity == "tensor":
            return of_tensors
        sizes = self.sizes["tensor"]
        return of_tensors.repeat_interleave(torch.tensor(sizes), output_size=sum(sizes))


def outer_weights(shapes: Mapping[str, torch.Size]) -> tuple[str, str]:
    """Returns the names of the first and the last weight, tensors with two or more axes, or any if there are none."""
    matrices = [name for name, shape in shapes.items() if len(shape) > 1] or list(shapes)
    return matrices[0], matrices[-1]
