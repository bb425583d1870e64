"""LocFT-BF with a replay against a loop in double precision, written plainly."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.methods.locft import LocFTReplay, Sample
from sphere_bench.editing.training import Training
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import load_model
from sphere_bench.models.tokens import Continuation
from tests.editing.test_editors import edit, nll, setup
from tests.golden_numbers import GOLDEN, load_golden, relative_error

LAYER, SEED = 4, 5
# EOS has no embedding in the golden model: no loss falls below 3.
RATE, STEPS, CHUNK, THRESHOLD = 1e-2, 8, 2, 3.24
BETAS, EPS = (0.9, 0.999), 1e-8


def precise(layers: tuple[int, ...] = (LAYER,), dtype: str = "float64") -> EditingSetup:
    """A model that computes in double precision, so that Adam's early steps can be compared."""
    given = load_golden("tiny-llama").setup(layers, seed=SEED)
    loaded = load_model(str(GOLDEN / "tiny-llama"), dtype=dtype, device="cpu")
    return replace(given, loaded=loaded, weights=EditedWeights(loaded.layout, layers))


class Plain:
    """The method by its description, on the model's own parameter."""

    def __init__(self) -> None:
        loaded = precise().loaded
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.weight = self.model.model.layers[LAYER].mlp.down_proj.weight
        self.left_out = self.epochs = 0

    def loss(self, request: EditRequest) -> Tensor:
        prompt = self.tokenizer(request.prompt)["input_ids"]
        target = self.tokenizer(f" {request.target_new}{self.tokenizer.eos_token}")["input_ids"]
        logits = self.model(torch.tensor([prompt + target])).logits[0]
        tokens = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor([target]).T)
        return -tokens.mean()

    def batch(self, requests: Sequence[EditRequest], orders: Sequence[list[int]]) -> None:
        self.weight.requires_grad_(True)
        first = second = torch.zeros_like(self.weight)
        steps = 0
        for order in orders:
            losses = []
            for start in range(0, len(order), CHUNK):
                chunk = [requests[place] for place in order[start : start + CHUNK]]
                loss = torch.stack([self.loss(request) for request in chunk]).mean()
                losses += [loss.item()] * len(chunk)
                if loss < THRESHOLD:
                    self.left_out += 1
                    continue
                (gradient,) = torch.autograd.grad(loss, self.weight)
                steps += 1
                first = BETAS[0] * first + (1 - BETAS[0]) * gradient
                second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
                mean, square = first / (1 - BETAS[0] ** steps), second / (1 - BETAS[1] ** steps)
                self.weight.data -= RATE * mean / (square.sqrt() + EPS)
            self.epochs += 1
            if sum(losses) / len(losses) < THRESHOLD:
                break


def test_two_batches_are_those_of_a_loop_in_double_precision() -> None:
    given, plain = precise(), Plain()
    requests = given.pool(5)
    before = plain.weight.detach().clone()
    editor = LocFTReplay(given, STEPS, RATE, 2, CHUNK, THRESHOLD)
    orders: list[list[int]] = []
    for batch, earlier in ((requests[:2], []), (requests[2:], requests[:2])):
        generator = torch.Generator()
        generator.set_state(editor.state_dict()["generator"])
        texts = [*batch, *earlier]
        orders = [torch.randperm(len(texts), generator=generator).tolist() for _ in range(STEPS)]
        edit(editor, given, batch)
        plain.batch(texts, orders)
    assert plain.left_out and plain.epochs < 2 * STEPS and orders[0] != orders[1]
    change = given.weights.current[LAYER].double() - before
    assert relative_error(change, plain.weight.detach() - before) < 6e-6


def test_a_later_batch_trains_on_as_many_texts_as_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, plain, sizes = setup((LAYER,)), Training._loss, []

    def counting(
        self: Training, texts: Sequence[Continuation], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        sizes.append(len(texts))
        return plain(self, texts, parameters)

    monkeypatch.setattr(Training, "_loss", counting)
    editor = LocFTReplay(given, steps=1, replay=3)
    requests = given.pool(12)
    for start in range(0, 12, 3):
        edit(editor, given, requests[start : start + 3])
    assert sizes == [3, 6, 6, 6]


def test_a_replay_keeps_earlier_edits() -> None:
    def earlier_nll(replay: int) -> float:
        given = setup((LAYER,))
        editor = LocFTReplay(given, learning_rate=5e-3, replay=replay)
        for start in (0, 3, 6):
            edit(editor, given, given.pool(9)[start : start + 3])
        return nll(given, 3)

    assert earlier_nll(6) < earlier_nll(0) / 2


def test_a_fact_that_is_edited_again_is_not_trained_with_its_earlier_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, seen = setup((LAYER,)), []
    first, second, third = given.pool(3)
    again = replace(first, case_id="again", prompt=first.prompt.upper(), target_new="Peru")

    def noting(self: Training, requests: Sequence[EditRequest], **_: bool) -> list[Continuation]:
        seen.append([request.case_id for request in requests])
        return texts(self, requests)

    texts = Training.texts
    monkeypatch.setattr(Training, "texts", noting)
    editor = LocFTReplay(given, steps=1)
    edit(editor, given, [first, second])
    edit(editor, given, [third, again])
    edit(editor, given, [first, again])
    ids = [each.case_id for each in (second, third)]
    assert seen == [
        [first.case_id, second.case_id],
        [third.case_id, "again", second.case_id],
        ["again", *ids],
    ]


def test_every_request_is_as_likely_to_be_remembered() -> None:
    requests, times = setup((LAYER,)).pool(8), 4000
    generator = torch.Generator().manual_seed(SEED)
    found: Counter[str] = Counter()
    for _ in range(times):
        sample = Sample(2)
        for start in (0, 3, 6):
            sample.add(requests[start : start + 3], generator)
        assert len(sample.requests) == 2
        found.update(request.case_id for request in sample.requests)
    # Five standard deviations of a share of 2 / 8.
    assert all(abs(found[each.case_id] / times - 0.25) < 0.034 for each in requests)


def test_a_sample_goes_on_from_its_state_whatever_the_letters() -> None:
    request = replace(setup((LAYER,)).pool(1)[0], target_new="Łódź", target_true=None)
    first, second = Sample(1), Sample(1)
    second.load_state_dict(first.state_dict())
    assert second.requests == []
    first.add([request], torch.Generator())
    second.load_state_dict(first.state_dict())
    assert (second.requests, second.count) == ([request], 1)


def test_without_a_token_for_the_end_of_text_a_line_says_what_to_set() -> None:
    given = setup((LAYER,))
    given.loaded.tokenizer.eos_token = None
    with pytest.raises(SphereBenchError, match=r"no EOS .* set editor\.method\.end_of_text=false$"):
        edit(LocFTReplay(given), given, given.pool(1))
    edit(LocFTReplay(given, steps=1, end_of_text=False), given, given.pool(1))


def test_what_is_out_of_range_is_named() -> None:
    with pytest.raises(SphereBenchError, match=r"^editor\.method\.replay=-1: "):
        LocFTReplay(setup((LAYER,)), replay=-1)
