"""ENCORE, NAS and UltraEdit equal their published code, on Linear and Conv1D weights.

Tolerances are ten times what is reached. Batch 1 is records 0 to 9, batch 2 records 10 to 19; the
published weights are written in after each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import BatchReport
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.keys import BatchReader, projection_outputs
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.encore import Encore
from sphere_bench.editing.methods.ultraedit import UltraEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.editing.values.loss import Loss
from sphere_bench.editing.values.norm_anchor import (
    NormAnchor,
    anchored_outputs,
    mean_without_largest,
)
from sphere_bench.editing.values.solver import TargetValues, solve_target_values
from sphere_bench.editing.values.stopping import ArgmaxHits, LossThreshold, Stopping
from tests.golden_numbers import LAYERS, NAMES, Golden, load_golden, relative_error

BATCH = 10
TOKENS = 2048
# Losses are printed to three digits.
PRINTED = 6e-4
# The published null space comes from a decomposition in single precision, which mixes vectors of
# eigenvalues near the threshold, with two threads otherwise than with one. It shows most in
# tiny-llama's layer 2, whose largest eigenvalue is 5,000 times the threshold: 3.3e-4 is reached
# there, 3.1e-5 elsewhere.
NULL_SPACE = {"tiny-llama": 4e-3, "tiny-gpt2": 4e-4}


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def batch_of(golden: Golden, number: int) -> list[EditRequest]:
    return golden.requests[BATCH * (number - 1) : BATCH * number]


def encore_solver(golden: Golden) -> LeastSquares:
    figures = golden.more_figures["encore"]
    return LeastSquares(figures["mom2_update_weight"], figures["ridge"], remember="solved")


def nas_solver(golden: Golden) -> LeastSquares:
    figures = golden.more_figures["nas"]
    null_space = NullSpace(figures["nullspace_threshold"])
    return LeastSquares(ridge=figures["L2"], remember="written", null_space=null_space)


def encore(golden: Golden, setup: EditingSetup) -> Encore:
    hits = -golden.more_figures["encore"]["prob_cutoff"]
    return Encore(setup, encore_solver(golden), hits, "published-code")


def edited(
    golden: Golden, setup: EditingSetup, editor: Editor, method: str, tolerance: float
) -> list[BatchReport]:
    """Edit both batches and hold every weight to the published one."""
    pipeline, reports = EditingPipeline(editor, setup), []
    for batch in (1, 2):
        reports.append(pipeline.edit(batch_of(golden, batch)))
        for layer in setup.weights.layers:
            pretrained = setup.weights.pretrained[layer]
            published = golden.more[f"{method}_b{batch}_{layer}"]
            change = setup.weights.current[layer] - pretrained
            assert relative_error(change, published) < tolerance, (batch, layer)
            setup.weights.write(layer, pretrained + published)
    return reports


@pytest.mark.parametrize(("method", "make"), [("encore", encore_solver), ("nas", nas_solver)])
def test_updates_from_published_values_and_keys(
    golden: Golden, method: str, make: Callable[[Golden], LeastSquares]
) -> None:
    tolerance = NULL_SPACE[golden.name] if method == "nas" else 4e-6
    setup, solver = golden.setup(), make(golden)
    solver.prepare(golden.second_moments)
    for batch in (1, 2):
        target_values = golden.more[f"{method}_z_b{batch}"].T
        reader = BatchReader(
            golden.loaded, batch_of(golden, batch), LAYERS[-1], golden.contexts, TOKENS
        )
        keys = {layer: golden.more[f"{method}_keys_b{batch}_{layer}"].T for layer in LAYERS}
        for index, layer in enumerate(LAYERS):
            measured = reader.measure(layer)
            assert relative_error(measured.keys, keys[layer]) < 3e-6
            residual = (target_values - measured.hidden) / (len(LAYERS) - index)
            update = solver.solve(layer, keys[layer], residual)
            pretrained = setup.weights.pretrained[layer]
            published = golden.more[f"{method}_b{batch}_{layer}"]
            change = setup.weights.current[layer] - pretrained + update
            assert relative_error(change, published) < tolerance
            setup.weights.write(layer, pretrained + published)
        if solver.remembers_written_keys:
            for layer in LAYERS:
                solver.remember(layer, keys[layer])


class Watching:
    """A stopping rule, with the hits of every iteration that it saw."""

    def __init__(self, rule: Stopping) -> None:
        self.rule = rule
        self.hits: list[list[int]] = []

    def finished(self, found: Loss) -> Tensor:
        self.hits.append(found.hits.int().tolist())
        return self.rule.finished(found)


def assert_trace(
    losses: Sequence[float], hits: Sequence[Sequence[int]], index: int, published: Mapping[str, Any]
) -> None:
    """A request's losses and hits at every iteration that it took part in."""
    assert losses == pytest.approx(published["loss"], abs=PRINTED)
    assert [each[index] for each in hits[: len(losses)]] == published["num_correct"]


def test_encore(golden: Golden) -> None:
    figures = golden.more_figures["encore"]
    setup = golden.setup()
    editor = encore(golden, setup)
    values, rules = editor.setup.values, []

    def watched(threshold: float) -> Watching:
        rules.append(Watching(values.stopping(threshold)))
        return rules[-1]

    editor.setup = replace(editor.setup, values=replace(values, stopping=watched))
    reports = edited(golden, setup, editor, "encore", tolerance=2e-5)
    for batch, (report, rule) in enumerate(zip(reports, rules, strict=True)):
        for index, losses in enumerate(report.losses):
            record = BATCH * batch + index
            assert len(losses) == figures["steps"][record]
            assert_trace(losses, rule.hits, index, figures["traces"][record])


def test_encore_targets_of_two_tokens(golden: Golden) -> None:
    """As published a target of two tokens stops once five of ten are right, in the paper all."""
    figures = golden.more_figures["encore"]
    requests = [
        replace(request, target_new=multi["target"])
        for request, multi in zip(golden.requests, figures["multi"], strict=False)
    ]

    def solved(variant: Any) -> tuple[TargetValues, list[list[int]]]:
        editor = Encore(golden.setup(), encore_solver(golden), -figures["prob_cutoff"], variant)
        rule = Watching(editor.setup.values.stopping(golden.values.loss_threshold))
        values = replace(editor.setup.values, stopping=lambda threshold: rule)
        found = solve_target_values(
            golden.loaded, requests, LAYERS[-1], golden.contexts, values, TOKENS
        )
        return found, rule.hits

    found, hits = solved("published-code")
    for index, multi in enumerate(figures["multi"]):
        published = golden.more[f"encore_multi_z_{multi['case_id']}"]
        assert relative_error(found.values[index], published) < 1e-5
        assert_trace(found.losses[index], hits, index, multi)
    found, _ = solved("paper")
    # No target becomes the argmax in both tokens.
    assert [len(losses) for losses in found.losses] == [golden.values.steps] * len(requests)


def test_nas_from_the_pilots_on(golden: Golden) -> None:
    figures = golden.more_figures["nas"]
    setup, anchor = golden.setup(), NormAnchor(pilots=20, drop=0.05)
    norms = anchor.pilot_norms(setup)
    # Printed to six digits; Adam amplifies rounding.
    assert norms.tolist() == pytest.approx(figures["pilot_norms"], rel=2e-3)
    editor = LocateThenEdit(setup, nas_solver(golden), anchor)
    edited(golden, setup, editor, "nas", NULL_SPACE[golden.name])
    mean = figures["stats"]["2"]["mean_vstar_norm"]
    assert anchor.state_dict()["anchor"].item() == pytest.approx(mean, rel=1e-4)


def test_nas_anchor_of_the_published_pilots(golden: Golden) -> None:
    figures = golden.more_figures["nas"]
    anchor = mean_without_largest(torch.tensor(figures["pilot_norms"]), drop=0.05)
    assert anchor.item() == pytest.approx(figures["stats"]["2"]["mean_vstar_norm"], abs=1e-4)


def forced_anchor(golden: Golden) -> NormAnchor:
    """An anchor set by hand, so low that some edits are dropped."""
    anchor = NormAnchor()
    anchor.load_state_dict({"anchor": torch.tensor(golden.more_figures["nas"]["forced"]["mean"])})
    return anchor


def nas_targets(golden: Golden, before: Tensor, after: Tensor, forced: bool) -> Tensor:
    figures = golden.more_figures["nas"]
    mean = figures["forced"]["mean"] if forced else figures["stats"]["2"]["mean_vstar_norm"]
    return anchored_outputs(after, before, torch.tensor(mean))


def test_nas_scales_or_drops_published_targets(golden: Golden) -> None:
    figures, more = golden.more_figures["nas"], golden.more
    before, targets = more["nas_v0"], more["nas_vstar_before"]
    # The anchor is printed to six digits.
    scaled = nas_targets(golden, before, targets, forced=False)
    assert relative_error(scaled, more["nas_vstar_after"]) < 2e-5
    forced = nas_targets(golden, before[:BATCH], targets[:BATCH], forced=True)
    assert relative_error(forced, more["nas_forced_vstar_after"]) < 6e-7
    assert (forced == before[:BATCH]).all(dim=1).tolist() == figures["forced"]["skipped"]


def test_nas_outputs_of_the_unedited_model(golden: Golden) -> None:
    outputs = projection_outputs(golden.loaded, batch_of(golden, 1), LAYERS[-1], TOKENS)
    assert relative_error(outputs, golden.more["nas_v0"][:BATCH]) < 5e-6


def test_nas_with_dropped_edits(golden: Golden) -> None:
    setup, anchor, found = golden.setup(), forced_anchor(golden), []

    def keeping(requests: Any, solved: TargetValues, given: EditingSetup) -> Tensor:
        found.append((solved, anchor(requests, solved, given)))
        return found[-1][1]

    editor = LocateThenEdit(setup, nas_solver(golden), keeping)
    EditingPipeline(editor, setup).edit(batch_of(golden, 1))
    ((solved, values),) = found
    assert relative_error(values, golden.more["nas_forced_z_b1"]) < 5e-6
    # What is dropped asks for the hidden state that is there.
    moved = (values - (solved.values - solved.deltas)).norm(dim=1)
    skipped = golden.more_figures["nas"]["forced"]["skipped"]
    assert (moved < 1e-4).tolist() == skipped
    change = setup.weights.current[1] - setup.weights.pretrained[1]
    assert relative_error(change, golden.more["nas_forced_b1_1"]) < 2e-4


def ultraedit(golden: Golden, chunk: int) -> tuple[EditingSetup, UltraEdit]:
    figures = golden.more_figures["ultraedit"]
    setup = golden.setup(figures["layers"])
    return setup, UltraEdit(setup, figures["lr"], chunk)


def test_ultraedit(golden: Golden) -> None:
    setup, editor = ultraedit(golden, chunk=10)
    edited(golden, setup, editor, "ultraedit", tolerance=6e-5)


def test_ultraedit_in_two_chunks(golden: Golden) -> None:
    setup, editor = ultraedit(golden, chunk=5)
    pipeline = EditingPipeline(editor, setup)
    for batch in (1, 2):
        tokens = editor.features(batch_of(golden, batch), TOKENS).chunks.bincount().tolist()
        assert tokens == golden.more_figures["ultraedit"]["tokens_c5"][batch - 1]
        pipeline.edit(batch_of(golden, batch))
    change = setup.weights.current[3] - setup.weights.pretrained[3]
    assert relative_error(change, golden.more["ultraedit_c5_b2_3"]) < 5e-5


# A forward has as many tokens as it may; the loss is the mean over the chunk all the same.
@pytest.mark.parametrize("tokens", [12, TOKENS])
def test_ultraedit_features_and_statistics(golden: Golden, tokens: int) -> None:
    setup, editor = ultraedit(golden, chunk=10)
    (moments,) = editor._moments.values()
    for batch in (1, 2):
        features = editor.features(batch_of(golden, batch), tokens)
        editor.note(features)
        for layer, (hidden, gradients) in features.layers.items():
            expected = golden.more[f"ultraedit_hidden_b{batch}_{layer}"].double()
            order = torch.cdist(hidden, expected).argmin(dim=1)
            assert sorted(order.tolist()) == list(range(len(expected)))
            assert relative_error(hidden, expected[order]) < 8e-6
            expected = golden.more[f"ultraedit_grad_b{batch}_{layer}"]
            assert relative_error(gradients, expected[order]) < 2e-5
            if layer == 3:
                normalized = moments.normalize(torch.cat([hidden, gradients], dim=1))
                parts = [golden.more[f"ultraedit_{part}_norm_b{batch}_3"] for part in FEATURES]
                assert relative_error(normalized, torch.cat(parts, dim=1)[order]) < 9e-6
                lengths = normalized[:, : hidden.shape[1]].square().sum(dim=1)
                strengths = -editor.learning_rate * lengths
                published = golden.more[f"ultraedit_coeff_b{batch}_3"][order]
                assert relative_error(strengths, published) < 3e-6
        assert relative_error(moments.mean, golden.more[f"ultraedit_mean_b{batch}"]) < 5e-6
        assert relative_error(moments.deviation, golden.more[f"ultraedit_std_b{batch}"]) < 4e-6
        for layer in setup.weights.layers:
            published = golden.more[f"ultraedit_b{batch}_{layer}"]
            setup.weights.write(layer, setup.weights.pretrained[layer] + published)
    assert moments.count.item() == golden.more_figures["ultraedit"]["n_b2"]


FEATURES = ("hidden", "grad")


def test_argmax_hits_are_counted_without_a_reset() -> None:
    def finishing(rule: Stopping, losses: Sequence[float], right: Sequence[int]) -> list[bool]:
        return [
            bool(rule.finished(Loss(*torch.tensor([[loss], [float(hits)], [10.0 - hits]]))))
            for loss, hits in zip(losses, right, strict=True)
        ]

    high = [1.0] * 5
    paper, published = ArgmaxHits(0.05, 2), ArgmaxHits(0.05, 2, exactly=5)
    assert finishing(paper, high, [10, 5, 9, 10, 0]) == [False, False, False, True, True]
    assert finishing(published, high, [5, 10, 6, 5, 0]) == [False, False, False, True, True]
    for make in (LossThreshold, partial(ArgmaxHits, needed=2)):
        assert finishing(make(0.05), [0.06, 0.049], [10, 0]) == [False, True]
