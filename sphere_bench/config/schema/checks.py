"""Checks of values that stand in several places of the configuration."""

import re
from collections.abc import Mapping
from typing import Any

from sphere_bench.errors import SphereBenchError, check_at_least

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_name(key: str, value: str) -> None:
    """Raise unless ``value`` can be part of a folder's name."""
    if not _NAME.fullmatch(value):
        raise SphereBenchError(
            f"{key}={value}: must be one folder's name of letters, digits and . _ + -"
        )


def check_layers(key: str, value: list[int]) -> None:
    """Raise unless ``value`` holds layer numbers, each once and in rising order."""
    # A value from a model's own numbers for an editor may be of any type.
    numbers = isinstance(value, list) and all(type(each) is int for each in value)
    if not numbers or not value or value != sorted(set(value)) or value[0] < 0:
        raise SphereBenchError(f"{key}={value}: must be a rising list of layer numbers from 0 on")


def check_probe(key: str, value: Any) -> None:
    """Raise unless ``value`` names a probe's class and how often it runs."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise SphereBenchError(f"{key}._target_ is missing: name the probe's class")
    every = value.get("every")
    if type(every) is not int:
        raise SphereBenchError(
            f"{key}.every={every}: must be the steps between the probe's turns, 0 for none"
        )
    check_at_least(f"{key}.every", every, 0)
