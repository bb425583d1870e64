"""Files that were right once: cut short, a bit flipped, or one place holding something else."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sphere_bench.assets import corpus_path, facts_counterfact_path, facts_zsre_path
from sphere_bench.data.corpus import corpus_texts
from sphere_bench.errors import SphereBenchError
from tests.data.test_load_fuzz import check
from tests.fuzzing import damaged, fuzz, mutated

EASYEDIT = {
    "prompt": "The mother tongue of Danielle is",
    "subject": "Danielle",
    "target_new": "English",
    "ground_truth": "French",
    "rephrase_prompt": ["Danielle was born to speak"],
    "locality_prompt": ["The capital of France is"],
    "locality_ground_truth": ["Paris"],
    "case_id": 7,
}
FORMATS: dict[str, list[dict[str, Any]]] = {
    "counterfact": json.loads(facts_counterfact_path().read_text())[:2],
    "zsre": json.loads(facts_zsre_path().read_text())[:2],
    "easyedit": [EASYEDIT, {**EASYEDIT, "case_id": 8}],
}


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "facts.parquet"
        Dataset.from_list(records).to_parquet(file)
        return file.read_bytes()


PARQUET = as_parquet(FORMATS["easyedit"])


@pytest.mark.parametrize("name", FORMATS)
@fuzz(80)
@given(data=st.data())
def test_a_mutated_record(name: str, data: st.DataObject) -> None:
    check(json.dumps(data.draw(mutated(FORMATS[name]))).encode(), ".json")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@fuzz(60)
@given(data=st.data())
def test_a_damaged_text(suffix: str, data: st.DataObject) -> None:
    records = FORMATS["easyedit"]
    lines = "\n".join(map(json.dumps, records)) if suffix == ".jsonl" else json.dumps(records)
    check(data.draw(damaged(lines.encode())), suffix)


@fuzz(25)
@given(content=damaged(PARQUET))
def test_a_damaged_parquet_file(content: bytes) -> None:
    check(content, ".parquet")


DEEP = 100_000
ODD: dict[str, Callable[[str], str]] = {
    "a key twice": lambda text: text.replace('"subject"', '"subject": "x", "subject"', 1),
    "deep lists": lambda text: text.replace('"Danielle"', "[" * DEEP + "]" * DEEP, 1),
    "deep objects": lambda text: text.replace('"Danielle"', '{"a":' * DEEP + "1" + "}" * DEEP, 1),
    "a huge number": lambda text: text.replace("7", "7" * 5000),
    "a huge exponent": lambda text: text.replace("7", "7e99999"),
    "a number that is none": lambda text: text.replace("7", "NaN"),
    "half a surrogate": lambda text: text.replace("English", "\\ud83d"),
    "characters of no width": lambda text: text.replace("English", "\\u200b\\ufeff"),
    "right to left": lambda text: text.replace("Danielle", "\\u202eDanielle"),
    "null characters": lambda text: text.replace("English", "\\u0000"),
}


@pytest.mark.parametrize("oddity", ODD.values(), ids=ODD.keys())
def test_odd_json(oddity: Callable[[str], str]) -> None:
    check(oddity(json.dumps([EASYEDIT])).encode(), ".json")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
@fuzz(30)
@given(data=st.data())
def test_a_damaged_corpus(suffix: str, data: st.DataObject) -> None:
    lines = corpus_path().read_text().splitlines()[:5]
    content = {
        ".txt": "\n".join(lines).encode(),
        ".jsonl": "\n".join(json.dumps({"text": line}) for line in lines).encode(),
        ".parquet": PARQUET,
    }[suffix]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"corpus{suffix}"
        file.write_bytes(data.draw(damaged(content)))
        try:
            assert all(text.strip() for text in corpus_texts(str(file)))
        except SphereBenchError as error:
            assert "\n" not in str(error)
