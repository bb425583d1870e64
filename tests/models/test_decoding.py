"""What a model says behind many rows at once is what it says behind each alone."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import Budget
from sphere_bench.models.decoding import check_room, continuations
from sphere_bench.models.loading import LoadedModel
from tests.tiny_models import CONFIGS, VOCABULARY, tiny_model

NEW = 12


def rows_of(lengths: Sequence[int]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (each,), generator=draw).tolist() for each in lengths]


ROWS = rows_of((1, 3, 3, 7, 12, 2, 20, 9))
LENGTHS = [len(row) + NEW for row in ROWS]


@torch.no_grad()
def said_alone(loaded: LoadedModel, row: Sequence[int]) -> list[int]:
    """The argmax behind the row, token by token, without a cache."""
    ids = list(row)
    for _ in range(NEW):
        inputs = torch.tensor([ids])
        ids.append(int(loaded.model(inputs, use_cache=False).logits[0, -1].argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_rows_of_unlike_length_say_what_each_says_alone(architecture: str) -> None:
    loaded = tiny_model(architecture)
    alone = [said_alone(loaded, row) for row in ROWS]
    assert len({tuple(said) for said in alone}) > len(ROWS) / 2
    assert continuations(loaded, ROWS, LENGTHS) == alone
    last = {said[4] for said in alone}
    ended = continuations(loaded, ROWS, LENGTHS, ends=last.__contains__, tokens_per_batch=12)
    for said, whole in zip(ended, alone, strict=True):
        end = next(place for place, token in enumerate(whole) if token in last)
        assert said == whole[: end + 1]


def test_a_row_that_has_its_length_says_nothing() -> None:
    loaded = tiny_model("llama")
    said = continuations(loaded, ROWS, [3] * len(ROWS))
    assert [len(each) for each in said] == [2, 0, 0, 0, 0, 1, 0, 0]
    assert continuations(loaded, [], []) == []


def test_nothing_is_said_beyond_the_models_positions() -> None:
    loaded = tiny_model("gpt2")
    assert loaded.positions == 64
    (said,) = continuations(loaded, rows_of([60]), [80])
    assert len(said) == 4


def test_a_row_says_nothing_more_once_its_logits_are_nan() -> None:
    loaded = tiny_model("llama")
    weight: Tensor = loaded.layout.head.weight.data  # type: ignore[union-attr, assignment]
    weight[7] = torch.nan
    assert continuations(loaded, ROWS, LENGTHS) == [[]] * len(ROWS)


def test_the_choice_is_told_whose_logits_it_sees() -> None:
    loaded = tiny_model("llama")
    seen: dict[int, list[int]] = {}

    def choose(logits: Tensor, rows: Sequence[int], places: Sequence[int]) -> Tensor:
        for row, place in zip(rows, places, strict=True):
            seen.setdefault(row, []).append(place)
        return torch.tensor(rows) + 100

    said = continuations(loaded, ROWS, LENGTHS, choose, tokens_per_batch=20)
    assert said == [[100 + row] * NEW for row in range(len(ROWS))]
    assert seen == {row: list(range(NEW)) for row in range(len(ROWS))}


def test_out_of_memory_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("llama")
    whole = continuations(loaded, ROWS, LENGTHS)
    forward = loaded.model.forward
    sizes = []

    def small_memory(*args: object, **kwargs: object) -> object:
        sizes.append(len(kwargs["input_ids"]))  # type: ignore[arg-type]
        if sizes[-1] > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", small_memory)
    budget = Budget(64)
    assert continuations(loaded, ROWS, LENGTHS, tokens_per_batch=budget) == whole
    assert sizes[0] == len(ROWS)
    sizes.clear()
    assert continuations(loaded, ROWS, LENGTHS, tokens_per_batch=budget) == whole
    assert max(sizes) <= 3


def test_a_prompt_without_room_behind_it_is_named() -> None:
    loaded = tiny_model("gpt2")
    check_room(loaded, ["short", "word " * 20], "probes.mine")
    with pytest.raises(SphereBenchError, match=r"^probes\.mine: a prompt has \d+ tokens, the mod"):
        check_room(loaded, ["word " * 70], "probes.mine")
    with pytest.raises(SphereBenchError, match=r"probes\.mine: a prompt"):
        check_room(loaded, ["word " * 20], "probes.mine", lambda prompt: prompt * 4)
