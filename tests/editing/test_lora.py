"""LoRA through peft against a loop in double precision, and what it leaves behind."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.methods.lora import Lora
from sphere_bench.editing.training import Training
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from tests.editing.test_editors import edit, nll, setup
from tests.editing.test_locft import precise
from tests.every_editor import needs_peft
from tests.golden_numbers import relative_error
from tests.tiny_models import tiny_model

pytestmark = needs_peft
RANK, ALPHA, STEPS, RATE = 3, 6.0, 4, 1e-2
LAYERS = (1, 3)


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The factors before training, layer after layer, B before A; they are trained as float64."""
    found: list[Tensor] = []
    run = Training.run

    def noting(self: Training, texts: Any, trained: Sequence[Tensor], *rest: Any) -> None:
        for factor in trained:
            factor.data = factor.data.double()
            found.append(factor.detach().clone())
        run(self, texts, trained, *rest)

    monkeypatch.setattr(Training, "run", noting)
    return found


def test_a_batch_is_that_of_a_loop_in_double_precision(factors: list[Tensor]) -> None:
    given = precise(LAYERS)
    request, *others = given.pool(3)
    edit(Lora(given, RANK, ALPHA, 0, STEPS, RATE, chunk=2), given, [request, *others])
    up, down = factors[::2], factors[1::2]
    assert [each.shape[1] for each in up] == [each.shape[0] for each in down] == [RANK, RANK]
    assert all((each == 0).all() for each in up)
    assert all(each.std() > 0 for each in down) and not torch.equal(*down)

    plain = precise(LAYERS).loaded
    model, tokenizer = plain.model, plain.tokenizer
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS]
    pretrained = {name: model.get_parameter(name) for name in names}

    def change(index: int) -> Tensor:
        return ALPHA / RANK * up[index] @ down[index]

    def loss(prompt: str, target: str) -> Tensor:
        before = tokenizer(prompt)["input_ids"]
        tokens = tokenizer(f" {target}{tokenizer.eos_token}")["input_ids"]
        weights = {name: pretrained[name] + change(index) for index, name in enumerate(names)}
        ids = torch.tensor([before + tokens])
        output = functional_call(model, weights, kwargs={"input_ids": ids})
        scores = output.logits[0].log_softmax(-1)[len(before) - 1 : -1]
        return -scores.gather(1, torch.tensor([tokens]).T).mean()

    for factor in factors:
        factor.requires_grad_()
    first, second = ([torch.zeros_like(factor) for factor in factors] for _ in range(2))
    for step in range(1, 2 * STEPS + 1):
        chunk = [request, others[0]] if step % 2 else [others[1]]
        total = sum(loss(each.prompt, each.target_new) for each in chunk) / len(chunk)
        gradients = torch.autograd.grad(total, factors)
        for index, (factor, gradient) in enumerate(zip(factors, gradients, strict=True)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            mean, square = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
            factor.data -= RATE * mean / (square.sqrt() + 1e-8)
    for index, layer in enumerate(LAYERS):
        made = given.weights.current[layer].double() - given.weights.pretrained[layer]
        assert relative_error(made, change(index).detach()) < 4e-6
        assert torch.linalg.matrix_rank(made, rtol=1e-4) == RANK


# Linear, Conv1D, and a layer that flattens its tokens; a tied head and a head of its own.
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gptj", "falcon"])
def test_the_model_says_what_it_said_with_its_adapters(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model(architecture)
    given = EditingSetup(
        **{**vars(setup()), "loaded": loaded, "weights": EditedWeights(loaded.layout, LAYERS)}
    )
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    run, said = Training.run, []

    def listening(self: Training, *rest: Any) -> None:
        run(self, *rest)
        said.append(loaded.model(tokens).logits.detach())

    monkeypatch.setattr(Training, "run", listening)
    before = loaded.model(tokens).logits
    edit(Lora(given, dropout=0, steps=3), given, given.pool(2))
    after = loaded.model(tokens).logits
    assert relative_error(after - before, said[0] - before) < 4e-5


@contextmanager
def unchanged(given: EditingSetup) -> Iterator[None]:
    """Check that the block leaves the model's modules and torch's generator as they were."""

    def account() -> list[object]:
        model = given.loaded.model
        modules = [
            (name, id(module), module.training, sorted(vars(module)))
            for name, module in model.named_modules()
        ]
        parameters = [
            (name, id(each), each.dtype, each.requires_grad, each.grad)
            for name, each in model.named_parameters()
        ]
        return [*modules, *parameters, str(model.config), torch.get_rng_state().tolist()]

    before = account()
    yield
    assert account() == before


def test_nothing_is_left_of_the_adapters() -> None:
    given = setup(LAYERS)
    with unchanged(given):
        edit(Lora(given, steps=2), given, given.pool(2))


def test_nothing_is_left_of_the_adapters_when_a_batch_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = setup(LAYERS)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", interrupted)
    with unchanged(given), pytest.raises(KeyboardInterrupt):
        edit(Lora(given), given, given.pool(2))


def test_a_bfloat16_model_is_trained_in_float32() -> None:
    given = precise(LAYERS, "bfloat16")
    before = nll(given, 3)
    edit(Lora(given, steps=20, chunk=3), given, given.pool(3))
    assert given.loaded.dtype == torch.bfloat16
    assert nll(given, 3) < before / 2


def test_dropout_and_the_first_factors_are_drawn_anew_from_the_seed() -> None:
    def changes(dropout: float) -> list[Tensor]:
        """Of the same batch twice, each time on the unedited weights."""
        given, found = setup((1,)), []
        editor = Lora(given, steps=2, dropout=dropout)
        for _ in range(2):
            edit(editor, given, given.pool(1))
            found.append(given.weights.current[1] - given.weights.pretrained[1])
            given.weights.write(1, given.weights.pretrained[1])
        return found

    first, again, without = changes(0.5), changes(0.5), changes(0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert relative_error(first[1], first[0]) > 0.1
    assert relative_error(without[0], first[0]) > 0.1


def test_without_peft_a_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SphereBenchError, match=r"needs peft: pip install 'sphere-bench\[lora\]'$"):
        Lora(setup())


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.5}, {"loss_threshold": -1}]
)
def test_what_is_out_of_range_is_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SphereBenchError, match=rf"^editor\.method\.{name}="):
        Lora(setup(), **settings)
