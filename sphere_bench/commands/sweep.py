"""How the jobs of a sweep ended, whichever launcher ran them and however their processes died."""

import json
import os
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from filelock import FileLock
from hydra.experimental.callback import Callback

from sphere_bench.commands.error_messages import INTERNAL_ERROR, complain, explain
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import write_json

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

_CARDS = "CUDA_VISIBLE_DEVICES"
# Of these, a job takes one card; any other names its own.
_ONE_CARD = ("auto", "cuda")
_MOST_REASONS = 8
_DIED = "its process ended without a report (killed, or out of memory)"


class JobError(SphereBenchError):
    """A job failed; it travels from the job's process to the sweep's.

    Attributes:
        code: the exit code that a run of its own would have had.
    """

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class JobRecords(Callback):
    """Hydra calls it in every job's process. It leaves one file a job in a folder of the sweep.

    A job holds a lock while it runs, which the operating system releases if the process dies.
    """

    def __init__(self, note: str) -> None:
        """
        Args:
            note: a file in which the sweep's process finds the name of the folder.
        """
        self._note = Path(note)
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._sweep = os.getpid()
        self._cards = os.environ.get(_CARDS)

    def on_multirun_start(self, config: "DictConfig", **kwargs: Any) -> None:
        """Choose the folder. It is made by the first job: a wrong path is that job's error."""
        self._folder = Path(config.hydra.sweep.dir).absolute() / f".jobs-{uuid4().hex[:8]}"
        self._sweep = os.getpid()
        self._note.write_text(str(self._folder), "utf-8")

    def on_job_start(self, config: "DictConfig", **kwargs: Any) -> None:
        """Note that the job runs, on a card of its own where the machine has several."""
        if self._folder is None:
            return
        number = config.hydra.job.num
        if os.getpid() != self._sweep:
            _choose_card(number, config.get("device", "auto"), self._cards)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / f"{number}.lock")
        self._lock.acquire()

    def on_job_end(self, config: "DictConfig", job_return: "JobReturn", **kwargs: Any) -> None:
        """Note how the job ended."""
        if self._folder is None or self._lock is None:
            return
        value = job_return._return_value
        failure = [str(value), value.code] if isinstance(value, JobError) else None
        try:
            write_json(self._folder / f"{config.hydra.job.num}.json", failure)
        finally:
            self._lock.release()


def _choose_card(number: int, device: str, of_sweep: str | None) -> None:
    """Show this process one of the GPUs that it sees, by the number of its first job.

    A scheduler that gave it one card, such as SLURM or Ray, has chosen already.

    Args:
        number: of the job.
        device: of its configuration.
        of_sweep: the cards that the sweep was given, ``None`` if it sees all.
    """
    given = os.environ.get(_CARDS)
    if given is None:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
        cards = [str(card) for card in range(count)]
    else:
        cards = _named(given)
    if of_sweep is not None and os.environ.get("SUBMITIT_EXECUTOR") == "local":
        # It counts from 0, whichever cards the sweep was given.
        cards = _named(of_sweep)[: len(cards)]
        os.environ[_CARDS] = ",".join(cards)
    if device in _ONE_CARD and len(cards) > 1:
        os.environ[_CARDS] = cards[number % len(cards)]


def _named(cards: str) -> list[str]:
    return [card for card in cards.split(",") if card.strip()]


def finish_sweep(note: Path, error: Exception | None) -> int | None:
    """Report the jobs that failed on one line, and remove the records.

    If the launcher gave up while jobs were running, they are waited for.

    Args:
        note: see :class:`JobRecords`.
        error: what Hydra ended with.

    Returns:
        the exit code, or ``None`` if no job failed and ``error`` is all there is to report.
    """
    folder = _folder_of(note)
    if folder is None:
        return None
    try:
        ends = _wait_for_ends(folder)
    finally:
        rmtree(folder, ignore_errors=True)
    failures = {number: end for number, end in ends.items() if end is not None}
    if not failures:
        return None
    reasons = [f"job {number}: {reason}" for number, (reason, _) in failures.items()]
    if len(reasons) > _MOST_REASONS:
        reasons[_MOST_REASONS:] = [f"and {len(reasons) - _MOST_REASONS} more"]
    if error is not None and not isinstance(error, JobError):
        cause = explain(error) or type(error).__name__
        reasons.append(f"the launcher then ended the sweep ({cause})")
    complain(SphereBenchError(f"{len(failures)} of {len(ends)} jobs failed: {'; '.join(reasons)}"))
    return next(iter(failures.values()))[1]


def _wait_for_ends(folder: Path) -> dict[int, tuple[str, int] | None]:
    """Jobs to the reason and the exit code of their failure, ``None`` for one that is done."""
    ends: dict[int, tuple[str, int] | None] = {}
    for number in sorted({int(file.stem) for file in folder.glob("[0-9]*")}):
        with FileLock(folder / f"{number}.lock"):
            pass
        file = folder / f"{number}.json"
        ends[number] = (_DIED, INTERNAL_ERROR)
        if file.is_file():
            failure = json.loads(file.read_text("utf-8"))
            ends[number] = None if failure is None else (failure[0], failure[1])
    return ends


def discard_records(note: Path) -> None:
    """Remove the records of a sweep that was stopped."""
    folder = _folder_of(note)
    if folder is not None:
        rmtree(folder, ignore_errors=True)


def _folder_of(note: Path) -> Path | None:
    folder = Path(note.read_text("utf-8")) if note.is_file() else None
    return folder if folder is not None and folder.is_dir() else None
