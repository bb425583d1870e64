"""CrispEdit against its formulas, written plainly in double precision."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.build import ordinary_windows
from sphere_bench.config.composition import compose_config
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.methods.crispedit import CrispEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.statistics.kronecker import KroneckerFactors
from sphere_bench.errors import SphereBenchError
from tests.editing.test_editors import edit, nll, setup
from tests.editing.test_stableedit import Texts, rows_of, texts_of
from tests.golden_numbers import relative_error

LAYERS = (2, 3)
STEPS, RATE, CHUNK, THRESHOLD = 3, 1e-3, 4, 1e-2


def crispedit(energy: float) -> tuple[EditingSetup, CrispEdit]:
    """The editor, with the first prompts of the pool as ordinary text."""
    given = setup(LAYERS)
    windows = [prompt for prompt, _ in texts_of(given, given.pool(20))]
    given = replace(given, ordinary_windows=lambda: [*windows, [3]])
    return given, CrispEdit(given, STEPS, RATE, energy, CHUNK, THRESHOLD)


def projected(change: Tensor, rows: Tensor, energy: float) -> Tensor:
    """``change`` [d_out, d_in] without the strongest directions of all ``rows`` so far."""
    width = change.shape[1]
    hidden, gradients = rows[:, :width], rows[:, width:]
    inputs, left = torch.linalg.eigh(hidden.T @ hidden / len(rows))
    outputs, right = torch.linalg.eigh(gradients.T @ gradients / len(rows))
    curvature = outputs[:, None] * inputs[None, :]
    strongest, total, sums = curvature.flatten().sort(descending=True).values, curvature.sum(), 0.0
    for value in strongest:
        sums += value
        if sums / total >= energy:
            break
    coordinates = right.T @ change @ left
    coordinates[curvature >= value] = 0
    return right @ coordinates @ left.T


def loss_and_gradients(given: EditingSetup, texts: Texts) -> tuple[float, dict[int, Tensor]]:
    """Mean NLL of all target tokens, with its gradients in double precision."""
    weights = {
        layer: given.loaded.model.model.layers[layer].mlp.down_proj.weight for layer in LAYERS
    }
    total, tokens = torch.zeros(()), 0
    for weight in weights.values():
        weight.requires_grad_().grad = None
    for prompt, target in texts:
        logits = given.loaded.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        total = total + functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
        tokens += len(target)
    (total / tokens).backward()
    found = {}
    for layer, weight in weights.items():
        assert weight.grad is not None
        found[layer] = weight.grad.double()
        weight.requires_grad_(False)
    return (total / tokens).item(), found


@pytest.mark.parametrize("energy", [0.6, 0.95])
def test_two_batches_follow_the_formulas(energy: float) -> None:
    given, editor = crispedit(energy)
    pipeline = EditingPipeline(editor, given)
    plain = setup(LAYERS)
    requests = list(given.pool(12))
    windows = [(ids[:1], ids[1:]) for ids, _ in texts_of(plain, plain.pool(20))]
    rows = rows_of(plain, windows, 1)
    weights = {layer: plain.weights.pretrained[layer].double() for layer in LAYERS}
    momentum = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
    squares = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
    step = 0
    for batch in (requests[:6], requests[6:]):
        texts = texts_of(plain, batch)
        momentum = {layer: projected(each, rows[layer], energy) for layer, each in momentum.items()}
        for _ in range(STEPS):
            for chunk in (texts[:CHUNK], texts[CHUNK:]):
                loss, gradients = loss_and_gradients(plain, chunk)
                assert loss > THRESHOLD
                step += 1
                for layer, gradient in gradients.items():
                    gradient = projected(gradient, rows[layer], energy)
                    momentum[layer] = 0.9 * momentum[layer] + 0.1 * gradient
                    squares[layer] = 0.999 * squares[layer] + 0.001 * gradient**2
                    mean = momentum[layer] / (1 - 0.9**step)
                    deviation = (squares[layer] / (1 - 0.999**step)).sqrt()
                    weights[layer] = weights[layer] - RATE * mean / (deviation + 1e-8)
                    plain.weights.write(layer, weights[layer])
        rows = {
            layer: torch.cat([rows[layer], more])
            for layer, more in rows_of(plain, texts, 1).items()
        }
        pipeline.edit(batch)
        for layer, weight in weights.items():
            pretrained = given.weights.pretrained[layer].double()
            change = given.weights.current[layer].double() - pretrained
            assert relative_error(change, weight - pretrained) < 6e-5
            factors = editor._factors[layer]
            width = weight.shape[1]
            for found, part in (
                (factors.inputs, rows[layer][:, :width]),
                (factors.gradients, rows[layer][:, width:]),
            ):
                assert relative_error(found, part.T @ part) < 1e-5
            assert factors.tokens == len(rows[layer])


def test_a_change_keeps_its_flat_directions_alone() -> None:
    factors = KroneckerFactors()
    # Along the axes: A = diag(4, 1), B = diag(3, 2, 1). Products 12, 8, 4, 3, 2, 1; sum 30.
    axes = torch.eye(3, dtype=torch.float64)
    hidden = torch.cat([2 * axes[:1, :2], axes[1:2, :2]]) * 2**0.5
    factors.add(hidden, torch.zeros(2, 3, dtype=torch.float64))
    factors.gradients = 2 * torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    change = torch.ones(3, 2, dtype=torch.float64)

    def kept(energy: float) -> list[list[float]]:
        return factors.flat_directions(energy).project(change).round().tolist()

    assert kept(0.01) == kept(0.4) == [[0, 1], [1, 1], [1, 1]]
    assert kept(0.5) == [[0, 1], [0, 1], [1, 1]]
    assert kept(0.9) == [[0, 0], [0, 1], [0, 1]]
    assert kept(1) == [[0, 0], [0, 0], [0, 0]]


def test_it_goes_downhill() -> None:
    given, editor = crispedit(0.8)
    before = nll(given, 6)
    edit(editor, given, given.pool(6))
    assert nll(given, 6) < before


def test_text_without_a_token_to_predict_is_reported() -> None:
    given = replace(setup(LAYERS), ordinary_windows=lambda: [[3]])
    with pytest.raises(SphereBenchError, match=r"^no text for K-FAC: name another statistics"):
        edit(CrispEdit(given), given, given.pool(1))


def test_given_key_statistics_hold_no_text() -> None:
    config = compose_config(["editor=crispedit", "statistics.path=moments"])
    given = setup(LAYERS)
    given = replace(given, ordinary_windows=lambda: ordinary_windows(config, given.loaded))
    with pytest.raises(
        SphereBenchError, match=r"^statistics\.path=moments: editor=crispedit reads"
    ):
        CrispEdit(given)


@pytest.mark.parametrize("energy", [0.0, 1.5])
def test_energy_is_a_share(energy: float) -> None:
    with pytest.raises(SphereBenchError, match=r"^editor\.method\.energy="):
        CrispEdit(setup(LAYERS), energy=energy)
