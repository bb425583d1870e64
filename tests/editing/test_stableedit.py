"""StableEdit against its formulas, written plainly over all rows so far."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.methods.stableedit import StableEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.state import copied_state
from sphere_bench.errors import SphereBenchError
from tests.editing.test_editors import edit, nll, setup
from tests.golden_numbers import relative_error

# Tokens of prompts and of targets.
Texts = list[tuple[list[int], list[int]]]

RATE, RIDGE = 1e-4, 5.0
# All requests of a batch share one loss.
CHUNK = 20


def stableedit(
    given: EditingSetup, requests: list[EditRequest], batches: int, size: int
) -> StableEdit:
    """The editor, with ``requests`` to warm up on."""
    spare = EditingSetup(**{**vars(given), "spare": lambda count: requests[:count]})
    return StableEdit(spare, RATE, RIDGE, CHUNK, warmup_batches=batches, batch_size=size)


def keep_with_gradient(
    seen: list[tuple[Tensor, Tensor]], _: object, inputs: tuple[Tensor], output: Tensor
) -> None:
    output.requires_grad_().retain_grad()
    seen.append((inputs[0], output))


def rows_of(given: EditingSetup, texts: Texts, tokens: int) -> dict[int, Tensor]:
    """[h, g] of each layer, [m, d_in + d_out], one text after another.

    g is the gradient of the text's NLL divided by ``tokens``.
    """
    model = given.loaded.model
    found: dict[int, list[Tensor]] = {layer: [] for layer in given.weights.layers}
    for prompt, target in texts:
        seen: list[tuple[Tensor, Tensor]] = []
        handles = [
            model.model.layers[layer].mlp.down_proj.register_forward_hook(
                partial(keep_with_gradient, seen)
            )
            for layer in found
        ]
        logits = model(torch.tensor([prompt + target])).logits[0]
        for handle in handles:
            handle.remove()
        places = slice(len(prompt) - 1, len(prompt) + len(target) - 1)
        loss = functional.cross_entropy(logits[places], torch.tensor(target), reduction="sum")
        (loss / tokens).backward()
        for rows, (hidden, output) in zip(found.values(), seen, strict=True):
            assert output.grad is not None
            both = torch.cat([hidden[0, places], output.grad[0, places]], dim=1)
            rows.append(both.detach().double())
    return {layer: torch.cat(rows) for layer, rows in found.items()}


def texts_of(given: EditingSetup, requests: Sequence[EditRequest]) -> Texts:
    """Tokens of prompt and target of each request."""
    tokenizer = given.loaded.tokenizer
    return [
        (
            tokenizer(request.prompt).input_ids,
            tokenizer(f" {request.target_new}", add_special_tokens=False).input_ids,
        )
        for request in requests
    ]


def features_of(given: EditingSetup, requests: list[EditRequest]) -> dict[int, Tensor]:
    """The rows of a loss that all requests share."""
    texts = texts_of(given, requests)
    return rows_of(given, texts, sum(len(target) for _, target in texts))


def update_of(rows: Tensor, every: Tensor, width: int, whitens: bool) -> Tensor:
    """dW of a layer's ``rows``, with the statistics of ``every`` row so far."""
    hidden, outputs = rows[:, :width], rows.shape[1] - width
    normalized = (rows - every.mean(dim=0)) / every.std(dim=0)
    gradients = normalized[:, width:]
    if whitens:
        seen = every[:, width:]
        centred = seen - seen.mean(dim=0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(every) - outputs - 1))
        root = vectors @ values.clamp(min=1e-6).sqrt().reciprocal().diag() @ vectors.T
        gradients = (rows[:, width:] - seen.mean(dim=0)) @ root
    values = -RATE * normalized[:, :width].square().sum(dim=1, keepdim=True) * gradients
    system = hidden.T @ hidden + RIDGE * torch.eye(width, dtype=torch.float64)
    return torch.linalg.solve(system, hidden.T @ values).T


# One request to warm up on leaves fewer rows than outputs.
@pytest.mark.parametrize(("size", "whitens"), [(1, False), (15, True)])
def test_warm_up_and_two_batches_follow_the_formulas(size: int, whitens: bool) -> None:
    given, plain = setup(), setup()
    requests = list(given.pool(20))
    spare, stream = (requests * 2)[: 2 * size], [requests[10:13], requests[13:]]
    pipeline = EditingPipeline(stableedit(given, spare, 2, size), given)
    expected = {layer: weight.double() for layer, weight in plain.weights.pretrained.items()}
    outputs, width = expected[0].shape
    every = torch.empty(0, width + outputs, dtype=torch.float64)
    for batch in (spare[:size], spare[size:], *stream):
        features = features_of(plain, batch)
        every = torch.cat([every, *features.values()])
        for layer, rows in features.items():
            expected[layer] += update_of(rows, every, width, whitens and batch in stream)
            plain.weights.write(layer, expected[layer])
        if batch in stream:
            assert (len(every) > outputs + 1) == whitens
            pipeline.edit(batch)
            for layer, weight in expected.items():
                pretrained = given.weights.pretrained[layer].double()
                change = given.weights.current[layer].double() - pretrained
                error = relative_error(change, weight - pretrained)
                assert error < 8e-5


def test_it_goes_downhill() -> None:
    given = setup()
    before = nll(given, 6)
    requests = list(given.pool(20))
    edit(stableedit(given, requests[6:], 2, 7), given, requests[:6])
    assert nll(given, 6) < before


def test_it_warms_up_once_and_again_where_its_first_batch_did_not_count() -> None:
    given = setup()
    requests = list(given.pool(8))
    editor = stableedit(given, requests[4:], 2, 2)
    before = copied_state(editor.state_dict())
    written: list[int] = []
    write = editor.write

    def counting(batch: object, these: list[EditRequest]) -> None:
        written.append(len(these))
        write(batch, these)  # type: ignore[arg-type]

    editor.write = counting  # type: ignore[method-assign,assignment]
    edit(editor, given, requests[:3])
    edit(editor, given, requests[3:4])
    assert written == [2, 2, 3, 1]
    editor.load_state_dict(before)
    edit(editor, given, requests[:3])
    assert written[4:] == [2, 2, 3]


def test_too_few_records_are_reported_in_one_line() -> None:
    given = setup()
    message = (
        r"^editor\.method\.warmup_batches=3: they take 6 records behind those that are edited, and "
        r"the dataset has 5: lower edits\.total or editor\.method\.warmup_batches$"
    )
    with pytest.raises(SphereBenchError, match=message):
        stableedit(given, list(given.pool(5)), 3, 2)
