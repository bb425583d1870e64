"""A run's folder: where its files are, who uses it, how far the run is."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from filelock import FileLock, Timeout

from sphere_bench.errors import SphereBenchError
from sphere_bench.files import remove_folder, remove_partial, write_json
from sphere_bench.run_folder.provenance import other_machine

logger = logging.getLogger(__name__)

State = Literal["running", "done", "interrupted", "collapsed"]

# What provenance.json holds of the latest command; the rest is of the first.
_LATEST = ("config", "records", "dataset_fingerprint", "model_files", "statistics_files")

#: The layout of the folder. The version before had none: a part for each step, other keys.
FORMAT = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: the last step whose rows are on disk.
        edits: edits made by then.
        total: edits of the whole run.
        batch_size: edits in a step.
        state: ``running`` also stands for a process that was killed; ``collapsed`` for a run that
            ended before its last step.
        rows: table to the number of its rows, to notice a file that is gone.
        updated_at: when this was written, in UTC.
    """

    step: int
    edits: int
    total: int
    batch_size: int
    state: State
    rows: Mapping[str, int] = field(default_factory=dict)
    updated_at: str = ""


class FolderInUseError(SphereBenchError):
    """Another process has the folder."""


class EarlierVersionError(SphereBenchError):
    """Another version of sphere-bench recorded the run.

    Attributes:
        problem: what is different.
    """

    def __init__(self, folder: Path, version: object) -> None:
        self.problem = f"recorded by another version of sphere-bench, {version}"
        super().__init__(
            f"{folder} was {self.problem}, which this one can report but not go on with: choose "
            "another run.name, or discard that run with run.on_mismatch=restart"
        )


class RunFolder:
    """The folder of one run. Every name in it is spelled here, and nowhere else.

    Args:
        path: the folder; it need not exist yet.
    """

    _CONFIG = "config.yaml"
    _PROVENANCE = "provenance.json"
    _PROGRESS = "progress.json"
    _LOG = "run.log"
    _LOCK = "run.lock"
    _CHECKPOINTS = "checkpoints"
    _PART = "part-"
    _PARQUET = ".parquet"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The whole configuration; ``run --config-dir FOLDER`` makes the run from it."""
        return self.path / self._CONFIG

    @property
    def log_file(self) -> Path:
        return self.path / self._LOG

    @property
    def provenance_file(self) -> Path:
        return self.path / self._PROVENANCE

    @property
    def progress_file(self) -> Path:
        return self.path / self._PROGRESS

    @property
    def checkpoints(self) -> Path:
        return self.path / self._CHECKPOINTS

    def table(self, name: str) -> Path:
        """The folder of a table."""
        return self.path / name

    def part(self, table: str, first_step: int) -> Path:
        """The file with a table's rows from ``first_step`` on."""
        return self.table(table) / f"{self._PART}{first_step:05d}{self._PARQUET}"

    def parts(self, table: str) -> dict[int, Path]:
        """First step to file of a table's parts that are there, rising."""
        files = self.table(table).glob(f"{self._PART}*{self._PARQUET}")
        return dict(sorted((int(file.stem.removeprefix(self._PART)), file) for file in files))

    def table_names(self) -> list[str]:
        """The tables that are there."""
        return sorted(
            {file.parent.name for file in self.path.glob(f"*/{self._PART}*{self._PARQUET}")}
        )

    @property
    def is_run(self) -> bool:
        """Whether a run has begun in the folder."""
        return self.provenance_file.is_file()

    @property
    def has_results(self) -> bool:
        """Whether the folder holds rows or checkpoints."""
        return self.progress_file.exists() or any(self.checkpoints.glob("step-*"))

    def check_location(self, root: str) -> None:
        """Make sure that the folder is below the results, whatever links there are.

        Raises:
            SphereBenchError: it is a link that leads out of them.
        """
        results = Path(root).expanduser().resolve()
        if results not in self.path.resolve().parents:
            raise SphereBenchError(
                f"{self.path} is a link out of {results}, to {self.path.resolve()}: choose another "
                "run.name"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out.

        The operating system holds the lock for the process and releases it however that ends: the
        file that stays behind locks nobody out.

        Raises:
            FolderInUseError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # A report that looks whether the run is going on has the lock for a moment.
        lock = FileLock(self.path / self._LOCK, timeout=1)
        try:
            lock.acquire()
        except Timeout as error:
            raise FolderInUseError(
                f"{self.path} is in use by another process: wait until that is done, stop it, or "
                "choose another run.name"
            ) from error
        try:
            yield
        finally:
            # A run that never began leaves nothing. While the lock is held, its file is ours.
            if not self.is_run:
                (self.path / self._LOCK).unlink(missing_ok=True)
            lock.release()

    @property
    def is_in_use(self) -> bool:
        """Whether a process has the lock."""
        file = self.path / self._LOCK
        if not file.exists():
            return False
        lock = FileLock(file, timeout=0)
        try:
            with lock:
                return False
        except (Timeout, OSError):
            return True

    def progress(self) -> Progress | None:
        """What ``progress.json`` says; ``None`` for a run that has recorded nothing yet.

        Raises:
            SphereBenchError: the file is damaged.
        """
        try:
            return Progress(**json.loads(self.progress_file.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise SphereBenchError(
                f"{self.progress_file} is damaged: delete it, and the run goes on from its latest "
                "checkpoint"
            ) from error

    def state(self) -> State | None:
        """The run's state; a run that says ``running`` while no process has it is interrupted."""
        progress = self.progress()
        if progress is None:
            return None
        if progress.state == "running" and not self.is_in_use:
            return "interrupted"
        return progress.state

    def write_progress(self, progress: Progress) -> None:
        """Replace ``progress.json``."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(self.progress_file, asdict(replace(progress, updated_at=now)))

    def provenance(self) -> dict[str, Any]:
        """Where the run's numbers come from.

        Raises:
            SphereBenchError: the file is missing or damaged, or of another version.
        """
        file = self.provenance_file
        try:
            content: dict[str, Any] = json.loads(file.read_text("utf-8"))
            complete = content.keys() >= {"config", "packages", "resumed"}
        except (OSError, ValueError, AttributeError):
            complete = False
        if not complete:
            raise SphereBenchError(
                f"{file}, which says what the numbers are from, is missing or damaged: restore it "
                "or choose another run.name"
            )
        if content.get("format") != FORMAT:
            raise EarlierVersionError(self.path, content.get("sphere_bench"))
        return content

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write ``provenance.json`` of a run that begins."""
        write_json(self.provenance_file, {**facts, "format": FORMAT, "resumed": []})

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Note what is different now that the run goes on.

        The configuration, and how many records it has, are those of the latest command; all else
        stays as it was at the first start, and the differences stand under ``resumed``.
        """
        first = self.provenance()
        changed = {key: value for key, value in facts.items() if first.get(key) != value}
        if "git" in changed:
            logger.warning("going on with another git: %s -> %s", first.get("git"), facts["git"])
        if other := other_machine(first, facts):
            logger.warning(
                "going on with another %s: numbers may differ in their last digits", other
            )
        latest = {key: facts[key] for key in _LATEST}
        resumed = [*first["resumed"], changed]
        write_json(self.provenance_file, {**first, **latest, "resumed": resumed})

    def discard(self, others: Sequence[str] = ()) -> None:
        """Remove the run; what shows that the folder holds one goes last.

        Args:
            others: names of folders that belong to the run as well, such as the trackers'.
        """
        if self.checkpoints.exists():
            remove_folder(self.checkpoints)
        remove_partial(self.path)
        for name in self.table_names():
            remove_folder(self.table(name))
        for name in others:
            rmtree(self.path / name, ignore_errors=True)
        for file in (self.progress_file, self.provenance_file, self.config_file):
            file.unlink(missing_ok=True)
