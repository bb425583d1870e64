"""The batched code equals the plain per-request reference, on many layouts."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from sphere_bench.editing.keys import BatchReader
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.prompts import essence_prompt, prompt_up_to_subject, prompt_with_target
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.editing.transforms import Sphere
from sphere_bench.editing.values import solver
from sphere_bench.editing.values.loss import Loss
from sphere_bench.editing.values.micro_batches import MicroBatch, micro_batches
from sphere_bench.editing.values.solver import TargetValues, ValueSettings, solve_target_values
from sphere_bench.models import batching
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.replay.packed import PackedBatch
from sphere_bench.models.team import Team
from tests.golden_numbers import LAYERS, NAMES, Golden, load_golden, relative_error
from tests.reference import memit
from tests.reference.keys import hidden_at, keys_at
from tests.reference.values import target_value
from tests.tiny_models import CONFIGS, tiny_model, with_bos

# The published algorithm knows no cap on the logits, and no projection behind the last layer.
ARCHITECTURES = [name for name in CONFIGS if name not in ("gemma2", "opt_350m")]
TOKENS = 2048


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def assert_same_values(
    loaded: LoadedModel, golden: Golden, settings: ValueSettings, count: int
) -> list[int]:
    """The iterations that each request took part in."""
    requests, layer, contexts = golden.requests[:count], LAYERS[-1], golden.contexts
    plain = [target_value(loaded, request, layer, contexts, settings) for request in requests]
    for tokens in (40, TOKENS):
        fast = solve_target_values(loaded, requests, layer, contexts, settings, tokens)
        for index, expected in enumerate(plain):
            assert fast.losses[index] == pytest.approx(expected.losses, abs=2e-5)
            assert relative_error(fast.values[index], expected.value) < 1e-5
    return [len(expected.losses) for expected in plain]


def test_the_reference_has_the_published_loss_traces(golden: Golden) -> None:
    for index in (0, 7, 13):
        request = golden.requests[index]
        plain = target_value(golden.loaded, request, LAYERS[-1], golden.contexts, golden.values)
        assert plain.losses == pytest.approx(golden.figures["loss_traces"][index], abs=1e-3)


def test_values_of_requests_that_finish_at_different_iterations(golden: Golden) -> None:
    settings = replace(golden.values, loss_threshold=0.5)
    iterations = assert_same_values(golden.loaded, golden, settings, count=6)
    assert min(iterations) < settings.steps and len(set(iterations)) > 3


@pytest.mark.parametrize("clamp", [0.75, 100.0])
def test_values_with_the_weight_decay_and_the_clamp_of_large_models(
    golden: Golden, clamp: float
) -> None:
    settings = replace(golden.values, weight_decay=0.5, clamp_norm_factor=clamp)
    assert_same_values(golden.loaded, golden, settings, count=2)
    first, layer, contexts = golden.requests[:1], LAYERS[-1], golden.contexts
    solved, undecayed = (
        solve_target_values(golden.loaded, first, layer, contexts, each, TOKENS)
        for each in (settings, replace(settings, weight_decay=0.0))
    )
    share = (solved.deltas.norm() / (solved.values - solved.deltas).norm()).item()
    if clamp < 1:
        assert share == pytest.approx(clamp, rel=1e-5)
    else:
        assert relative_error(solved.values, undecayed.values) > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_on_every_layout(architecture: str) -> None:
    settings = replace(load_golden(NAMES[0]).values, steps=4)
    assert_same_values(tiny_model(architecture), load_golden(NAMES[0]), settings, count=3)


@pytest.mark.parametrize("price", [0, 1000])
def test_values_of_texts_in_blocks_of_one_length_or_padded(
    golden: Golden, price: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_TOKENS_A_FORWARD_IS_WORTH", price)
    settings = replace(golden.values, loss_threshold=0.5)
    loaded, requests = golden.loaded, golden.requests[:3]
    (batch,), _ = micro_batches(
        loaded, loaded, requests, LAYERS[-1], golden.contexts, TOKENS, settings.kl_factor
    )
    lengths = [set(block.suffixes) for block in batch.batch.blocks]
    assert (max(map(len, lengths)) == 1) == (price == 0)
    assert (len(lengths) == 1) == (price > 0)
    iterations = assert_same_values(loaded, golden, settings, count=3)
    assert len(set(iterations)) > 1


def test_values_are_the_same_in_pieces(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    def solved(norms: torch.Tensor | None) -> TargetValues:
        requests, contexts = golden.requests[:5], golden.contexts
        return solve_target_values(
            golden.loaded, requests, LAYERS[-1], contexts, golden.values, TOKENS, norms
        )

    norms = torch.linspace(1, 2, 5)
    whole = [solved(None), solved(norms)]
    monkeypatch.setattr(solver, "_REQUESTS_A_PIECE", 2)
    for together, apart in zip(whole, [solved(None), solved(norms)], strict=True):
        assert relative_error(apart.values, together.values) < 1e-4
        assert list(map(len, apart.losses)) == list(map(len, together.losses))
    assert relative_error(whole[1].values, whole[0].values) > 1e-2


@pytest.mark.parametrize(
    ("count", "contexts", "size"),
    [(1, 6, 1), (50, 6, 50), (51, 6, 26), (100, 6, 50), (100, 20, 15)],
)
def test_a_piece_has_few_texts_whatever_the_number_of_processes(
    golden: Golden, count: int, contexts: int, size: int
) -> None:
    for team in (Team(), Team(3, 1)):
        loaded = replace(golden.loaded, team=team)
        assert solver._piece_size(loaded, count, contexts) == size


def test_a_batch_larger_than_its_bound_is_divided(golden: Golden) -> None:
    loaded, requests = golden.loaded, golden.requests[:4]
    batches, _ = micro_batches(
        loaded, loaded, requests, LAYERS[-1], golden.contexts, 40, golden.values.kl_factor
    )
    tokens = [len(batch.batch.hidden) for batch in batches]
    assert len(tokens) > 1 and max(tokens) <= 40 and sum(tokens) > 40 * (len(tokens) - 1) - 40


def test_what_finished_requests_took_is_freed(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[PackedBatch]] = []
    rows_in_memory: list[int] = []
    loss = MicroBatch.loss

    def counted(part: MicroBatch, delta: torch.Tensor) -> Loss:
        if not any(reference() is part.batch for reference in seen):
            seen.append(weakref.ref(part.batch))
        there = [batch for batch in (reference() for reference in seen) if batch is not None]
        rows_in_memory.append(sum(len(batch.order) for batch in there))
        return loss(part, delta)

    monkeypatch.setattr(MicroBatch, "loss", counted)
    settings = replace(golden.values, loss_threshold=0.5)
    requests, contexts = golden.requests[:6], golden.contexts
    solve_target_values(golden.loaded, requests, LAYERS[-1], contexts, settings, TOKENS)
    prompts = len(requests) * (len(contexts) + 1)  # the essence prompts too
    assert max(rows_in_memory) == prompts
    assert rows_in_memory[-1] < prompts


def test_all_prompts_of_a_single_request_go_through_one_forward_an_iteration() -> None:
    loaded, golden = tiny_model("llama"), load_golden(NAMES[0])
    forwards = 0

    def count(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal forwards
        forwards += inputs[0].requires_grad

    handle = loaded.layout.decoder_layers[-1].register_forward_pre_hook(count)
    settings = replace(golden.values, steps=4, loss_threshold=0)
    try:
        solve_target_values(
            loaded, golden.requests[:1], LAYERS[-1] - 1, golden.contexts, settings, TOKENS
        )
    finally:
        handle.remove()
    assert forwards == 3  # the last iteration takes no gradient


def test_values_through_layers_in_bfloat16_end_at_the_same_loss(golden: Golden) -> None:
    final = []
    for precision in (None, torch.bfloat16):
        settings = replace(golden.values, precision=precision)
        solved = solve_target_values(
            golden.loaded, golden.requests, LAYERS[-1], golden.contexts, settings, TOKENS
        )
        assert solved.values.dtype == torch.float32
        final.append(sum(losses[-1] for losses in solved.losses))
    assert final[0] != final[1]
    assert final[1] == pytest.approx(final[0], rel=0.02)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tokens", [40, TOKENS])
def test_keys_and_hidden_states(golden: Golden, layer: int, tokens: int) -> None:
    loaded, requests, contexts = golden.loaded, golden.requests, golden.contexts
    fast = BatchReader(loaded, requests, LAYERS[-1], contexts, tokens).measure(layer)
    assert relative_error(fast.keys, keys_at(loaded, requests, layer, contexts)) < 2e-6
    assert relative_error(fast.hidden, hidden_at(loaded, requests, LAYERS[-1])) < 2e-6


def test_tokens_behind_a_bos_are_those_without_one(golden: Golden) -> None:
    bare = golden.loaded.tokenizer
    begun, bos = with_bos(bare), bare.bos_token_id
    for index, request in enumerate(golden.requests):
        found = prompt_up_to_subject(begun, request)
        assert found.subject_last == golden.figures["lookup_index"][index] + 1
        for context in golden.contexts:
            assert prompt_up_to_subject(begun, request, context) == behind(
                bos, prompt_up_to_subject(bare, request, context)
            )
            assert prompt_with_target(begun, request, context) == behind(
                bos, prompt_with_target(bare, request, context)
            )
        assert essence_prompt(begun, request) == behind(bos, essence_prompt(bare, request))


def behind(bos: int, tokens: Any) -> Any:
    return tokens._replace(ids=[bos, *tokens.ids], subject_last=tokens.subject_last + 1)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_two_batches_of_memit_with_sphere(name: str, bos: bool) -> None:
    weight = load_golden(name).figures["hparams"]["mom2_update_weight"]
    values = replace(load_golden(name).values, steps=5)
    fast, plain = (load_golden(name).setup(values=values) for _ in range(2))
    if bos:
        fast, plain = (
            replace(each, loaded=replace(each.loaded, tokenizer=with_bos(each.loaded.tokenizer)))
            for each in (fast, plain)
        )
    sphere = Sphere(0.8, basis="current", normalize_rows=True, rank_rule="published-code")
    editor = LocateThenEdit(fast, LeastSquares(second_moment_weight=weight))
    pipeline = EditingPipeline(editor, fast, sphere=sphere, apply="after")
    for batch in (fast.pool(4), fast.pool(8)[4:]):
        pipeline.edit(batch)
        memit.edit(plain, batch, plain.second_moments(), weight, sphere)
        for layer in LAYERS:
            change = fast.weights.current[layer] - fast.weights.pretrained[layer]
            expected = plain.weights.current[layer] - plain.weights.pretrained[layer]
            assert relative_error(change, expected) < 3e-5
