"""One line for everything that goes wrong: it names the thing and, where possible, what to do."""

import difflib
import os
import re
import sys
import traceback
from typing import Any

from sphere_bench.errors import SphereBenchError
from sphere_bench.files import FULL, no_room

DEBUG = "SPHERE_BENCH_DEBUG"
INTERNAL_ERROR, USER_ERROR = 1, 2
# What OmegaConf says of a value, and the kind of value that the key takes.
_KINDS = {
    "could not be converted to Integer": "a whole number",
    "could not be converted to Float": "a number",
    "is not a valid bool": "true or false",
}


def complain(error: Exception, where: str = "") -> int:
    """Print one line about ``error`` and return the exit code that goes with it.

    Args:
        where: put before the line, such as a sweep's job.
    """
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(type(error), error, error.__traceback__)
    line, code = describe(error)
    print(f"sphere-bench: error: {where}{line}", file=sys.stderr)
    return code


def describe(error: Exception) -> tuple[str, int]:
    """One line about ``error``, and the exit code that goes with it."""
    line, code = explain(error), USER_ERROR
    if line is None:
        line = f"{type(error).__name__}: {error} (set {DEBUG}=1 for the traceback)"
        code = INTERNAL_ERROR
    return " ".join(line.split()), code


def explain(error: BaseException) -> str | None:
    """What the user can correct, or ``None`` if it is the program that failed."""
    if isinstance(error, SphereBenchError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        if error.errno in FULL:
            return no_room(error.filename, error.errno)
        return f"{error.filename}: {error.strerror}"
    if _is_out_of_memory(error):
        return _explain_memory(error)
    # Imported here: a wrong verb is reported without Hydra.
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OmegaConfBaseException):
        return _explain_value(error)
    if isinstance(error, HydraException):
        return _explain_composition(error)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, RuntimeError) and "torch" in sys.modules:  # else it is not torch's error
        from sphere_bench.models.batching import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)


def _explain_memory(error: BaseException) -> str:
    """Of what no smaller batches help against: weights, second moments, their decompositions."""
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    more = f": {wanted[1]} more did not fit" if wanted else ""
    return (
        f"out of memory{more}, and smaller batches do not help: use model.dtype=bfloat16, fewer "
        "model.layers, a smaller model or another device"
    )


def _explain_value(error: Any) -> str | None:
    """OmegaConf's: an unknown or missing key, a value of the wrong type, a broken reference."""
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationResolutionError,
        MissingMandatoryValue,
    )

    # A resolver's own error comes wrapped, once for every level of interpolation.
    if type(error) is InterpolationResolutionError and error.__context__ is not None:
        line = explain(error.__context__)
        if line is not None:
            return line
    key = error.full_key
    if not key:
        return str(error)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _no_key(key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing: set it"
    reason = re.sub(r"^While dereferencing interpolation '.*?': ", "", str(error).splitlines()[0])
    for problem, kind in _KINDS.items():
        if problem in reason and (value := re.match(r"Value '(.*?)' (?:of type|is)", reason)):
            return f"{key}={value[1]}: must be {kind}"
    return f"{key}: {reason}"


def _explain_composition(error: Any) -> str | None:
    """Hydra's: an unknown option, key or file, or an override that cannot be read."""
    from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException

    message = str(error)
    if isinstance(error, InstantiationException):
        if isinstance(error.__cause__, SphereBenchError):
            return str(error.__cause__)
        target = re.match(r"Error locating target '([^']*)'", message)
        if target:
            return f"_target_: {target[1]} {_why_not_found(error)}"
        # With a cause it is the target itself that failed.
        return None if error.__cause__ else message
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [each for each in error.options if not each.startswith("_")]
        close = difflib.get_close_matches(option, options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"no {group} '{option}': there are {', '.join(options)}{hint}"
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"^Error parsing override .*|See https?://.*", "", message).split("\n")
        return (
            f"cannot read '{error.override}' ({next(filter(None, reason), 'no value')}): write "
            "KEY=VALUE, with quotes within quotes around special characters: \"KEY='VALUE'\""
        )
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'", message):
        return f"{ambiguous[1]} has several values: add --multirun to run one after another"
    if override := re.match(r"Could not override '([^']*)'", message):
        return _no_key(override[1], error.__cause__)
    return message


def _why_not_found(error: BaseException) -> str:
    """What the import of a target says, without Hydra's words around it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, SyntaxError):
        return f"cannot be imported: {cause.filename}, line {cause.lineno}: {cause.msg}"
    if isinstance(cause, ImportError | AttributeError):
        return f"cannot be found: {cause}"
    return f"cannot be imported: {type(cause).__name__}: {cause}"


def _no_key(key: str, cause: BaseException | None = None) -> str:
    from sphere_bench.config.composition import groups, known_keys
    from sphere_bench.config.schema.calibration import CalibrateConfig

    known = [*known_keys(CalibrateConfig), *groups()]
    if key in known:
        reason = "a run's own configuration takes keys, not options: set its keys one by one"
        return f"{key}: {str(cause).splitlines()[0] if cause else reason}"
    node, _, name = key.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == node}
    close = [
        # A key misspelt at its end, one whose node is misspelt, one whose node was left out.
        *(siblings[match] for match in difflib.get_close_matches(name, siblings, n=1)),
        *([] if siblings else difflib.get_close_matches(key, known, n=1, cutoff=0.85)),
        *sorted((each for each in known if each.rpartition(".")[2] == name), key=len),
    ]
    if close:
        return f"no key '{key}': did you mean '{close[0]}'?"
    if node and siblings:
        return f"no key '{key}': there are {', '.join(siblings.values())}"
    return f"no key '{key}': see `sphere-bench run --help`"
