"""SPHERE's four tasks (arXiv 2510.01172), from the files that its authors publish.

As published, in ``*_published.yaml``: the first items, and what that code counts as right. In the
other files: items in a random order that is always the same, no rationale of the right answer, and
an invalid answer is wrong. lm-eval finds the functions by the names in the YAML files.
"""

import csv
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sphere_bench.data.sources import read_file, text_lines
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.answers import normalized

Doc = dict[str, Any]
#: The right answer and the one that was said; :data:`INVALID` for what is none.
Labels = Sequence[tuple[str, str]]

FILES = {
    "gsm8k": "test-reasoning.jsonl",
    "nq": "test-OpenDomainQA.jsonl",
    "boolq": "test-ClosedDomainQA.jsonl",
    "rte": "test-NLI.tsv",
}
INVALID = "invalid"
OPTIONS = (("yes", "no"), ("true", "false"))
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _gsm8k(file: Path) -> Iterable[Doc]:
    for record in read_file(file, str(file)):
        rationale, _, number = record["answer"].partition("#### ")
        yield {"question": record["question"], "rationale": rationale, "number": number}


def _nq(file: Path) -> Iterable[Doc]:
    for record in read_file(file, str(file)):
        yield {
            "question": record["question"],
            "passage": record["output"][0],
            "answers": record["answer"],
        }


def _boolq(file: Path) -> Iterable[Doc]:
    for record in read_file(file, str(file)):
        label = "yes" if record["answer"] else "no"
        yield {"passage": record["passage"], "question": record["question"], "label": label}


def _rte(file: Path) -> Iterable[Doc]:
    # Quotes are not closed in every field, which only a lenient reader takes.
    lines = (f"{line}\n" for line in text_lines(file, str(file)))
    for record in csv.DictReader(lines, delimiter="\t"):
        label = "false" if record["label"] == "not_entailment" else "true"
        yield {**{name: record[name] for name in ("sentence1", "sentence2")}, "label": label}


def _dataset(
    name: str, read: Callable[[Path], Iterable[Doc]], shuffled: bool
) -> Callable[..., Mapping[str, Any]]:
    """What lm-eval calls for a task's items: its argument is the ``metadata`` of the task."""

    def load(data_path: str | None = None, **metadata: object) -> Mapping[str, Any]:
        from datasets import Dataset

        if data_path is None:
            raise SphereBenchError(
                "SPHERE's tasks need their files: set probes.ability.data_path to the folder with "
                + ", ".join(FILES.values())
            )
        file = Path(data_path).expanduser() / FILES[name]
        if not file.is_file():
            raise SphereBenchError(f"probes.ability.data_path={data_path}: no {FILES[name]} there")
        try:
            docs = list(read(file))
        except (KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
            raise SphereBenchError(
                f"{file}: is not as SPHERE's authors publish it: {type(error).__name__} {error}"
            ) from error
        if shuffled:
            random.Random(f"sphere {name}").shuffle(docs)
        return {"test": Dataset.from_list(docs)}

    return load


gsm8k_published, gsm8k = (_dataset("gsm8k", _gsm8k, shuffled) for shuffled in (False, True))
nq_published, nq = (_dataset("nq", _nq, shuffled) for shuffled in (False, True))
boolq_published, boolq = (_dataset("boolq", _boolq, shuffled) for shuffled in (False, True))
rte_published, rte = (_dataset("rte", _rte, shuffled) for shuffled in (False, True))


def number_within(doc: Doc, said: Sequence[str]) -> dict[str, float]:
    """As published: the right number is somewhere in what was said, behind the last question."""
    last = said[0].split("Therefore, the answer (arabic numerals) is:")[-1]
    return {"acc": float(doc["number"] in last)}


def first_number(doc: Doc, said: Sequence[str]) -> dict[str, float]:
    """The first number that was said is the right one, whatever its commas and zeros."""
    found = _NUMBER.search(said[0])
    right = _value(doc["number"])
    return {"acc": float(found is not None and _value(found[0]) == right)}


def any_span(doc: Doc, said: Sequence[str]) -> dict[str, float]:
    """As published: some words of the answer, one behind the other, are a right answer."""
    words = normalized(said[0].split("Answer:")[-1]).split()
    spans = {
        " ".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    }
    return {"acc": float(any(normalized(answer) in spans for answer in doc["answers"]))}


def word_within(doc: Doc, said: Sequence[str]) -> dict[str, Any]:
    """As published: the first of the two words that occurs anywhere, as in "not" for "no"."""
    text = said[0].split("answer:")[-1].lower()
    answer = next((option for option in _options(doc) if option in text), INVALID)
    return {**_judged(doc, answer), "acc": (doc["label"], answer)}


def first_word(doc: Doc, said: Sequence[str]) -> dict[str, Any]:
    """The first word is the answer."""
    word = next(iter(re.findall(r"\w+", said[0].lower())), "")
    answer = word if word in _options(doc) else INVALID
    return {**_judged(doc, answer), "acc": float(answer == doc["label"])}


def accuracy_of_valid(labels: Labels) -> float:
    """As published: invalid answers are left out; 0 where there are no others."""
    valid = [right == answer for right, answer in labels if answer != INVALID]
    return sum(valid) / len(valid) if valid else 0.0


def weighted_f1(labels: Labels) -> float:
    """F1 of each right answer, weighted by how often it is the right one."""
    right, said, both = _counts(labels)
    # 2 tp / (2 tp + fp + fn) of a class is 2 tp / (how often it is right + how often it is said).
    of_class = {name: 2 * both[name] / (right[name] + said[name]) for name in right}
    return sum(right[name] * of_class[name] for name in right) / len(labels)


def matthews(labels: Labels) -> float:
    """Matthews' correlation coefficient; an invalid answer is a third class. 0 without variance."""
    right, said, both = _counts(labels)
    count = len(labels)
    covariance = count * both.total() - sum(right[name] * said[name] for name in right)
    variances = [count**2 - sum(each**2 for each in of.values()) for of in (right, said)]
    return covariance / math.sqrt(math.prod(variances)) if all(variances) else 0.0


def _counts(labels: Labels) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """How often each answer is the right one, is said, and both."""
    right, said = zip(*labels, strict=True)
    return Counter(right), Counter(said), Counter(each for each, other in labels if each == other)


def _judged(doc: Doc, answer: str) -> dict[str, Any]:
    labels = (doc["label"], answer)
    return {"invalid": float(answer == INVALID), "f1": labels, "mcc": labels}


def _options(doc: Doc) -> tuple[str, str]:
    return next(options for options in OPTIONS if doc["label"] in options)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
