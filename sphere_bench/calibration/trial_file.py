"""The finished trials of a calibration, one a line, for when it is stopped and started again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sphere_bench.calibration.settings import Scores, Setting, Trial
from sphere_bench.config.identity import config_hash
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file


class TrialFile:
    """Remembers trials in a file; those of other records or another model may be in it, too.

    Args:
        path: of the file; made with the first trial.
        facts: what decides the outcome of a trial besides its setting, as plain containers.

    Raises:
        SphereBenchError: the file holds something else.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self._facts = facts
        self._lines: dict[str, dict[str, Any]] = {}
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            self._lines = {found["key"]: found for found in map(json.loads, lines)}
        except (ValueError, TypeError, KeyError) as error:
            raise SphereBenchError(
                f"{path} is damaged: delete it, and all trials are made again"
            ) from error

    def find(self, setting: Setting, records: int) -> Trial | None:
        """The trial of this setting, if it is finished."""
        found = self._lines.get(self._key(setting, records))
        if found is None:
            return None
        scores = None if found["scores"] is None else Scores(**found["scores"])
        return Trial(setting, records, scores, found["problem"])

    def add(self, trial: Trial) -> None:
        """Remember a finished trial."""
        key = self._key(trial.setting, trial.records)
        self._lines[key] = {"key": key, **asdict(trial)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as temporary:
            lines = "".join(f"{json.dumps(each)}\n" for each in self._lines.values())
            temporary.write_text(lines, "utf-8")

    def _key(self, setting: Setting, records: int) -> str:
        return config_hash({**self._facts, "setting": asdict(setting), "records": records})
