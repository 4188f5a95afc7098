"""Record what the reference computes inside a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Recorder(dict):
    """Tensors recorded during one forward pass, keyed by the name they get in the fixture; floats as float32."""

    def put(self, name: str, tensor: torch.Tensor) -> None:
        self[name] = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


@contextmanager
def hooks(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Keep forward hooks installed for the duration of a with block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_output(module: nn.Module, recorder: Recorder, name: str, select=lambda output: output):
    """Store ``select(output)`` of every forward call of ``module`` under ``name``."""

    def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
        recorder.put(name, select(output))

    return module.register_forward_hook(hook)


def record_input(module: nn.Module, recorder: Recorder, name: str, position: int = 0):
    """Store one positional input of every forward call of ``module`` under ``name``."""

    def hook(_module: nn.Module, inputs: tuple) -> None:
        recorder.put(name, inputs[position])

    return module.register_forward_pre_hook(hook)


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """Drop the batch axis [1, ...] and pick a small storage type: int32 for ids, uint8 for masks."""
    tensor = tensor.squeeze(0)
    if tensor.dtype in (torch.int64, torch.int32):
        tensor = tensor.to(torch.int32)
    elif tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    return tensor.contiguous()
