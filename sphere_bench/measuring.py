"""What is measured once a step is made, as the rows of the run's tables."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sphere_bench.editing.pipeline import BatchReport, LayerReport
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.evaluation.protocol import Evaluation, Evaluator
from sphere_bench.geometry.energy import RowGeometry, row_geometry
from sphere_bench.geometry.portrait import portrait, principal_plane
from sphere_bench.recording import SCHEMAS


@dataclass(frozen=True)
class MeasuredStep:
    """A step's rows.

    Attributes:
        steps: one a scope, without ``peak_memory_bytes`` and ``collapsed``; a single one without
            metrics where nobody is evaluated.
        layers: one an edited layer.
        cases: one a scope, record and prompt; none where nobody is evaluated.
        geometry: one an edited layer; none where nobody is evaluated.
    """

    steps: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    geometry: list[dict[str, Any]]

    @property
    def evaluated(self) -> bool:
        return self.steps[0]["records"] > 0


class StepMeasurer:
    """Scores the model and looks at its weights, beside those of the unedited model.

    Args:
        weights: the weights under edit, none of which is edited yet.
        evaluator: scores the model after a step.
        energy_exponent, energy_eps: of the hyperspherical energy.
        perplexity: of the model as it is now, taken after evaluated steps; ``None`` leaves it out.
    """

    def __init__(
        self,
        weights: EditedWeights,
        evaluator: Evaluator,
        *,
        energy_exponent: float,
        energy_eps: float,
        perplexity: Callable[[], float] | None = None,
    ) -> None:
        self.weights = weights
        self.evaluator = evaluator
        self.energy_exponent = energy_exponent
        self.energy_eps = energy_eps
        self.perplexity = perplexity
        self._unedited = {layer: self._geometry(layer) for layer in weights.layers}
        self.unedited_perplexity = self._perplexity()
        self._planes = {
            layer: principal_plane(weights.pretrained[layer]) for layer in weights.layers
        }

    def measure(
        self, step: int, edits: int, batch_size: int, report: BatchReport | None
    ) -> MeasuredStep:
        """The rows of ``step``, on the model as it is now.

        Args:
            step: batches edited so far; 0 is the unedited model.
            edits: made by then.
            batch_size: edits in a step.
            report: of the step's batch; ``None`` for the unedited model.
        """
        started = perf_counter()
        stream = step, edits, batch_size, len(self.evaluator.dataset.records)
        due = self.evaluator.is_due(*stream)
        evaluation = (
            self.evaluator.evaluate(*stream)
            if due
            else Evaluation([_unevaluated_row(step, edits)], [])
        )
        perplexity = math.nan
        if due:
            perplexity = self._perplexity() if step else self.unedited_perplexity
        evaluated = perf_counter()
        layers = self._layer_rows(step, edits, report)
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
            "perplexity": perplexity,
            "nonfinite": report.nonfinite,
            "skipped": report.skipped,
        }
        return MeasuredStep(
            steps=[{**row, **shared} for row in evaluation.steps_rows],
            layers=layers,
            cases=evaluation.cases_rows,
            geometry=geometry,
        )

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
        return row_geometry(self.weights.current[layer], self.energy_exponent, self.energy_eps)

    def _perplexity(self) -> float:
        return self.perplexity() if self.perplexity else math.nan


def _ratio(energy: float, unedited: float) -> float:
    """NaN where an exponent too large makes every energy 0."""
    return energy / unedited if unedited else math.nan


def _unevaluated_row(step: int, edits: int) -> dict[str, Any]:
    """The row of a step that nobody is evaluated after: it keeps the step's energy and times."""
    metrics = dict.fromkeys(name for name in SCHEMAS["steps"].names if name.startswith(METRICS))
    return {"step": step, "edits": edits, "scope": "batch", "records": 0, **metrics}
