"""Capture, stop, select and skip inside a forward pass, as context managers.

A decoder layer returns the hidden states or a tuple that begins with them. That depends on the
architecture and on the release of transformers. Everything here works with both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")


class _StopForward(Exception):
    """Ends a forward pass when the last tensor has been captured."""


def hidden_states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states in what a decoder layer returns."""
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
        modules: the modules to watch, by any key.
        side: the module's ``input`` or its ``output``.
        stop: end the block's forward as soon as every module has run. Statements after that
            forward in the block are not executed.

    Yields:
        A dict, key to tensor, that the forward fills.
    """
    captured: dict[Key, Tensor] = {}

    def stop_if_complete() -> None:
        if stop and len(captured) == len(modules):
            raise _StopForward

    def input_hook(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured[key] = inputs[0]
            stop_if_complete()

        return hook

    def output_hook(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            captured[key] = hidden_states(output)
            stop_if_complete()
            # Falcon adds the attention's output to that of its MLP in place.
            captured[key] = captured[key].clone()

        return hook

    # Output hooks run first, so that they see an output before `keep_token_axis` flattens it.
    handles = [
        module.register_forward_pre_hook(input_hook(key))
        if side == "input"
        else module.register_forward_hook(output_hook(key), prepend=True)
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
    """Run the head only at positions ``(rows[i], columns[i])``: its output is [1, n, vocab].

    What the model does to its logits afterwards (soft-capping, scaling) still happens. Where
    gradients flow, take them by ``squeeze(0)``: that of ``[0]`` is one more tensor of their size.
    """

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        places = (rows * inputs[0].shape[1] + columns).to(inputs[0].device)
        return (inputs[0].flatten(0, 1).index_select(0, places).unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def probe_outputs(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """Add zeros to each module's output; their gradient is the gradient of the output.

    Yields:
        A dict, key to zeros that require a gradient, that the forward fills.
    """
    probes: dict[Key, Tensor] = {}

    def adding(key: Key):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            probes[key] = torch.zeros_like(output, requires_grad=True)
            return output + probes[key]

        return hook

    handles = [
        module.register_forward_hook(adding(key), prepend=True) for key, module in modules.items()
    ]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


def keep_token_axis(layer: nn.Module, projection: nn.Module) -> None:
    """Make ``projection`` work on [batch, tokens, width] in a layer that flattens the first two.

    OPT's decoder layers run their MLP on [batch * tokens, width]. Here the projection's input gets
    its token axis back before any other hook sees it, and the output loses it after all of them.
    """
    shape: torch.Size = torch.Size()

    def remember(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal shape
        shape = inputs[0].shape[:2]

    def unflatten(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].reshape(*shape, -1), *inputs[1:])

    def flatten(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.flatten(0, 1)

    layer.register_forward_pre_hook(remember)
    projection.register_forward_pre_hook(unflatten)
    projection.register_forward_hook(flatten)


@contextmanager
def start_after(
    layers: nn.ModuleList, layer: int, hidden: Tensor, *, tuples: bool
) -> Iterator[None]:
    """Make forwards in the block begin after ``layers[layer]``, with ``hidden`` as its output.

    Args:
        layers: the model's decoder layers.
        layer: the last layer that does not run.
        hidden: what that layer would return, [batch, tokens, d_model].
        tuples: whether layers return tuples.
    """

    def skipped(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor, None]:
        return (hidden, None) if tuples else hidden

    # An attribute of the instance hides the class's method: nn.Module.__call__ finds it first.
    # There may be one already: accelerate's hooks, which move tensors between devices, are such.
    below = layers[: layer + 1]
    hidden_already = [vars(each).get("forward") for each in below]
    for each in below:
        each.forward = skipped
    try:
        yield
    finally:
        for each, before in zip(below, hidden_already, strict=True):
            del each.forward
            if before is not None:
                each.forward = before
