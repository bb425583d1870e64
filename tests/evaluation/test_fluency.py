"""Texts that a model samples: their entropy, what they resemble, and where chance comes from."""

import math
import sys
from typing import Any, cast

import pytest
import torch

from sphere_bench.data.records import EditDataset, EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import fluency
from sphere_bench.evaluation.fluency import TOP_K, Fluency, entropy, sampling
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.models.batching import Budget
from sphere_bench.models.decoding import continuations
from sphere_bench.models.loading import LoadedModel
from tests.tiny_models import tiny_model

ATTRIBUTE = ("P103", "language-3")


def dataset(count: int = 6) -> EditDataset:
    records = []
    for number in range(count):
        subject = f"City {number}"
        request = EditRequest(f"c{number}", f"{subject} lies in", subject, "Peru", None)
        prompts = (EvalPrompt("rewrite", request.prompt, "Peru", None),)
        # Every third record has nothing to go on with.
        going_on = (f"{subject} is", f"The old town of {subject}") if number % 3 else ()
        case = EvalCase(f"c{number}", prompts, going_on, ATTRIBUTE)
        records.append(Record(request, case))
    return EditDataset("mine", tuple(records), "accuracy", "mean_tokens")


def probe_of(
    seed: int = 0, tokens_per_batch: int = 4096, corpus: str | None = None, records: int | None = 5
) -> Fluency:
    weights = cast(EditedWeights, None)
    setup = ProbeSetup(
        tiny_model("bloom"),
        dataset(),
        weights,
        seed,
        Budget(tokens_per_batch),
        lambda corpus, key: [],
    )
    return Fluency(setup, records, corpus)


@pytest.mark.parametrize(
    "text, expected",
    [
        # Bigrams ab ab ba: H2 = log2 3 - 2/3. Trigrams aba bab: H3 = 1.
        ("a b a b", (2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2),
        # Eight words, all different: 7 bigrams and 6 trigrams.
        ("one two three four five six seven .", (2 / 3 * math.log2(7) + 4 / 3 * math.log2(6)) / 2),
        ("a a a a a", 0.0),
        ("Rome", 0.0),
        ("", 0.0),
        # Words: it, ', s, me: 3 bigrams, 2 trigrams.
        ("it's me", (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2),
    ],
)
def test_the_entropy_is_that_of_bigrams_and_trigrams(text: str, expected: float) -> None:
    assert entropy(text) == pytest.approx(expected, abs=1e-12)


def test_texts_do_not_depend_on_the_batch_the_step_or_the_other_records() -> None:
    probe = probe_of()
    together = probe.texts([1, 2, 4])
    assert probe.texts([4])[4] == together[4]
    assert probe_of(tokens_per_batch=1).texts([1, 2, 4]) == together
    assert probe_of(seed=1).texts([1])[1] != together[1]
    # Two prompts of a record have numbers of their own.
    assert together[1][0].removeprefix("City 1 is") != together[1][1].removeprefix(
        "The old town of City 1"
    )


def test_a_text_begins_with_its_prompt_and_has_a_hundred_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = []

    def counted(loaded: LoadedModel, rows: list[list[int]], *asked: Any, **keys: Any) -> Any:
        said = continuations(loaded, rows, *asked, **keys)
        lengths.extend(len(row) + len(more) for row, more in zip(rows, said, strict=True))
        return said

    monkeypatch.setattr(fluency, "continuations", counted)
    first, second = probe_of().texts([1])[1]
    assert first.startswith("City 1 is") and second.startswith("The old town of City 1")
    assert lengths == [100, 100]


def test_sampling_is_from_the_five_likeliest_by_their_probabilities() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0, 1.5, 0.5]).repeat(20_000, 1)
    noise = -torch.log(
        -torch.log(torch.rand(20_000, 1, TOP_K, generator=torch.Generator().manual_seed(0)))
    )
    rows = list(range(20_000))
    chosen = sampling(noise)(logits, rows, [0] * len(rows))
    shares = torch.bincount(chosen, minlength=7) / len(rows)
    kept = torch.tensor([1, 2, 3, 5, 6])
    expected = torch.zeros(7)
    expected[kept] = logits[0, kept].softmax(0)
    # The standard error of a share is at most 0.0036.
    assert (shares - expected).abs().max() < 0.015


def test_scopes_have_the_mean_over_their_records_with_prompts() -> None:
    probe = probe_of()
    before = torch.get_rng_state()
    found = probe.measure(Moment(1, 2, 2, {"batch": [0, 1], "seen": [1, 2, 3], "first": [0, 3]}))
    assert torch.equal(torch.get_rng_state(), before)
    texts = probe.texts([1, 2])
    of_record = {each: 100 * sum(map(entropy, texts[each])) / 2 for each in (1, 2)}
    assert found.scopes["batch"]["fluency"] == pytest.approx(of_record[1], abs=1e-9)
    mean = (of_record[1] + of_record[2]) / 2
    assert found.scopes["seen"]["fluency"] == pytest.approx(mean, abs=1e-9)
    assert math.isnan(found.scopes["first"]["fluency"])
    assert all(math.isnan(row["consistency"]) for row in found.scopes.values())
    sampled = probe_of(records=1).measure(Moment(1, 2, 2, {"seen": [1, 2]}))
    assert sampled.scopes["seen"]["fluency"] in of_record.values()


def test_consistency_is_the_cosine_with_texts_of_the_new_attribute() -> None:
    pytest.importorskip("sklearn", reason="consistency needs the extra fluency")
    references = probe_of(corpus="bundled").references
    assert references is not None
    texts = " ".join(references._texts[ATTRIBUTE])
    assert references.similarity(texts, ATTRIBUTE) == pytest.approx(1, abs=1e-9)
    # Tokens that no reference has leave nothing to compare.
    assert references.similarity("zzz qqq", ATTRIBUTE) == 0.0
    assert 0 < references.similarity("The mother tongue is spoken", ATTRIBUTE) < 1
    assert math.isnan(references.similarity(texts, ("P103", "unknown")))


def test_a_scope_has_the_consistency_of_its_texts() -> None:
    pytest.importorskip("sklearn", reason="consistency needs the extra fluency")
    probe = probe_of(corpus="bundled")
    row = probe.measure(Moment(1, 2, 2, {"batch": [1]})).scopes["batch"]
    assert probe.references is not None
    expected = 100 * probe.references.similarity(" ".join(probe.texts([1])[1]), ATTRIBUTE)
    assert row["consistency"] == pytest.approx(expected, abs=1e-9)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(SphereBenchError, match=r"^probes\.fluency\.corpus=bundled needs scikit-l"):
        probe_of(corpus="bundled")
