"""Capture, stop, select and skip inside a forward pass, as context managers.

Decoder layers return a tensor or a tuple whose first entry is the hidden states, depending on the
architecture and the release of transformers; everything here takes both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")


class _StopForward(Exception):
    """Leaves a forward pass once the last wanted tensor is there."""


def hidden_states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states of what a decoder layer takes or returns."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def capture(
    modules: Mapping[Key, nn.Module],
    side: Literal["input", "output"],
    *,
    stop: bool = False,
) -> Iterator[dict[Key, Tensor]]:
    """Collect the first input or the output of each module during the forwards in the block.

    Args:
        modules: what to watch, by any key.
        side: ``input`` of the module or its ``output``.
        stop: end the block's forward as soon as every module has been seen; the statements after
            that forward in the block are not run.

    Yields:
        A dict that the forward fills, key to tensor.
    """
    captured: dict[Key, Tensor] = {}

    def keep(key: Key, tensor: Tensor) -> None:
        captured[key] = tensor
        if stop and len(captured) == len(modules):
            raise _StopForward

    def input_hook(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keep(key, inputs[0])

        return hook

    def output_hook(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            keep(key, hidden_states(output))

        return hook

    handles = [
        module.register_forward_pre_hook(input_hook(key))
        if side == "input"
        else module.register_forward_hook(output_hook(key))
        for key, module in modules.items()
    ]
    try:
        yield captured
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def select_positions(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Run the head at positions ``(rows[i], columns[i])`` only: its output becomes [1, n, vocab].

    Whatever the model does to its logits afterwards (soft-capping, scaling) still happens.
    """

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def probe_outputs(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """Add a zero tensor to each module's output, so that its gradient is that of the output.

    Yields:
        A dict that the forward fills, key to the zeros that require a gradient.
    """
    probes: dict[Key, Tensor] = {}

    def adding(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            probes[key] = torch.zeros_like(output, requires_grad=True)
            return output + probes[key]

        return hook

    handles = [module.register_forward_hook(adding(key)) for key, module in modules.items()]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def start_after(
    layers: nn.ModuleList, layer: int, hidden: Tensor, *, tuples: bool
) -> Iterator[None]:
    """Make forwards in the block begin behind ``layers[layer]``, whose output is ``hidden``.

    Args:
        layers: the model's decoder layers.
        layer: the last layer that is not run.
        hidden: what it would have returned, [batch, tokens, d_model].
        tuples: whether layers return tuples.
    """

    def skipped(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor, None]:
        return (hidden, None) if tuples else hidden

    # An instance attribute shadows the class's method: nn.Module.__call__ looks `forward` up anew.
    for index in range(layer + 1):
        layers[index].forward = skipped
    try:
        yield
    finally:
        for index in range(layer + 1):
            del layers[index].forward
