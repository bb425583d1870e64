"""Numbers that an editor takes from the model's file."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sphere_bench.config.identity import is_within
from sphere_bench.config.schema.model import ValueSolverConfig
from sphere_bench.errors import SphereBenchError

_NUMBERS = "model.editors"
# Another key's value, and the value of the first of two keys that is set.
_REFERENCE = re.compile(r"\$\{\s*([\w.-]+)\s*\}")
_SELECTION = re.compile(r"\$\{\s*oc\.select:\s*([\w.-]+)\s*,(.*)\}", re.DOTALL)

_UNSET = object()


def check_model_numbers(composed: DictConfig) -> None:
    """Check the numbers that the model has for the chosen editor.

    Args:
        composed: the composed configuration, its interpolations not resolved.

    Raises:
        SphereBenchError: some that the editor refers to are missing (the message names all of
            them), or one of the value solver has a name that it does not know.
    """
    editor = composed.get("editor")
    if not isinstance(editor, DictConfig):
        return
    _check_values(composed, f"{_NUMBERS}.{editor.get('name')}.values")
    found = references(OmegaConf.to_container(editor, resolve=False), composed)
    keys = dict.fromkeys(key for key in found if is_within(key, _NUMBERS))
    missing = [key for key in keys if not _is_set(composed, key)]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        raise SphereBenchError(
            f"model {OmegaConf.select(composed, 'model.name')} has no numbers for the editor "
            f"{editor.get('name')}: set {named} "
            "(in the model's YAML or on the command line)"
        )


def references(node: Any, composed: DictConfig) -> Iterator[str]:
    """The keys that the interpolations in a node take their values from.

    ``${oc.select:KEY,DEFAULT}`` takes it from its key where that is set, else from its default.

    Args:
        node: a part of ``composed`` as plain containers, not resolved.
        composed: the whole configuration.
    """
    if isinstance(node, str):
        text = node.replace("${editor.name}", str(OmegaConf.select(composed, "editor.name")))
        selection = _SELECTION.fullmatch(text)
        if selection is None:
            yield from _REFERENCE.findall(text)
        elif _is_set(composed, selection[1]):
            yield selection[1]
        else:
            yield from references(selection[2], composed)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from references(value, composed)
    elif isinstance(node, Sequence):
        for value in node:
            yield from references(value, composed)


def _check_values(composed: DictConfig, key: str) -> None:
    """Raise if ``key`` has a name that is none of the value solver's, or no names at all."""
    values = OmegaConf.select(composed, key, default={})
    known = [each.name for each in fields(ValueSolverConfig)]
    if not isinstance(values, Mapping):
        raise SphereBenchError(f"{key}={values}: must be a dict of {', '.join(known)}")
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            advice = (
                f"did you mean '{key}.{close[0]}'?" if close else f"there are {', '.join(known)}"
            )
            raise SphereBenchError(f"no key '{key}.{name}': {advice}")


def _is_set(composed: DictConfig, key: str) -> bool:
    return OmegaConf.select(composed, key, default=_UNSET) is not _UNSET
