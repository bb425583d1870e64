"""Values that several parts of the configuration have."""

import re

from sphere_bench.errors import SphereBenchError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_name(key: str, value: str) -> None:
    """Raise unless ``value`` can be part of a folder's name."""
    if not _NAME.fullmatch(value):
        raise SphereBenchError(
            f"{key}={value}: must be one folder's name of letters, digits and . _ + -"
        )


def check_layers(key: str, value: list[int]) -> None:
    """Raise unless ``value`` holds layer numbers, each once and in their order."""
    if not value or value != sorted(set(value)) or value[0] < 0:
        raise SphereBenchError(f"{key}={value}: must be a rising list of layer numbers from 0 on")
