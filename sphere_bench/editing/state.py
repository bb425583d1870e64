"""What an editor, a transform or a probe remembers: tensors in nested dicts.

A component with memory has ``state_dict()``, which gives it, and ``load_state_dict(state)``, which
restores it. A component without memory has neither.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from sphere_bench.errors import SphereBenchError

SEPARATOR = "/"


def state_of(component: object) -> Mapping[str, Any]:
    """What ``component`` remembers; empty if it has no ``state_dict``."""
    state_dict = getattr(component, "state_dict", None)
    return state_dict() if state_dict is not None else {}


def restore_state(component: object, state: Mapping[str, Any]) -> None:
    """Give ``component`` back what :func:`state_of` returned."""
    load_state_dict = getattr(component, "load_state_dict", None)
    if load_state_dict is not None:
        load_state_dict(state)


def check_state(component: object, name: str) -> None:
    """Raise unless what ``component`` remembers can be saved and restored.

    Args:
        name: of the component, for the message.

    Raises:
        SphereBenchError: it has only one of the two methods, or its state cannot be saved.
    """
    missing = [
        method
        for method in ("state_dict", "load_state_dict")
        if not callable(getattr(component, method, None))
    ]
    if len(missing) == 1:
        raise SphereBenchError(
            f"{name}: {type(component).__name__} has no {missing[0]}: it needs both state_dict "
            "and load_state_dict, or neither"
        )
    dict(flatten_state(state_of(component), name))


def flatten_state(
    state: Mapping[str, Any], name: str, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, each with its path of keys, joined by ``/``.

    Args:
        state: a dict of tensors and of such dicts.
        name: of the component that it belongs to, for the message.
        prefix: of the paths.

    Raises:
        SphereBenchError: a key is not a string without ``/``, or a value is no tensor.
    """
    if not isinstance(state, Mapping):
        raise SphereBenchError(
            f"{name}: its state_dict() must be a dict, not {type(state).__name__}"
        )
    for key, value in state.items():
        if not isinstance(key, str) or SEPARATOR in key:
            raise SphereBenchError(
                f"{name}: a key of its state_dict() must be a string without '{SEPARATOR}', "
                f"not {key!r}"
            )
        if isinstance(value, Mapping):
            yield from flatten_state(value, name, f"{prefix}{key}{SEPARATOR}")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            raise SphereBenchError(
                f"{name}: its state_dict() holds a {type(value).__name__} at {prefix}{key}: "
                "store a tensor"
            )


def unflatten_state(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The nested state that :func:`flatten_state` made ``flat`` from; empty dicts are lost."""
    nested: dict[str, Any] = {}
    for path, tensor in flat.items():
        *parents, key = path.split(SEPARATOR)
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = tensor
    return nested


def copied_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same state with tensors of its own: changes in place do not reach it."""
    return {
        key: copied_state(value) if isinstance(value, Mapping) else value.detach().clone()
        for key, value in state.items()
    }
