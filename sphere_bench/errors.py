"""The one exception that is written for users, and the checks that raise it."""

from collections.abc import Collection

# Both a float32 and a 64-bit whole number can hold it.
_LARGEST = 1e18


class SphereBenchError(Exception):
    """An error that the user can correct: one line that names the thing and what to do.

    The command line prints it without a traceback and exits with a non-zero code.
    """


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise unless ``value`` is one of ``choices``.

    Raises:
        SphereBenchError: it is not; the message names all of them.
    """
    if value not in choices:
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise SphereBenchError(f"{name}={value}: must be one of {known}")


def check_at_least(name: str, value: float, lowest: float) -> None:
    """Raise unless ``value`` is a finite, not too large number from ``lowest`` on."""
    if not lowest <= value <= _LARGEST:
        raise SphereBenchError(
            f"{name}={value}: must be a number of at least {lowest}, up to {_LARGEST:g}"
        )


def check_above(name: str, value: float, bound: float) -> None:
    """Raise unless ``value`` is a finite, not too large number greater than ``bound``."""
    if not bound < value <= _LARGEST:
        raise SphereBenchError(
            f"{name}={value}: must be a number greater than {bound}, up to {_LARGEST:g}"
        )


def check_between(name: str, value: float, lowest: float, highest: float) -> None:
    """Raise unless ``value`` is between the two bounds, or one of them."""
    if not lowest <= value <= highest:
        raise SphereBenchError(f"{name}={value}: must be between {lowest} and {highest}")
