"""Numbers that an editor needs from the model's file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sphere_bench.errors import SphereBenchError

_NUMBER = re.compile(r"\$\{\s*(model\.editors\.[^}\s]+)\s*\}")

_UNSET = object()


def check_model_numbers(composed: DictConfig) -> None:
    """Raise unless the model has all numbers that the chosen editor refers to.

    Args:
        composed: the composed configuration, its interpolations not resolved.

    Raises:
        SphereBenchError: some are missing; the message names all of them.
    """
    editor = composed.get("editor")
    if not isinstance(editor, DictConfig):
        return
    keys = dict.fromkeys(_numbers(OmegaConf.to_container(editor, resolve=False)))
    missing = [key for key in keys if not _is_set(composed, key)]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        raise SphereBenchError(
            f"model {OmegaConf.select(composed, 'model.name')} has no numbers for the editor "
            f"{editor.get('name')}: set {named} "
            "(in the model's YAML or on the command line)"
        )


def _numbers(node: Any) -> Iterator[str]:
    """The keys below ``model.editors`` that a node refers to."""
    if isinstance(node, str):
        yield from _NUMBER.findall(node)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _numbers(value)
    elif isinstance(node, Sequence):
        for value in node:
            yield from _numbers(value)


def _is_set(composed: DictConfig, key: str) -> bool:
    return OmegaConf.select(composed, key, default=_UNSET) is not _UNSET
