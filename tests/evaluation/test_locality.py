"""Agreement with the unedited model: against both models asked by hand, and on what is kept."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sphere_bench.data.records import EditDataset, EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.editing.state import check_state
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import locality
from sphere_bench.evaluation.locality import Locality, Prediction
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.evaluation.scoring import TargetPlace
from sphere_bench.models.loading import LoadedModel
from tests.tiny_models import tiny_model

ANSWERS = ["Paris", "the old town of Kraków", "a baker", "1969"]
LAYERS = [1, 2]


def dataset(count: int = 8) -> EditDataset:
    records = []
    for number in range(count):
        prompts = (
            EvalPrompt("rewrite", f"City {number} lies in", "Peru", "Chad"),
            *(
                EvalPrompt(
                    "neighbourhood", f"Town {number}{' so' * more} lies in", "Peru", ANSWERS[more]
                )
                for more in range(3)
            ),
            EvalPrompt("neighbourhood", f"The town {number} is", None, None),
        )
        request = EditRequest(f"c{number}", prompts[0].prompt, f"City {number}", "Peru", "Chad")
        records.append(Record(request, EvalCase(f"c{number}", prompts)))
    return EditDataset("mine", tuple(records), "accuracy", "mean_tokens")


def setup_of(loaded: LoadedModel, tokens_per_batch: int = 4096) -> ProbeSetup:
    weights = EditedWeights(loaded.layout, LAYERS)
    return ProbeSetup(loaded, dataset(), weights, 0, tokens_per_batch, lambda corpus, key: [])


def edit(setup: ProbeSetup, seed: int, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer, weight in setup.weights.current.items():
        noise = torch.randn(weight.shape, generator=generator)
        setup.weights.write(layer, weight + size * weight.std() * noise)


@torch.no_grad()
def asked_by_hand(setup: ProbeSetup, prompt: EvalPrompt) -> tuple[list[int], Tensor]:
    """The argmax at the answer's places and the first token's log-probabilities."""
    tokenizer = setup.loaded.tokenizer
    given = len(tokenizer(prompt.prompt)["input_ids"])
    text = prompt.prompt if prompt.target_true is None else f"{prompt.prompt} {prompt.target_true}"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    logits = setup.loaded.model(ids, use_cache=False).logits[0, given - 1 :]
    if prompt.target_true is not None:
        logits = logits[:-1]
    return logits.argmax(-1).tolist(), logits[0].double().log_softmax(-1)


def neighbours(setup: ProbeSetup, record: int) -> list[EvalPrompt]:
    prompts = setup.dataset.records[record].case.prompts
    return [prompt for prompt in prompts if prompt.kind == "neighbourhood"]


def moment(step: int, **scopes: Sequence[int]) -> Moment:
    return Moment(step, 2 * step, 2, scopes)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_it_is_what_both_models_say_by_hand(architecture: str, tokens_per_batch: int) -> None:
    setup = setup_of(tiny_model(architecture), tokens_per_batch)
    probe = Locality(setup, prompts=None)
    before = {r: [asked_by_hand(setup, each) for each in neighbours(setup, r)] for r in (0, 3)}
    unedited = probe.measure(moment(0, first=[0, 3])).scopes["first"]
    assert unedited == {"specificity_agreement": 100.0, "neighbourhood_kl": 0.0}
    edit(setup, seed=1)
    found = probe.measure(moment(1, first=[0, 3], batch=[3])).scopes
    same, far = {}, {}
    for record, asked in before.items():
        now = [asked_by_hand(setup, each) for each in neighbours(setup, record)]
        same[record] = [float(a[0] == b[0]) for a, b in zip(asked, now, strict=True)]
        far[record] = [
            float(functional.kl_div(b[1], a[1], log_target=True, reduction="sum"))
            for a, b in zip(asked, now, strict=True)
        ]
    assert len(same[3]) == 4
    expected = 100 * sum(sum(each) / 4 for each in same.values()) / 2
    assert 0 < expected < 100
    assert found["first"]["specificity_agreement"] == pytest.approx(expected, abs=1e-9)
    mean = sum(sum(each) / 4 for each in far.values()) / 2
    assert mean > 1e-3
    assert found["first"]["neighbourhood_kl"] == pytest.approx(mean, abs=2e-6)
    assert found["batch"]["neighbourhood_kl"] == pytest.approx(sum(far[3]) / 4, abs=2e-6)


def test_a_record_that_comes_late_is_compared_with_the_unedited_model_too() -> None:
    setup = setup_of(tiny_model("llama"))
    early, late = Locality(setup), Locality(setup)
    early.measure(moment(0, batch=[4, 5]))
    edit(setup, seed=2)
    weights = {layer: setup.loaded.layout.weight(layer).clone() for layer in LAYERS}
    scopes = moment(3, batch=[4, 5])
    assert late.measure(scopes).scopes == early.measure(scopes).scopes
    for layer, weight in weights.items():
        assert torch.equal(setup.loaded.layout.weight(layer), weight)


def test_a_resumed_run_finds_the_same_numbers() -> None:
    setup = setup_of(tiny_model("llama"))
    whole = Locality(setup)
    check_state(whole, "probes.locality")
    whole.measure(moment(0, batch=[0, 1], seen=[0, 1]))
    edit(setup, seed=3)
    whole.measure(moment(1, batch=[2, 3], seen=[0, 2]))
    resumed = Locality(setup)
    resumed.load_state_dict(whole.state_dict())
    edit(setup, seed=4)
    again = moment(2, batch=[4, 5], seen=[0, 2, 4])
    assert resumed.measure(again) == whole.measure(again)


def test_no_more_is_kept_than_what_is_looked_at() -> None:
    setup = setup_of(tiny_model("llama"))
    probe = Locality(setup, records=3, prompts=2)
    for step in range(3):
        probe.measure(moment(step, batch=[2 * step, 2 * step + 1], seen=range(2 * step + 2)))
        records = {name.partition("-")[0] for name in probe.state_dict()}
        assert {str(2 * step), str(2 * step + 1)} <= records
        assert len(records) <= 2 + 3
        assert len(probe.state_dict()) == 2 * len(records)
    logits = setup.loaded.model.config.vocab_size
    for kept in probe.state_dict().values():
        assert kept["log_probs"].shape == (logits,)
        assert kept["log_probs"].untyped_storage().nbytes() == 4 * logits


def test_a_model_that_puts_out_nan_agrees_nowhere() -> None:
    setup = setup_of(tiny_model("llama"))
    probe = Locality(setup)
    probe.measure(moment(0, batch=[0]))
    for layer in LAYERS:
        setup.weights.write(layer, torch.full_like(setup.weights.current[layer], math.nan))
    row = probe.measure(moment(1, batch=[0])).scopes["batch"]
    assert row["specificity_agreement"] == 0.0
    assert math.isnan(row["neighbourhood_kl"])


def test_one_prompt_with_nan_is_not_left_out_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(tiny_model("llama"))
    probe = Locality(setup)
    probe.measure(moment(0, batch=[0], first=[1]))
    predict = locality._predict

    def broken(loaded: LoadedModel, places: list[TargetPlace]) -> list[Prediction]:
        (first, *others) = predict(loaded, places)
        return [first._replace(log_probs=first.log_probs * math.nan), *others]

    monkeypatch.setattr(locality, "_predict", broken)
    found = probe.measure(moment(1, batch=[0], first=[1])).scopes
    values = [found[scope]["neighbourhood_kl"] for scope in ("batch", "first")]
    # Two prompts each, one of the four broken.
    assert sorted(map(math.isnan, values)) == [False, True]


def test_the_unedited_model_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(tiny_model("llama"))
    asked = []
    predict = locality._predict

    def counted(loaded: LoadedModel, places: list[TargetPlace]) -> list[Prediction]:
        asked.extend(places)
        return predict(loaded, places)

    monkeypatch.setattr(locality, "_predict", counted)
    Locality(setup).measure(moment(0, batch=[0], first=[0, 1]))
    assert len(asked) == 4


def test_the_edited_weights_come_back_after_an_error() -> None:
    setup = setup_of(tiny_model("llama"))
    edit(setup, seed=5)
    edited = setup.loaded.layout.weight(1).clone()
    with pytest.raises(KeyError), setup.weights.unedited():
        assert torch.equal(setup.loaded.layout.weight(1), setup.weights.pretrained[1])
        raise KeyError
    assert torch.equal(setup.loaded.layout.weight(1), edited)


@pytest.mark.parametrize("keys", [{"records": 0}, {"prompts": 0}])
def test_a_size_of_nothing_is_refused(keys: dict[str, int]) -> None:
    with pytest.raises(SphereBenchError, match=r"^probes\.locality\.\w+=0"):
        Locality(setup_of(tiny_model("llama")), **keys)
