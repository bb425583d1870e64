"""Whether what a configuration gives to a class is what the class takes, told before it is slow."""

import inspect
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sphere_bench.errors import SphereBenchError

_SCALARS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def check_arguments(node: Mapping[str, Any], key: str) -> None:
    """Hold the arguments of ``_target_``, and of the objects among them, to its annotations.

    A target that cannot be found or has no signature is left to whoever instantiates it.

    Args:
        node: an object of the configuration.
        key: its dotted name.

    Raises:
        SphereBenchError: an argument is unknown or of another type.
    """
    from hydra.utils import get_object

    try:
        target = get_object(node["_target_"])
        known = [name for name in inspect.signature(target).parameters if name != "self"]
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:
        return
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in known:
            raise SphereBenchError(
                f"no key '{key}.{name}': {target.__name__} takes {', '.join(known)}"
            )
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise SphereBenchError(f"{key}.{name}={value}: must be {_describe(hint)}")
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, Mapping):
                place = f".{index}" if isinstance(value, list) else ""
                check_arguments(each, f"{key}.{name}{place}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (int, str, bool, NoneType):
        return type(value) is hint
    return isinstance(value, Mapping) and "_target_" in value


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is not None:
        return f"a list, each {_describe(arguments[0])}"
    if hint is NoneType:
        return "null"
    return _SCALARS.get(hint, "an object with a _target_")
