"""Objects of the configuration: their arguments checked early, and the objects made."""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sphere_bench.errors import SphereBenchError

_SCALARS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PIPELINE = "sphere_bench.editing.pipeline.EditingPipeline"
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_editor(own: Mapping[str, Any], shared: Mapping[str, Any], key: str) -> None:
    """Check the arguments of an editor, and those that every editor has.

    Args:
        own: the editor's node.
        shared: its transforms and conditioner, see :attr:`EditorConfig.shared`.
        key: dotted name of the node that has both.

    Raises:
        SphereBenchError: an argument is unknown, missing or of another type.
    """
    check_arguments(own, key, given=1)
    check_arguments({"_target_": _PIPELINE, **shared}, key, given=2)


def check_arguments(node: Mapping[str, Any], key: str, given: int = 0) -> None:
    """Compare the arguments of ``_target_``, and of the objects among them, to its signature.

    Whatever a ``**`` parameter takes is accepted. A target that cannot be found or has no
    signature is left to whoever makes the object.

    Args:
        node: an object of the configuration.
        key: its dotted name.
        given: how many arguments the harness itself gives, before all others: they are no keys.

    Raises:
        SphereBenchError: an argument is unknown, missing or of another type.
    """
    try:
        target = find_target(node["_target_"])
        parameters = list(inspect.signature(target).parameters.values())[given:]
    except Exception:
        return
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a name that its module has for type checkers only
        hints = {}
    known = {each.name: each for each in parameters if each.kind in _NAMED}
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in node:
            raise SphereBenchError(f"{key}.{name} is missing: {target.__name__} needs it")
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in known and not takes_any:
            takes = ", ".join(known) or "no keys"
            raise SphereBenchError(f"no key '{key}.{name}': {target.__name__} takes {takes}")
        hint = hints.get(name, Any) if name in known else Any
        if not _fits(value, hint):
            raise SphereBenchError(f"{key}.{name}={value}: must be {_describe(hint)}")
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, Mapping):
                place = f".{index}" if isinstance(value, list) else ""
                check_arguments(each, f"{key}.{name}{place}")


def find_target(name: str) -> Any:
    """The class or function that a ``_target_`` names.

    Raises:
        Exception: there is none, or whatever its module raises.
    """
    from hydra import utils

    # It also logs what it raises.
    utils.log.setLevel(logging.CRITICAL)
    return utils.get_object(name)


def make_object(node: Mapping[str, Any], *given: object) -> Any:
    """The object that a node describes; lists and dicts among its arguments are plain ones.

    Args:
        node: has a ``_target_``, or is a dict in which nodes become objects.
        given: what the harness itself gives, before all other arguments.

    Raises:
        hydra.errors.InstantiationException: the target cannot be found.
        Exception: whatever the target raises.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, *given, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is not None and str(error).startswith("Error in call to target"):
            raise error.__cause__ from None
        raise


def _fits(value: Any, hint: Any) -> bool:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if kind is Literal:
        return value in arguments
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind in (int, str, bool, NoneType):
        return type(value) is kind
    if _is(kind, Sequence):
        each = arguments[0] if arguments else Any
        return isinstance(value, list) and all(_fits(item, each) for item in value)
    if _is(kind, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, Mapping) and "_target_" in value


def _describe(hint: Any) -> str:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if kind is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind is NoneType:
        return "null"
    if kind in _SCALARS:
        return _SCALARS[kind]
    if _is(kind, Sequence):
        return f"a list, each {_describe(arguments[0])}" if arguments else "a list"
    if _is(kind, Mapping):
        return "a dict"
    return "an object with a _target_"


def _is(kind: Any, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base)
