"""The stream: edit a batch, evaluate, record, and go on where an earlier process stopped."""

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from sphere_bench.checkpoints import Checkpoint, Checkpoints
from sphere_bench.collapse import Collapse
from sphere_bench.data.records import EditDataset, EditRequest
from sphere_bench.editing.editor import Editor
from sphere_bench.editing.pipeline import BatchReport, LayerReport
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.evaluation.protocol import Evaluation, Evaluator
from sphere_bench.geometry.energy import RowGeometry, row_geometry
from sphere_bench.geometry.portrait import portrait, principal_plane
from sphere_bench.recording import SCHEMAS, Progress, Recorder, State
from sphere_bench.signals import Stopped, StopRequest, handled_by
from sphere_bench.tracking import Track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Numbers of the stream itself.

    Attributes:
        batch_size: edits in a step.
        checkpoint_every: steps between checkpoints; the last step has one in any case.
        energy_exponent, energy_eps: of the hyperspherical energy.
        run_hash: a checkpoint of another run is refused, see ``ownership.run_hash``.
        collapse: thresholds at which the run ends early.
    """

    batch_size: int
    checkpoint_every: int
    energy_exponent: float
    energy_eps: float
    run_hash: str
    collapse: Collapse = field(default_factory=Collapse)


class SequentialRun:
    """Edits a model batch by batch; after every batch its rows are on disk.

    Args:
        dataset: the records, edited in their order.
        weights: the weights under edit.
        editor: writes a batch into the model.
        evaluator: scores the model after a step.
        perplexity: of the model as it is now, taken after evaluated steps; ``None`` leaves it out.
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
        evaluator: Evaluator,
        recorder: Recorder,
        checkpoints: Checkpoints,
        settings: RunSettings,
        perplexity: Callable[[], float] | None = None,
        track: Track | None = None,
    ) -> None:
        self.total = len(dataset.records)
        self.dataset = dataset
        self.weights = weights
        self.editor = editor
        self.evaluator = evaluator
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.settings = settings
        self.track = track
        self.last_step = math.ceil(self.total / settings.batch_size)
        self.perplexity = perplexity
        self._recorded = -1  # by earlier processes
        self._unedited = {layer: self._geometry(layer) for layer in weights.layers}
        self._unedited_perplexity = self._perplexity()
        self._planes = {
            layer: principal_plane(weights.pretrained[layer]) for layer in weights.layers
        }

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
        """Evaluate, record and, where it is time, save a checkpoint.

        Returns:
            Whether the model has collapsed.
        """
        edits = self._edits(step)
        started = perf_counter()
        due = self.evaluator.is_due(step, edits, self.settings.batch_size, self.total)
        evaluation = (
            self.evaluator.evaluate(step, edits, self.settings.batch_size, self.total)
            if due
            else Evaluation([_unevaluated_row(step, edits)], [])
        )
        perplexity = math.nan
        if due:
            perplexity = self._perplexity() if step else self._unedited_perplexity
        edited = report is not None and not report.skipped
        collapsed = (
            edited
            and due
            and self.settings.collapse.reached(
                evaluation.steps_rows[0]["efficacy"], perplexity, self._unedited_perplexity
            )
        )
        evaluated = perf_counter()
        layers = self._layer_rows(step, edits, report)
        checkpoint_due = collapsed or self._checkpoint_due(step)
        geometry = self._geometry_rows(step, edits) if due else []
        report = report or BatchReport()
        seconds = {
            **report.seconds,
            "evaluate": evaluated - started,
            "energy": perf_counter() - evaluated,
        }
        he = sum(row["he_normalized"] for row in layers) / len(layers)
        unedited = sum(geometry.energy_normalized for geometry in self._unedited.values())
        shared = {
            "he": he,
            "he_ratio": _ratio(he * len(layers), unedited),
            **{f"seconds_{stage}": value for stage, value in seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(self.weights),
            "perplexity": perplexity,
            "nonfinite": report.nonfinite,
            "skipped": report.skipped,
            "collapsed": collapsed,
        }
        steps = [{**row, **shared} for row in evaluation.steps_rows]
        self.recorder.commit_step(
            step,
            steps=steps,
            layers=layers,
            cases=evaluation.cases_rows,
            geometry=geometry,
            progress=self._progress(step, "running"),
        )
        if self.track:
            self.track(step, steps, layers)
        if checkpoint_due:
            self._save_checkpoint(step)
        if due:
            efficacy = evaluation.steps_rows[0]["efficacy"]
            progress.set_postfix(efficacy=f"{efficacy:.1f}", he_ratio=f"{shared['he_ratio']:.6f}")
        return collapsed

    def _checkpoint_due(self, step: int) -> bool:
        if not step:  # the unedited model
            return False
        regular = step % self.settings.checkpoint_every == 0
        return regular or step == self.last_step or step in self.checkpoints.milestones

    def _save_checkpoint(self, step: int) -> None:
        state = self.editor.state_dict()
        self.checkpoints.save(Checkpoint(step, self.weights.current, state, self.settings.run_hash))

    def _layer_rows(
        self, step: int, edits: int, report: BatchReport | None
    ) -> list[dict[str, Any]]:
        rows = []
        for layer in self.weights.layers:
            geometry = self._geometry(layer) if step else self._unedited[layer]
            done = report.layers[layer] if report else LayerReport()
            rows.append(
                {
                    "step": step,
                    "edits": edits,
                    "layer": layer,
                    "he": geometry.energy,
                    "he_normalized": geometry.energy_normalized,
                    "he_ratio": _ratio(geometry.energy, self._unedited[layer].energy),
                    "weight_norm": self.weights.current[layer].norm().item(),
                    "update_norm": done.update_norm,
                    "applied_norm": done.applied_norm,
                    "rank": done.rank,
                    "drift": self.weights.drift(layer),
                    "cos_mean": geometry.cos_mean,
                    "cos_std": geometry.cos_std,
                    "cos_p01": geometry.cos_p01,
                    "cos_p99": geometry.cos_p99,
                    "residual_norm": done.residual_norm,
                }
            )
        return rows

    def _geometry_rows(self, step: int, edits: int) -> list[dict[str, Any]]:
        return [
            {
                "step": step,
                "edits": edits,
                "layer": layer,
                **portrait(self.weights.current[layer], plane)._asdict(),
            }
            for layer, plane in self._planes.items()
        ]

    def _geometry(self, layer: int) -> RowGeometry:
        return row_geometry(
            self.weights.current[layer], self.settings.energy_exponent, self.settings.energy_eps
        )

    def _perplexity(self) -> float:
        return self.perplexity() if self.perplexity else math.nan

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


def _ratio(energy: float, unedited: float) -> float:
    """NaN where an exponent too large makes every energy 0."""
    return energy / unedited if unedited else math.nan


def _unevaluated_row(step: int, edits: int) -> dict[str, Any]:
    """The row of a step that nobody is evaluated after: it keeps the step's energy and times."""
    metrics: Mapping[str, None] = {
        name: None for name in SCHEMAS["steps"].names if name.startswith(METRICS)
    }
    return {"step": step, "edits": edits, "scope": "batch", "records": 0, **metrics}


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
