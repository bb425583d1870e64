"""The stream: edit a batch, evaluate, record, and go on where an earlier process stopped."""

import logging
import math
import sys
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from tqdm import tqdm

from sphere_bench.checkpoints import Checkpoint, Checkpoints
from sphere_bench.collapse import Collapse
from sphere_bench.data.records import EditDataset, EditRequest
from sphere_bench.editing.editor import Editor
from sphere_bench.editing.pipeline import BatchReport
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.measuring import StepMeasurer
from sphere_bench.recording import Progress, Recorder, State
from sphere_bench.signals import Stopped, StopRequest, handled_by
from sphere_bench.tracking import Track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Numbers of the stream itself.

    Attributes:
        batch_size: edits in a step.
        checkpoint_every: steps between checkpoints; the last step has one in any case.
        run_hash: a checkpoint of another run is refused, see ``ownership.run_hash``.
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
        editor: writes a batch into the model.
        measurer: makes the rows of a step.
        recorder: the run's tables.
        checkpoints: the run's checkpoints.
        settings: the stream's numbers.
        track: told of each step's rows of `steps` and `layers` once they are on disk.
    """

    def __init__(
        self,
        *,
        dataset: EditDataset,
        weights: EditedWeights,
        editor: Editor,
        measurer: StepMeasurer,
        recorder: Recorder,
        checkpoints: Checkpoints,
        settings: RunSettings,
        track: Track | None = None,
    ) -> None:
        self.total = len(dataset.records)
        self.dataset = dataset
        self.weights = weights
        self.editor = editor
        self.measurer = measurer
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.settings = settings
        self.track = track
        self.last_step = math.ceil(self.total / settings.batch_size)
        self._recorded = -1  # by earlier processes

    def run(self) -> None:
        """Make every step that is not on disk yet.

        SIGINT and SIGTERM let the step end, and save a checkpoint; a second one abandons the step.

        Raises:
            KeyboardInterrupt: the run was stopped; what is recorded stays, and the same run made
                again goes on from its latest checkpoint.
            SphereBenchError: a batch could not be edited; the same holds.
        """
        stop = StopRequest()
        with handled_by(stop):
            try:
                self._run(stop)
            except SphereBenchError as error:
                if stop.number is None:
                    raise
                logger.error("%s", error)
        if stop.number is not None:
            raise Stopped(stop.number)

    def _run(self, stop: StopRequest) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        step = self._resume()
        done = self._edits(step)
        with tqdm(
            total=self.total, initial=done, desc="editing", unit="edit", disable=None
        ) as progress:
            try:
                if step < 0:
                    step = 0
                    self._finish_step(0, None, progress)
                collapsed = self.settings.collapse.reached_in(self.recorder.folder, step)
                while step < self.last_step and not collapsed and stop.number is None:
                    step += 1
                    report = self.editor.edit(self._requests(step))
                    collapsed = self._finish_step(step, report, progress)
                    progress.update(self._edits(step) - progress.n)
                if step == self.last_step or collapsed:
                    state: State = "done" if step == self.last_step else "collapsed"
                    # Under other thresholds an earlier process went further.
                    self._recorded = step
                    self.recorder.rewind(step)
                    self.recorder.write_progress(self._progress(step, state))
                    return
                if step and not self._checkpoint_due(step):
                    self._save_checkpoint(step)
                self.recorder.write_progress(self._progress(step, "interrupted"))
            except (KeyboardInterrupt, SphereBenchError):
                recorded = self.recorder.progress()
                if recorded is not None:
                    self.recorder.write_progress(replace(recorded, state="interrupted"))
                raise

    def _resume(self) -> int:
        """Take up the latest checkpoint: its step, or -1 where the run has to start anew.

        Steps recorded since are made again; their rows stay until those of the same step replace
        them, so that nothing is ever taken back.
        """
        checkpoint = self.checkpoints.latest()
        recorded = self.recorder.progress()
        step = checkpoint.step if checkpoint else -1
        self._recorded = max(step, recorded.step if recorded else -1)
        if checkpoint is not None:
            if checkpoint.run_hash != self.settings.run_hash:
                raise SphereBenchError(
                    f"{self.checkpoints.folder} is of another run than the folder around it: "
                    "choose another run.name or remove that folder"
                )
            for layer, weight in checkpoint.weights.items():
                self.weights.write(layer, weight)
            self.editor.load_state_dict(checkpoint.editor)
        self.checkpoints.rewind(step)
        self.recorder.rewind(self._recorded)
        if self._recorded >= 0:
            self.recorder.write_progress(self._progress(step, "running"))
            logger.info("going on after step %d of %d", step, self.last_step)
        return step

    def _finish_step(
        self, step: int, report: BatchReport | None, progress: "tqdm[NoReturn]"
    ) -> bool:
        """Measure, record and, where it is time, save a checkpoint.

        Returns:
            Whether the model has collapsed.
        """
        found = self.measurer.measure(step, self._edits(step), self.settings.batch_size, report)
        main = found.steps[0]
        edited = report is not None and not report.skipped
        collapsed = (
            edited
            and found.evaluated
            and self.settings.collapse.reached(
                main["efficacy"], main["perplexity"], self.measurer.unedited_perplexity
            )
        )
        own = {"peak_memory_bytes": peak_memory_bytes(self.weights), "collapsed": collapsed}
        steps = [{**row, **own} for row in found.steps]
        self.recorder.commit_step(
            step,
            steps=steps,
            layers=found.layers,
            cases=found.cases,
            geometry=found.geometry,
            progress=self._progress(step, "running"),
        )
        if self.track:
            self.track(step, steps, found.layers)
        if collapsed or self._checkpoint_due(step):
            self._save_checkpoint(step)
        if found.evaluated:
            progress.set_postfix(
                efficacy=f"{main['efficacy']:.1f}", he_ratio=f"{main['he_ratio']:.6f}"
            )
        return collapsed

    def _checkpoint_due(self, step: int) -> bool:
        if not step:  # the unedited model
            return False
        regular = step % self.settings.checkpoint_every == 0
        return regular or step == self.last_step or step in self.checkpoints.milestones

    def _save_checkpoint(self, step: int) -> None:
        state = self.editor.state_dict()
        self.checkpoints.save(Checkpoint(step, self.weights.current, state, self.settings.run_hash))

    def _requests(self, step: int) -> list[EditRequest]:
        batch = self.dataset.records[self._edits(step - 1) : self._edits(step)]
        return [record.request for record in batch]

    def _edits(self, step: int) -> int:
        """Edits made by the end of ``step``."""
        return min(max(step, 0) * self.settings.batch_size, self.total)

    def _progress(self, step: int, state: State) -> Progress:
        """The progress once ``step`` is recorded; it does not fall while steps are made again."""
        recorded = max(step, self._recorded)
        edits = self._edits(recorded)
        return Progress(recorded, edits, self.total, self.settings.batch_size, state)


def peak_memory_bytes(weights: EditedWeights) -> int | None:
    """The largest memory so far: of the CUDA device that holds the weights, else of the process."""
    device = next(iter(weights.current.values())).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
