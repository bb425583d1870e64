"""Whatever a file holds, loading it gives records or one line that says what is wrong."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sphere_bench.data.counterfact import COUNTERFACT, REWRITE_FIELDS, TARGET_FIELDS
from sphere_bench.data.easyedit import EASYEDIT
from sphere_bench.data.portability import ASKED, GROUPS, ONE_QUESTION
from sphere_bench.data.qaedit import LOCALITY_FIELDS, QAEDIT
from sphere_bench.data.record_file import AUTO
from sphere_bench.data.zsre import zsre_format
from sphere_bench.errors import SphereBenchError
from tests.data.record_files import load
from tests.fuzzing import fuzz

FORMATS = (COUNTERFACT, EASYEDIT, zsre_format(), QAEDIT)
INNER = (*REWRITE_FIELDS, *TARGET_FIELDS, *ONE_QUESTION, *GROUPS, *ASKED, *LOCALITY_FIELDS)
NAMES = sorted({*INNER, *(name for f in FORMATS for name in f.known)})
# Few texts, so that subjects turn up in prompts and ids twice.
TEXTS = st.sampled_from(["", " ", "a", "a b", "{} b", "{} {}", "\ud800", "\n"]) | st.text()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=8)
    ),
    max_leaves=12,
)


def objects(*names: str, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects that have the fields of a format, mostly of the right type."""
    usual = TEXTS | st.lists(TEXTS, max_size=3) | VALUES
    return st.fixed_dictionaries({}, optional={name: values.get(name, usual) for name in names})


TARGETS = objects(*TARGET_FIELDS)
REWRITES = objects(*REWRITE_FIELDS, target_new=TARGETS, target_true=TARGETS)
PORTABLE = objects(
    *ONE_QUESTION, *GROUPS, **dict.fromkeys(GROUPS, st.lists(objects(*ASKED), max_size=2))
)
RECORDS = st.one_of(
    objects(*COUNTERFACT.known, requested_rewrite=REWRITES),
    objects(*EASYEDIT.known, portability=PORTABLE),
    objects(*FORMATS[2].known, portability=PORTABLE),
    objects(*QAEDIT.known, locality=st.lists(objects(*LOCALITY_FIELDS), max_size=2)),
    VALUES,
)


def check(content: bytes, suffix: str, **choices: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"facts{suffix}"
        path.write_bytes(content)
        try:
            dataset = load(str(path), **choices)
        except SphereBenchError as error:
            assert "\n" not in str(error)
            return
    assert dataset.records
    for record in dataset.records:
        request = record.request
        assert request.prompt.count(request.subject) == 1
        assert request.target_new.strip()
        assert record.case.prompts[0].kind == "rewrite"
        assert all(prompt.prompt.strip() for prompt in record.case.prompts)


@fuzz(300)
@given(
    records=st.lists(RECORDS, max_size=4) | VALUES,
    format=st.sampled_from([AUTO, *(known.name for known in FORMATS)]),
    on_invalid=st.sampled_from(["error", "skip"]),
    target=st.sampled_from(["answers", "alt"]),
)
def test_any_json(records: Any, **choices: Any) -> None:
    check(json.dumps(records).encode(), ".json", **choices)


@fuzz(100)
@given(content=st.binary(), suffix=st.sampled_from([".json", ".jsonl"]))
def test_any_bytes(content: bytes, suffix: str) -> None:
    check(content, suffix)
