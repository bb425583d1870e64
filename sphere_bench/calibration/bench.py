"""The bench: edits the records that are kept out, scores the model, and takes the edits back."""

import math
from dataclasses import asdict, replace
from typing import Any

import torch

from sphere_bench import __version__
from sphere_bench.build import build_pipeline, build_probe_setup, build_setup, dtype_named
from sphere_bench.calibration.settings import Scores, Setting, Trial, Values
from sphere_bench.config.identity import corpora, identity
from sphere_bench.config.schema.calibration import CalibrateConfig
from sphere_bench.config.schema.editing import EditorConfig
from sphere_bench.config.target_arguments import make_object
from sphere_bench.data.records import KINDS, EditDataset
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.numerics import NonfiniteError
from sphere_bench.editing.prompts import check_prompts_fit
from sphere_bench.editing.solvers import UpdateSolver
from sphere_bench.editing.values.solver import TargetValues, ValueSettings, solve_target_values
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.perplexity import Perplexity
from sphere_bench.evaluation.teacher_forced import score_records, summarize
from sphere_bench.files import file_stamps
from sphere_bench.models.batching import Budget
from sphere_bench.models.fingerprint import model_fingerprint
from sphere_bench.models.loading import LoadedModel


class GivenValues(LocateThenEdit):
    """Edits with target values that were solved before: they do not depend on the update."""

    def __init__(self, setup: EditingSetup, solver: UpdateSolver, given: TargetValues) -> None:
        super().__init__(setup, solver)
        self._given = given

    def _solve(self, batch: Batch) -> TargetValues:
        return self._given


class Bench:
    """Tries settings on the unedited model, one after another, each on the first records.

    Target values are solved once for the same layer and numbers of the value solver.

    Args:
        config: of the calibration.
        loaded: the unedited model; it is unedited again after every trial.
        dataset: the records that are kept out.

    Raises:
        SphereBenchError: a prompt is longer than the model can read.
    """

    def __init__(self, config: CalibrateConfig, loaded: LoadedModel, dataset: EditDataset) -> None:
        self.config, self.loaded, self.dataset = config, loaded, dataset
        setup = build_setup(config, loaded, dataset)
        self._contexts = setup.contexts
        check_prompts_fit(loaded, dataset.records, self._contexts)
        self._perplexity = Perplexity(
            build_probe_setup(config, loaded, dataset, setup.weights),
            config.perplexity.tokens,
            config.perplexity.corpus,
        )
        self._solved: dict[tuple[int, Values], TargetValues] = {}
        # One alone: of a large model it holds gigabytes.
        self._setup: tuple[tuple[str, list[int]], EditingSetup] | None = None

    def facts(self) -> dict[str, Any]:
        """What decides the outcome of a trial besides its setting, as plain containers."""
        content = asdict(self.config)
        content.pop("out")
        editor = content.pop("calibration")["null_space_editor"]
        given = self.config.statistics.path
        return {
            "version": __version__,
            "config": identity(content),
            "null_space_editor": editor,
            "corpora": corpora(content),
            "statistics": None if given is None else file_stamps(given, recursive=False),
            "model": model_fingerprint(self.loaded),
            "records": self.dataset.fingerprint(),
        }

    def unedited(self) -> Scores:
        """The scores of the model on all records."""
        return self._scores(len(self.dataset.records), drift=0.0)

    def try_out(self, setting: Setting, records: int) -> Trial:
        """Edit the first ``records`` in one batch, score them, and restore the weights."""
        editor = self._editor(setting)
        setup = self._setup_of(editor)
        given = self._target_values(setting, records)
        weights = setup.weights
        try:
            editing = GivenValues(setup, make_object(editor.method["solver"]), given)
            pipeline = build_pipeline(self._config_of(editor), editing, setup)
            pipeline.edit([record.request for record in self.dataset.records[:records]])
            drifts = [weights.drift(layer) for layer in weights.layers]
            return Trial(setting, records, self._scores(records, sum(drifts) / len(drifts)))
        except SphereBenchError as error:
            problem = error.problem if isinstance(error, NonfiniteError) else str(error)
            return Trial(setting, records, None, problem)
        finally:
            for layer, weight in weights.pretrained.items():
                weights.write(layer, weight)

    def _editor(self, setting: Setting) -> EditorConfig:
        """The configuration of the editor that a setting is tried with."""
        numbers: dict[str, Any]
        if setting.null_space is None:
            editor = self.config.editor
            numbers = {"second_moment_weight": setting.second_moment_weight}
        else:
            editor = self.config.calibration.null_space_editor
            chosen = asdict(setting.null_space)
            ridge = chosen.pop("ridge")
            node = {**editor.method["solver"]["null_space"], **chosen}
            numbers = {"ridge": ridge, "null_space": node}
        method = {**editor.method, "solver": {**editor.method["solver"], **numbers}}
        return replace(editor, layers=list(setting.layers), method=method)

    def _config_of(self, editor: EditorConfig) -> CalibrateConfig:
        """The configuration with another editor."""
        return replace(self.config, editor=editor, sphere=self.config.sphere_of(editor))

    def _setup_of(self, editor: EditorConfig) -> EditingSetup:
        """The setup of an editor's layers, its second moments read."""
        asked = (editor.name, editor.layers)
        if self._setup is None or self._setup[0] != asked:
            self._setup = None
            setup = build_setup(self._config_of(editor), self.loaded, self.dataset, self._contexts)
            moments, held_out = setup.second_moments(), setup.held_out_moments()
            setup = replace(
                setup, second_moments=lambda: moments, held_out_moments=lambda: held_out
            )
            self._setup = asked, setup
        return self._setup[1]

    def _target_values(self, setting: Setting, records: int) -> TargetValues:
        """The target values of the first ``records``."""
        layer, values = setting.layers[-1], setting.values
        known = self._solved.get((layer, values))
        count = 0 if known is None else len(known.losses)
        if count < records:
            numbers = {**asdict(self.config.model.values), **asdict(values)}
            solved = solve_target_values(
                self.loaded,
                [record.request for record in self.dataset.records[count:records]],
                layer,
                self._contexts,
                ValueSettings(**numbers, precision=dtype_named(self.config.values.precision)),
                Budget(self.config.values.tokens_per_batch),
            )
            known = solved if known is None else _joined(known, solved)
            self._solved[layer, values] = known
        assert known is not None
        return TargetValues(known.values[:records], known.deltas[:records], known.losses[:records])

    def _scores(self, records: int, drift: float) -> Scores:
        """The scores of the model as it is now, on the first ``records``."""
        dataset = self.dataset
        results = score_records(
            self.loaded,
            dataset.records[:records],
            dataset.accuracy,
            dataset.kinds,
            tokens_per_batch=Budget(self.config.evaluation.tokens_per_batch),
        )
        means = summarize(results, dataset.headline, dataset.kinds)
        named = {kind.metric: means.get(kind.metric, math.nan) for kind in KINDS}
        return Scores(**named, perplexity=self._perplexity.perplexity(), drift=drift)


def _joined(first: TargetValues, second: TargetValues) -> TargetValues:
    return TargetValues(
        torch.cat([first.values, second.values]),
        torch.cat([first.deltas, second.deltas]),
        [*first.losses, *second.losses],
    )
