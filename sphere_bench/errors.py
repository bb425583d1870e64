"""The one exception that a user is meant to read."""

from collections.abc import Collection


class SphereBenchError(Exception):
    """Something the user can mend: one line that names the thing and the mend.

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
