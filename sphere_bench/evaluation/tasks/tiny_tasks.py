"""Tasks from the bundled tiny GPT-2's world, about what a usual run does not edit.

lm-eval finds the functions by the names in the YAML files beside this one.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from sphere_bench.assets import facts_counterfact_path, facts_zsre_path
from sphere_bench.data.sources import read_file

#: Runs of fewer edits of `tiny-counterfact` leave the facts alone.
FIRST_RECORD = 1200
RELATIONS = {
    "person": ("P103", "P19", "P106", "P1303"),
    "town": ("P17", "P206", "P190"),
    "work": ("P50", "P136", "P495"),
    "company": ("P159", "P1056"),
}
_KINDS = {relation: kind for kind, relations in RELATIONS.items() for relation in relations}


def kinds(**metadata: object) -> Mapping[str, Any]:
    """Names and what they are names of, as many of each kind, in turn."""
    of_kind: dict[str, list[str]] = {kind: [] for kind in RELATIONS}
    for fact in _facts():
        of_kind[_KINDS[fact["relation_id"]]].append(fact["subject"])
    rows = [
        [{"subject": subject, "kind": kind} for kind, subject in zip(of_kind, each, strict=True)]
        for each in zip(*of_kind.values(), strict=False)
    ]
    return _dataset(list(chain.from_iterable(rows)))


def questions(**metadata: object) -> Mapping[str, Any]:
    """Questions that the tiny GPT-2 has seen, and their true answers."""
    late = {fact["subject"] for fact in _facts()}
    return _dataset(
        [
            {"question": record["src"], "answer": record["pred"]}
            for record in read_file(facts_zsre_path(), "zsre.json")
            if record["subject"] in late
        ]
    )


def _facts() -> list[dict[str, Any]]:
    records = read_file(facts_counterfact_path(), "counterfact.json")
    return [record["requested_rewrite"] for record in records[FIRST_RECORD:]]


def _dataset(docs: list[dict[str, Any]]) -> Mapping[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(docs)}
