"""A model that always says the asked target scores 1.0 on every metric, one that never does 0.0.

Whatever the tokenizer's family, its BOS or EOS, its padding side, and however many tokens a target
has.
"""

import pytest
from transformers import PreTrainedTokenizerBase

from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record
from sphere_bench.evaluation.scoring import score_targets
from sphere_bench.evaluation.teacher_forced import score_records, summarize
from tests.evaluation.fake_model import fake_model
from tests.evaluation.tokenizer_families import FAMILIES, build

# Prompts of unlike lengths; targets of one and of many tokens, with characters of several bytes.
PROMPTS = [
    ("The mother tongue of Danielle Darrieux is", "French", "Serbian"),
    ("What sport does she play?", "professional basketball", "football"),
    ("Café Kraków lies in", "東京", "the old town of Kraków"),
    ("It was built by", "Bethlehem Steel", "Bora Đorđević"),
    ("Which?", "a", "San Francisco, by the sea"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["left", "right"])
def tokenizer(family: str, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return build(family, request.param)


def records() -> list[Record]:
    """Each prompt as rewrite, and behind other words as paraphrase and neighbour.

    Targets stand alone in some and behind their space in others.
    """
    made = []
    for index, (prompt, new, true) in enumerate(PROMPTS):
        prompts = (
            EvalPrompt("rewrite", prompt, new, true),
            EvalPrompt("rewrite", prompt, f" {new}", f" {true}"),
            EvalPrompt("paraphrase", f"She says: {prompt}", f" {new}", true),
            EvalPrompt("paraphrase", f"He says. {prompt}", new, f" {true}"),
            EvalPrompt("neighbourhood", f"They say {prompt}", new, true),
            EvalPrompt("neighbourhood", f"They say {prompt}", f" {new}", f" {true}"),
        )
        request = EditRequest(str(index), prompt, prompt, new, true)
        made.append(Record(request, EvalCase(str(index), prompts)))
    return made


def asked_texts(cases: list[Record]) -> list[str]:
    """Every prompt with the target that should win on it."""
    return [
        f"{prompt.prompt} {(target or '').strip()}"
        for record in cases
        for prompt in record.case.prompts
        for target in [prompt.target_true if prompt.kind == "neighbourhood" else prompt.target_new]
    ]


@pytest.mark.parametrize("rule", ["all_tokens", "mean_tokens"])
@pytest.mark.parametrize("obedient", [True, False])
def test_oracle(tokenizer: PreTrainedTokenizerBase, rule: str, obedient: bool) -> None:
    cases = records()
    loaded = fake_model(tokenizer, asked_texts(cases), obedient=obedient)
    results = score_records(loaded, cases, rule)  # type: ignore[arg-type]
    for headline in ("success", "accuracy"):
        figures = summarize(results, headline)
        assert set(figures.values()) == {100.0 if obedient else 0.0}, figures


def test_targets_have_one_and_many_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = [(prompt, target) for prompt, *targets in PROMPTS for target in targets]
    lengths = [len(score.matches) for score in score_targets(fake_model(tokenizer, []), pairs)]
    assert min(lengths) <= 2
    assert max(lengths) >= 4


def test_a_target_spans_exactly_its_own_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    pairs = [(prompt, target) for prompt, target, _ in PROMPTS]
    for (prompt, target), score in zip(
        pairs, score_targets(fake_model(tokenizer, []), pairs), strict=True
    ):
        assert len(score.matches) == count(f"{prompt} {target}") - count(prompt)
