"""Watching a run elsewhere: its steps sent to TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphere_bench.errors import SphereBenchError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

PROJECT = "sphere-bench"
# Each is also the name of the package that it needs and of the extra that brings that.
TRACKERS = ("tensorboard", "wandb", "mlflow")
Track = Callable[[int, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], None]

_KEYS = ("step", "edits", "scope", "records", "layer")
# Columns of `steps` that are the step's own, whatever the scope.
_OF_STEP = ("he", "seconds_", "peak_", "perplexity", "nonfinite", "skipped", "collapsed")


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that the trackers' packages are there.

    Raises:
        SphereBenchError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise SphereBenchError(
                f"trackers={name}: its package is missing: pip install 'sphere-bench[{name}]'"
            )


@contextmanager
def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any]
) -> Iterator[Track | None]:
    """Give what sends a step's rows of `steps` and `layers` to the trackers; None without any.

    Args:
        names: of ``TRACKERS``.
        folder: the run's; its name is the run's name there, and local files go into it.
        config: shown beside the run, as dotted keys.

    Raises:
        SphereBenchError: a tracker cannot start. One that fails later is left out with a warning:
            the run's own tables do not depend on it.
    """
    with ExitStack() as stack:
        trackers: list[GeneralTracker] = []
        for name in names:
            try:
                tracker = _start(name, folder)
                stack.callback(tracker.finish)
                tracker.store_init_configuration(_dotted(config))
            except Exception as error:
                raise SphereBenchError(f"trackers={name} cannot start: {error}") from error
            trackers.append(tracker)

        def track(
            step: int, steps: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
        ) -> None:
            values = measurements(steps, layers)
            for tracker in list(trackers):
                try:
                    tracker.log(values, step=step)
                except Exception as error:
                    logger.warning("%s is left out from here on: %s", tracker.name, error)
                    trackers.remove(tracker)

        yield track if trackers else None


def measurements(
    steps: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """A step's numbers by name: ``seen/efficacy``, ``he_ratio``, ``layer_4/drift``, ``edits``.

    What does not exist is left out.
    """
    found: dict[str, Any] = {}
    for row in steps:
        found["edits"] = row["edits"]
        for key in row.keys() - set(_KEYS):
            found[key if key.startswith(_OF_STEP) else f"{row['scope']}/{key}"] = row[key]
    for row in layers:
        found.update({f"layer_{row['layer']}/{key}": row[key] for key in row.keys() - set(_KEYS)})
    return {
        key: value
        for key, value in sorted(found.items())
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _start(name: str, folder: Path) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    PartialState()  # the trackers' own logging asks it whose turn it is
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker(name, logging_dir=folder)
    elif name == "wandb":
        # A run that is resumed goes on under its name.
        resumed = {"id": folder.name, "resume": "allow"}
        tracker = WandBTracker(PROJECT, name=folder.name, dir=folder, **resumed)
    else:
        tracker = MLflowTracker(PROJECT, run_name=folder.name)
    tracker.start()
    return tracker


def _dotted(config: Mapping[str, Any]) -> dict[str, str | float]:
    """Scalars under dotted keys; what is none, such as a list, as text."""
    import pandas

    flat = pandas.json_normalize(dict(config)).to_dict("records")[0]
    return {
        str(key): value if isinstance(value, str | int | float) else str(value)
        for key, value in flat.items()
    }
