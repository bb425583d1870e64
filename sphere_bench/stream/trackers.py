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
from sphere_bench.stream.recorded_columns import LAYERS, RunTables

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

PROJECT = "sphere-bench"
#: Is given a step and its tables' rows once they are on disk.
Track = Callable[[int, Mapping[str, Sequence[Mapping[str, Any]]]], None]

# These name a row; they are no measurements.
_NAMES = ("step", "scope", "records", "layer")


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
    names: Sequence[str], folder: Path, config: Mapping[str, Any], tables: RunTables
) -> Iterator[Track | None]:
    """Give what sends a step's rows of `steps` and `layers` to the trackers; None without any.

    Args:
        names: of ``config.schema.TRACKERS``.
        folder: the run's; its name is the run's name there, and local files go into it.
        config: shown beside the run, as dotted keys.
        tables: of the run.

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

        def track(step: int, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
            values = measurements(tables, rows)
            for tracker in list(trackers):
                try:
                    tracker.log(values, step=step)
                except Exception as error:
                    logger.warning("%s is left out from here on: %s", tracker.name, error)
                    trackers.remove(tracker)

        yield track if trackers else None


def measurements(
    tables: RunTables, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, float]:
    """A step's numbers by name: ``seen/efficacy``, ``he_ratio``, ``layer_4/drift``, ``edits``.

    What does not exist is left out.
    """
    found: dict[str, Any] = {}
    for placed in tables.columns:
        key = placed.column.name
        if placed.per == "row" or key in _NAMES:
            continue
        for row in rows[placed.table]:
            prefix = {"scope": f"{row.get('scope')}/", "layer": f"layer_{row.get('layer')}/"}
            if placed.table != LAYERS or key != "edits":
                found[prefix.get(placed.per, "") + key] = row[key]
    return {
        key: value
        for key, value in sorted(found.items())
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _start(name: str, folder: Path) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    PartialState()  # the trackers' own logging needs it
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
