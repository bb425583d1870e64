"""What the editors besides locate-then-edit define, by hand and on tiny models."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import BatchReport
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.methods.fine_tuning import FineTuning
from sphere_bench.editing.methods.rome import Rome
from sphere_bench.editing.methods.ultraedit import RunningMoments, UltraEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.editing.transforms import EditedWeight
from sphere_bench.editing.values.norm_anchor import NormAnchor
from sphere_bench.editing.values.solver import solve_target_values
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.scoring import score_targets
from tests.golden_numbers import LAYERS, load_golden


def setup(layers: tuple[int, ...] = LAYERS) -> EditingSetup:
    golden = load_golden("tiny-llama")
    values = replace(golden.values, steps=5)
    return golden.setup(layers, values=values, contexts=golden.contexts[:2])


def edit(editor: Editor, given: EditingSetup, requests: Sequence[EditRequest]) -> BatchReport:
    return EditingPipeline(editor, given).edit(requests)


def nll(given: EditingSetup, count: int) -> float:
    """Mean NLL of the new targets of the first ``count`` requests."""
    pairs = [(request.prompt, request.target_new) for request in given.pool(count)]
    scores = score_targets(given.loaded, pairs)
    return sum(score.nll for score in scores) / count


def test_running_moments_are_those_of_all_rows_together() -> None:
    rows = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = RunningMoments()
    for part in rows.split([1, 12, 17]):
        moments.update(part)
    expected = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    torch.testing.assert_close(moments.normalize(rows), expected)
    resumed = RunningMoments()
    resumed.load_state_dict(moments.state_dict())
    assert torch.equal(resumed.normalize(rows), moments.normalize(rows))


def test_ultraedit_solves_its_regularised_system_and_goes_downhill() -> None:
    given = setup()
    editor = UltraEdit(given, learning_rate=1e-4)
    _, features = editor._features(given.pool(6), 2048)
    hidden, gradients = features[1]
    moments = RunningMoments()
    both = torch.cat([hidden, gradients], dim=1)
    moments.update(both)
    normalized = moments.normalize(both)
    width = hidden.shape[1]
    strengths = normalized[:, :width].square().sum(dim=1, keepdim=True)
    values = -1e-4 * strengths * normalized[:, width:]
    system = hidden.T @ hidden + torch.eye(width, dtype=torch.float64)
    expected = torch.linalg.solve(system, hidden.T @ values).T
    torch.testing.assert_close(editor._update(1, hidden, gradients), expected)

    given = setup()
    before = nll(given, 6)
    edit(UltraEdit(given, learning_rate=1e-4), given, given.pool(6))
    assert nll(given, 6) < before


def test_fine_tuning_within_a_ball_changes_no_entry_by_more() -> None:
    given = setup(layers=(4,))
    before = nll(given, 4)
    editor = FineTuning(given, steps=5, learning_rate=5e-3, norm_constraint=1e-3)
    edit(editor, given, given.pool(4))
    change = given.weights.current[4] - given.weights.pretrained[4]
    assert 0.9e-3 < change.abs().max() < 1.001e-3
    assert nll(given, 4) < before


def test_teacher_forced_fine_tuning_learns_targets_of_several_tokens() -> None:
    given = setup(layers=(4,))
    edit(FineTuning(given, steps=20, learning_rate=5e-3), given, given.pool(4))
    assert nll(given, 4) < 0.2


def test_rome_edits_one_layer_only() -> None:
    with pytest.raises(SphereBenchError, match="ROME edits one layer"):
        Rome(setup())


def test_rome_writes_every_fact_of_a_batch() -> None:
    given = setup(layers=(1,))
    before = nll(given, 3)
    report = edit(Rome(given, whiten=False), given, given.pool(3))
    assert nll(given, 3) < before / 2
    change = given.weights.current[1] - given.weights.pretrained[1]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3
    assert report.layers[1].update_norm == pytest.approx(change.norm().item(), rel=1e-4)


def test_norm_anchor_gives_every_value_the_pilots_mean_norm_without_the_largest() -> None:
    anchor = NormAnchor(pilots=4, drop=0.25)
    pilots = torch.diag(torch.tensor([1.0, 2.0, 3.0, 100.0]))
    values = torch.randn(5, 4)
    scaled = anchor(values, lambda count: pilots[:count])
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((5,), 2.0))
    torch.testing.assert_close(scaled / 2, values / values.norm(dim=1, keepdim=True))
    resumed = NormAnchor(pilots=4)
    resumed.load_state_dict(anchor.state_dict())

    def never(count: int) -> Tensor:
        raise AssertionError("the anchor is known already")

    torch.testing.assert_close(resumed(values, never), scaled)


def test_values_that_stop_at_the_argmax_take_fewer_iterations() -> None:
    given = setup()
    settings = replace(given.values, steps=20)

    def iterations(stop_at_argmax: bool) -> list[int]:
        solved = solve_target_values(
            given.loaded,
            given.pool(6),
            LAYERS[-1],
            given.contexts,
            replace(settings, stop_at_argmax=stop_at_argmax),
        )
        return [len(losses) for losses in solved.losses]

    early, late = iterations(True), iterations(False)
    assert all(short <= long for short, long in zip(early, late, strict=True))
    assert sum(early) < sum(late)


def test_a_resumed_editor_goes_on_as_the_first_one_would() -> None:
    def pipeline() -> EditingPipeline:
        given = setup()
        editor = LocateThenEdit(
            given,
            LeastSquares(second_moment_weight=5.0, remember="written"),
            value_transform=NormAnchor(pilots=2),
        )
        return EditingPipeline(editor, given)

    requests = setup().pool(4)
    whole, first, second = pipeline(), pipeline(), pipeline()
    for start in (0, 2):
        whole.edit(requests[start : start + 2])
    first.edit(requests[:2])
    for layer, weight in first.weights.current.items():
        second.weights.write(layer, weight)
    second.load_state_dict(first.state_dict())
    second.edit(requests[2:])
    for layer in LAYERS:
        assert torch.equal(second.weights.current[layer], whole.weights.current[layer])


def test_fine_tuning_backs_off_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned() -> Tensor:
        given = setup(layers=(4,))
        edit(FineTuning(given, steps=2, learning_rate=5e-3), given, given.pool(5))
        return given.weights.current[4]

    whole, plain, sizes = tuned(), FineTuning._loss, []

    def tight(self: FineTuning, requests: Sequence[EditRequest], weights: object) -> Tensor:
        sizes.append(len(requests))
        if len(requests) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, requests, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(FineTuning, "_loss", tight)
    # Adam's first steps go by the gradients' signs: entries whose gradient is nearly 0 may differ.
    difference = (tuned() - whole).abs()
    assert sizes[:4] == [5, 2, 2, 1]
    assert difference.median() < 1e-6


# ROME edits one fact: a second one would start from what the first left.
@pytest.mark.parametrize(
    ("make", "layers", "requests"),
    [
        (lambda given: Rome(given, whiten=False), (1,), 1),
        (lambda given: FineTuning(given, steps=2), (4,), 3),
        (lambda given: UltraEdit(given, learning_rate=1e-4), LAYERS, 3),
        (lambda given: LocateThenEdit(given, LeastSquares(5.0)), (1,), 3),
    ],
)
def test_a_transform_that_halves_the_update_halves_what_every_editor_writes(
    make: Callable[[EditingSetup], Editor], layers: tuple[int, ...], requests: int
) -> None:
    proposed: dict[int, Tensor] = {}

    def halve(update: Tensor, weight: EditedWeight) -> Tensor:
        proposed[weight.layer] = update
        return update / 2

    whole, halved = setup(layers), setup(layers)
    first = EditingPipeline(make(whole), whole).edit(whole.pool(requests))
    second = EditingPipeline(make(halved), halved, [halve]).edit(halved.pool(requests))
    for layer in layers:
        pretrained = whole.weights.pretrained[layer].double()
        assert torch.equal(whole.weights.current[layer], (pretrained + proposed[layer]).float())
        half = (pretrained + proposed[layer] / 2).float()
        assert torch.equal(halved.weights.current[layer], half)
        assert first.layers[layer].update_norm == second.layers[layer].update_norm
        applied = first.layers[layer].applied_norm
        assert second.layers[layer].applied_norm == pytest.approx(applied / 2, rel=1e-4)
