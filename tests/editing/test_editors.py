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
from sphere_bench.editing.methods.encore import Encore
from sphere_bench.editing.methods.fine_tuning import FineTuning
from sphere_bench.editing.methods.locft import LocFTReplay
from sphere_bench.editing.methods.lora import Lora
from sphere_bench.editing.methods.rome import Rome
from sphere_bench.editing.methods.ultraedit import RunningMoments, UltraEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.editing.state import flatten_state, unflatten_state
from sphere_bench.editing.training import Training
from sphere_bench.editing.transforms import EditedWeight
from sphere_bench.editing.values.norm_anchor import (
    NormAnchor,
    anchored_outputs,
    mean_without_largest,
)
from sphere_bench.editing.values.solver import solve_target_values
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.scoring import score_targets
from sphere_bench.models.tokens import Continuation
from tests.every_editor import needs_peft
from tests.golden_numbers import LAYERS, load_golden, relative_error


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


def draw_rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 4, dtype=torch.float64, generator=generator)


def test_running_moments_have_the_mean_of_all_rows_and_the_published_deviation() -> None:
    first, second = draw_rows(12), draw_rows(17) + 3
    moments = RunningMoments()
    moments.update(first)
    moments.update(second)
    rows = torch.cat([first, second])
    torch.testing.assert_close(moments.mean, rows.mean(dim=0))
    # The textbook's sum of squares, and one variance more for each update.
    squares = 28 * rows.var(dim=0) + first.var(dim=0) + second.var(dim=0)
    torch.testing.assert_close(moments.deviation, (squares / 28).sqrt())
    resumed = RunningMoments()
    resumed.load_state_dict(moments.state_dict())
    assert torch.equal(resumed.normalize(rows), moments.normalize(rows))


def test_a_single_row_has_no_variance_of_its_own() -> None:
    row, others = draw_rows(1), draw_rows(12)
    moments = RunningMoments()
    moments.update(row)
    assert torch.equal(moments.normalize(row), torch.zeros_like(row))
    moments.update(others)
    shift = others.mean(dim=0) - row[0]
    squares = 12 * others.var(dim=0) + 12 / 13 * shift**2
    torch.testing.assert_close(moments.deviation, (squares / 12).sqrt())


def test_ultraedit_solves_its_regularised_system_and_goes_downhill() -> None:
    given = setup()
    editor = UltraEdit(given, learning_rate=1e-4)
    features = editor.features(given.pool(6), 2048)
    editor.note(features)
    moments = RunningMoments()
    for hidden, gradients in features.layers.values():
        moments.update(torch.cat([hidden, gradients], dim=1))
    hidden, gradients = features.layers[1]
    normalized = moments.normalize(torch.cat([hidden, gradients], dim=1))
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


def test_ultraedit_means_over_a_chunk_even_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def edited() -> Tensor:
        given = setup()
        edit(UltraEdit(given, learning_rate=1e-4, chunk=4), given, given.pool(6))
        return given.weights.current[2] - given.weights.pretrained[2]

    whole, features, sizes = edited(), UltraEdit.features, []

    def tight(self: UltraEdit, requests: Sequence[EditRequest], tokens: int) -> object:
        sizes.append(tokens)
        if tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(self, requests, tokens // 10)

    monkeypatch.setattr(UltraEdit, "features", tight)
    assert relative_error(edited(), whole) < 1e-5
    assert sizes == [2048, 1024, 512, 256, 128, 64]


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


def test_norm_anchor_scales_up_and_down_and_drops_what_is_over_twice_the_anchor() -> None:
    targets = torch.tensor([[0.5, 0.0], [0.0, 4.0], [0.0, 4.1], [-3.0, 0.0]])
    before = torch.tensor([[9.0, 9.0], [1.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    expected = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 2.0], [-2.0, 0.0]])
    assert torch.equal(anchored_outputs(targets, before, torch.tensor(2.0)), expected)


def test_the_anchor_is_a_mean_without_the_largest_a_fraction_of_a_pilot_being_kept() -> None:
    norms = torch.tensor([100.0, 1.0, 3.0, 2.0])
    assert mean_without_largest(norms, drop=0.25) == 2
    assert mean_without_largest(norms, drop=0.49) == 2
    assert mean_without_largest(norms, drop=0.24) == 26.5


def test_requests_that_are_solved_jointly_end_together_by_their_mean_loss() -> None:
    given = setup()
    settings = replace(given.values, steps=20, loss_threshold=0.5)

    def losses(jointly: bool) -> list[list[float]]:
        solved = solve_target_values(
            given.loaded,
            given.pool(6),
            LAYERS[-1],
            given.contexts,
            replace(settings, jointly=jointly),
        )
        return solved.losses

    alone, together = losses(jointly=False), losses(jointly=True)
    assert len({len(each) for each in alone}) > 1
    assert all(each == together[0] for each in together)
    assert together[0][-1] < 0.5 <= together[0][-2]
    # The first iteration changes nothing yet.
    assert together[0][0] == pytest.approx(sum(each[0] for each in alone) / 6, rel=1e-6)


def test_encore_takes_fewer_iterations_than_memit() -> None:
    def iterations(argmax_hits: int | None) -> list[int]:
        given = setup()
        given = replace(given, values=replace(given.values, steps=20))
        editor = Encore(given, LeastSquares(5.0), argmax_hits)
        return [len(losses) for losses in edit(editor, given, given.pool(6)).losses]

    once, twice, memit = iterations(1), iterations(2), iterations(None)
    assert all(a <= b <= c for a, b, c in zip(once, twice, memit, strict=True))
    assert sum(once) < sum(twice) < sum(memit)


def test_encore_needs_a_context_to_count_in() -> None:
    given = replace(setup(), contexts=["{}"])
    with pytest.raises(SphereBenchError, match=r"^editor\.method\.argmax_hits counts in the"):
        Encore(given, LeastSquares(5.0))
    Encore(given, LeastSquares(5.0), argmax_hits=None)


RESUMED: dict[str, Callable[[EditingSetup], Editor]] = {
    "nas": lambda given: LocateThenEdit(
        given, LeastSquares(5.0, remember="written"), NormAnchor(pilots=2)
    ),
    "encore": lambda given: Encore(given, LeastSquares(5.0, 10, remember="solved"), 1),
    "ultraedit": lambda given: UltraEdit(given, learning_rate=1e-4, chunk=2),
    "lora": lambda given: Lora(given, steps=3, learning_rate=1e-3),
    "locft-bf-replay": lambda given: LocFTReplay(given, steps=3, replay=1, chunk=2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_peft if name == "lora" else ()) for name in RESUMED]
)
def test_a_resumed_editor_goes_on_as_the_first_one_would(name: str) -> None:
    def pipeline() -> EditingPipeline:
        given = setup()
        return EditingPipeline(RESUMED[name](given), given)

    requests = setup().pool(4)
    whole, first, second = pipeline(), pipeline(), pipeline()
    for start in (0, 2):
        whole.edit(requests[start : start + 2])
    first.edit(requests[:2])
    for layer, weight in first.weights.current.items():
        second.weights.write(layer, weight)
    saved = dict(flatten_state(first.state_dict(), name))
    assert saved
    second.load_state_dict(unflatten_state(saved))
    second.edit(requests[2:])
    for layer in LAYERS:
        assert torch.equal(second.weights.current[layer], whole.weights.current[layer])


def test_fine_tuning_backs_off_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned() -> Tensor:
        given = setup(layers=(4,))
        edit(FineTuning(given, steps=2, learning_rate=5e-3), given, given.pool(5))
        return given.weights.current[4]

    whole, plain, sizes = tuned(), Training._loss, []

    def tight(self: Training, texts: Sequence[Continuation], weights: object) -> Tensor:
        sizes.append(len(texts))
        if len(texts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, texts, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_loss", tight)
    # Adam's first steps go by the gradients' signs: entries whose gradient is nearly 0 may differ.
    difference = (tuned() - whole).abs()
    # In the second epoch it is not tried again.
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
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
