"""The stream: edit a batch, measure, record, and go on where an earlier process stopped."""

import logging
import math
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from sphere_bench.data.records import EditDataset, EditRequest
from sphere_bench.editing.batch import BatchReport
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.untouched import UntouchedParameters
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.models.team import stop_request
from sphere_bench.run_folder.checkpoints import Checkpoint, Checkpoints
from sphere_bench.run_folder.folder import Progress, State
from sphere_bench.run_folder.table_files import first_gap
from sphere_bench.run_folder.tables import Recorder
from sphere_bench.signals import Stopped, StopRequest, handled_by
from sphere_bench.stream.early_stopping import EarlyStopping
from sphere_bench.stream.measuring import Measurer
from sphere_bench.stream.progress_bar import ProgressBar
from sphere_bench.stream.recorded_columns import STEPS
from sphere_bench.stream.trackers import Track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Numbers of the stream itself.

    Attributes:
        batch_size: edits in a step.
        checkpoint_every: steps between checkpoints; the last step has one in any case.
        run_hash: a checkpoint of another run is refused, see ``run_folder.identity``.
        collapse: thresholds at which the run ends early.
    """

    batch_size: int
    checkpoint_every: int
    run_hash: str
    collapse: Collapse = field(default_factory=Collapse)


class SequentialRun:
    """Edits a model batch by batch; after every batch its rows are on disk.

    Args:
        dataset: the records, edited in their order.
        weights: the weights under edit.
        editing: writes a batch into the model.
        untouched: what it must leave alone, checked before every checkpoint.
        measurer: makes the rows of a step.
        recorder: the run's tables.
        checkpoints: the run's checkpoints.
        settings: the stream's numbers.
        track: is given each step's rows once they are on disk.
    """

    def __init__(
        self,
        *,
        dataset: EditDataset,
        weights: EditedWeights,
        editing: EditingPipeline,
        untouched: UntouchedParameters,
        measurer: Measurer,
        recorder: Recorder,
        checkpoints: Checkpoints,
        settings: RunSettings,
        track: Track | None = None,
    ) -> None:
        self.total = len(dataset.records)
        self.dataset = dataset
        self.weights = weights
        self.editing = editing
        self.untouched = untouched
        self.measurer = measurer
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.settings = settings
        self.track = track
        self.last_step = math.ceil(self.total / settings.batch_size)
        self.early_stopping = EarlyStopping(settings.collapse)
        self._recorded = -1  # by earlier processes

    def run(self) -> int:
        """Make every step that is not on disk yet.

        SIGINT and SIGTERM let the step end, and save a checkpoint; a second one abandons the step.

        Returns:
            How many steps were made, the unedited model's among them.

        Raises:
            KeyboardInterrupt: the run was stopped; what is recorded stays, and the same run made
                again goes on from its latest checkpoint.
            SphereBenchError: a batch could not be edited; the same holds.
        """
        stop, made = stop_request(), 0
        with handled_by(stop):
            try:
                made = self._run(stop)
            except SphereBenchError as error:
                if stop.number is None:
                    raise
                logger.error("%s", error)
        if stop.number is not None:
            raise Stopped(stop.number)
        return made

    def _run(self, stop: StopRequest) -> int:
        if (device := self.weights.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first = step = self._resume()
        collapsed = self.early_stopping.resume(self.recorder.folder, step)
        with ProgressBar(self.measurer.scopes, self.measurer.tables, step) as progress:
            try:
                if step < 0:
                    step = 0
                    self._finish_step(0, None, progress)
                while step < self.last_step and not collapsed and stop.number is None:
                    step += 1
                    report = self.editing.edit(self._requests(step), partial(progress.move, step))
                    collapsed = self._finish_step(step, report, progress)
                if step == self.last_step or collapsed:
                    state: State = "done" if step == self.last_step else "collapsed"
                    # Under other thresholds an earlier process went further.
                    self._recorded = step
                    self.recorder.rewind(step)
                    self.recorder.write_progress(self._progress(step, state))
                    return step - first
                if step and not self._checkpoint_due(step):
                    self._save_checkpoint(step)
                self.recorder.write_progress(self._progress(step, "interrupted"))
                return step - first
            except (KeyboardInterrupt, SphereBenchError):
                self._note_interruption()
                raise

    def _note_interruption(self) -> None:
        """Note that the run was stopped, with the rows that the last whole step had."""
        recorded = self.recorder.folder.progress()
        if recorded is not None:
            self.recorder.folder.write_progress(replace(recorded, state="interrupted"))

    def _resume(self) -> int:
        """Take up the latest checkpoint: its step, or -1 where the run has to start anew.

        Steps recorded since are made again; their rows stay until those of the same step replace
        them, so that nothing is ever taken back.
        """
        folder = self.recorder.folder
        gap, recorded = first_gap(folder), folder.progress()
        checkpoint = self.checkpoints.latest(until=None if gap is None else gap - 1)
        step = checkpoint.step if checkpoint else -1
        self._recorded = max(step, recorded.step if recorded else -1)
        if gap is not None:
            logger.warning("%s lacks rows from step %d on: they are made again", folder, gap)
            self._recorded = step
        if checkpoint is not None:
            if checkpoint.run_hash != self.settings.run_hash:
                raise SphereBenchError(
                    f"{self.checkpoints.folder} is of another run than the folder around it: "
                    "choose another run.name or remove that folder"
                )
            for layer, weight in checkpoint.weights.items():
                self.weights.write(layer, weight)
            self.editing.load_state_dict(checkpoint.editor)
            self.measurer.load_state_dict(checkpoint.probes)
        self.checkpoints.rewind(step)
        self.recorder.rewind(self._recorded)
        if self._recorded >= 0:
            self.recorder.write_progress(self._progress(step, "running"))
            logger.info("going on after step %d of %d", step, self.last_step)
        return step

    def _finish_step(self, step: int, report: BatchReport | None, progress: ProgressBar) -> bool:
        """Measure, record and, where it is time, save a checkpoint.

        Returns:
            Whether the model has collapsed.
        """
        found = self.measurer.measure(step, report)
        steps = found.tables[STEPS]
        collapsed = self.early_stopping.reached(steps)
        own = {"peak_memory_bytes": peak_memory_bytes(self.weights), "collapsed": collapsed}
        rows = {**found.tables, STEPS: [{**row, **own} for row in steps]}
        self.recorder.commit_step(step, rows, self._progress(step, "running"))
        if self.track:
            self.track(step, rows)
        if collapsed or self._checkpoint_due(step):
            self._save_checkpoint(step)
        progress.finish(step, steps[0] if found.evaluated else None)
        return collapsed

    def _checkpoint_due(self, step: int) -> bool:
        if not step:  # the unedited model
            return False
        # A longer run makes a provisional last step again, from the one before.
        again = step == self.last_step - 1 and self.measurer.is_provisional(self.total)
        regular = step % self.settings.checkpoint_every == 0
        return regular or again or step == self.last_step or step in self.checkpoints.milestones

    def take_back_provisional(self, records: int) -> None:
        """Make the last step of a shorter run again, where this longer one makes it otherwise.

        The batch may have been partial, and probes measured after it that have no turn there now.

        Args:
            records: of the shorter run; 0 where there was none.
        """
        last = math.ceil(records / self.settings.batch_size)
        recorded = self.recorder.folder.progress()
        reached = max(self.checkpoints.steps(), default=-1) if recorded is None else recorded.step
        if 0 < records < self.total and reached >= last and self.measurer.is_provisional(records):
            self._recorded = last - 1
            progress = self._progress(self._recorded, "interrupted")
            self.checkpoints.rewind(self._recorded)
            # Without counts first: a kill while rows go must not look like rows that are lost.
            self.recorder.folder.write_progress(progress)
            self.recorder.rewind(self._recorded)
            self.recorder.write_progress(progress)

    def _save_checkpoint(self, step: int) -> None:
        self.untouched.check()
        self.checkpoints.save(
            Checkpoint(
                step,
                self.weights.current,
                self.editing.state_dict(),
                self.measurer.state_dict(),
                self.settings.run_hash,
            )
        )

    def _requests(self, step: int) -> list[EditRequest]:
        batch = self.dataset.records[self._edits(step - 1) : self._edits(step)]
        return [record.request for record in batch]

    def _edits(self, step: int) -> int:
        return self.measurer.scopes.edits(step)

    def _progress(self, step: int, state: State) -> Progress:
        """The progress once ``step`` is recorded; it does not fall while steps are made again."""
        recorded = max(step, self._recorded)
        edits = self._edits(recorded)
        return Progress(recorded, edits, self.total, self.settings.batch_size, state)


def peak_memory_bytes(weights: EditedWeights) -> int | None:
    """The largest memory so far: of the CUDA device that holds the weights, else of the process."""
    if weights.device.type == "cuda":
        return torch.cuda.max_memory_allocated(weights.device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
