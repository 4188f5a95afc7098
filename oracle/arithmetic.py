"""The same reference with other arithmetic: other orders of summation, other roundings of activations and caches."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from nemo_automodel.components.models.deepseek_v41 import attention
from nemo_automodel.components.models.deepseek_v41.quantization import quantize_cache
from nemo_automodel.components.moe.experts import GroupedExperts
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from capture import hooks

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)
PIECE = 4096
SUMS = (aten.sum.dim_IntList, aten.mean.dim)
FP8_LINEAR = re.compile(r"attn\.(wq_a|wq_b|wkv|wo_b|indexer\.wq_b)$|shared_experts\.(gate|up|down)_proj$|engram\.wkv$")


class OtherSummation(TorchDispatchMode):
    """While active, every float32 matrix product, sum, mean and softmax shuffles its terms.

    ``seed`` picks the shuffle; with ``seed=None`` the sums are taken in float64 and then rounded.
    """

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def order(self, length: int) -> torch.Tensor:
        return torch.randperm(length, generator=self.generator)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        known = function in PRODUCTS or function in SUMS or function is aten._softmax.default
        if not known or arguments[0].dtype != torch.float32:
            return function(*arguments, **options)
        if self.generator is None and function in PRODUCTS:
            return product_in_float64(*arguments)
        if self.generator is None:
            return function(arguments[0].double(), *arguments[1:], **options).float()
        if function in PRODUCTS:
            *bias, left, right = arguments
            order = self.order(left.shape[-1])
            return function(*bias, left[..., order], right[..., order, :], **options)
        values, dimensions, *rest = arguments
        if function in SUMS:
            for dimension in dimensions:
                values = values.index_select(dimension, self.order(values.shape[dimension]))
            return function(values, dimensions, *rest, **options)
        order = self.order(values.shape[dimensions])
        return function(values.index_select(dimensions, order), dimensions, *rest, **options).index_select(
            dimensions, order.argsort()
        )


def product_in_float64(*arguments: torch.Tensor) -> torch.Tensor:
    """A matrix product, with a bias to add before it or without, piece by piece: float64 copies take much memory."""
    *bias, left, right = arguments
    if left.ndim == 3:
        return torch.stack([product_in_float64(*pair) for pair in zip(left, right)])
    wide = left.double()
    product = torch.cat([wide @ part.double() for part in right.split(PIECE, dim=-1)], dim=-1)
    return sum((value.double() for value in bias), product).float()


@contextmanager
def unquantised_cache(_model: nn.Module) -> Iterator[None]:
    """Keep window KV, compressed KV and index keys/queries at full precision."""
    with mock.patch.object(attention, "quantize_cache", lambda values, **_format: values):
        yield


@contextmanager
def fp8_activations(model: nn.Module) -> Iterator[None]:
    """Round the inputs of FP8 and FP4 projections (all but wo_a) to FP8 in blocks of 32 channels."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return quantize_cache(values, format="fp8", block_size=32)

    def round_input(_module: nn.Module, inputs: tuple) -> tuple:
        return (rounded(inputs[0]), *inputs[1:])

    experts = [module for module in model.modules() if isinstance(module, GroupedExperts)]
    linears = [module for name, module in model.named_modules() if FP8_LINEAR.search(name)]
    activations = [module.expert_activation_grouped for module in experts]
    for module, activation in zip(experts, activations):
        module.expert_activation_grouped = lambda *inputs, inner=activation: rounded(inner(*inputs))
    try:
        with hooks(*(module.register_forward_pre_hook(round_input) for module in [*linears, *experts])):
            yield
    finally:
        for module, activation in zip(experts, activations):
            module.expert_activation_grouped = activation


VARIANTS = {"unquantised_cache": unquantised_cache, "fp8_activations": fp8_activations}
