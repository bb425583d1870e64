"""Raw records from files, downloads and the hub, and errors that say what to do."""

import csv
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from sphere_bench.data.records import EditRequest
from sphere_bench.data.sources import read_source
from sphere_bench.errors import SphereBenchError
from tests.data.record_files import load

RECORDS: list[dict[str, Any]] = [
    {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "{} lies in",
            "relation_id": "P17",
            "subject": f"City {number}.",
            "target_new": {"str": "Peru", "id": "Q419"},
            "target_true": {"str": "Chad", "id": "Q657"},
        },
        # Unequal lengths, and a field that some records lack.
        "paraphrase_prompts": [f"City {number}. is in"] * (number % 3),
        "neighborhood_prompts": ["Trujillo lies in"],
        **({"generation_prompts": ["Trujillo"]} if number % 2 else {}),
    }
    for number in range(5)
]


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """The address of a folder that is served over HTTP, and the server."""
    pytest.importorskip("aiohttp", reason="downloads need fsspec[http]")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    handler = functools.partial(Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()


def write_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS), encoding="utf-8")


def write_lines(path: Path) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n\n" for record in RECORDS), encoding="utf-8")


def write_parquet(path: Path) -> None:
    datasets.Dataset.from_list(RECORDS).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("f.json", write_json), ("f.jsonl", write_lines), ("f.parquet", write_parquet)],
)
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, name: str, write: Any) -> None:
    write_json(tmp_path / "reference.json")
    write(tmp_path / name)
    expected = load(str(tmp_path / "reference.json"))
    assert len(expected.records) == 5
    assert load(str(tmp_path / name)) == expected


def test_a_parquet_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "facts.parquet"
    for records in (RECORDS, RECORDS[:2]):
        datasets.Dataset.from_list(records).to_parquet(path)
        assert len(load(str(path)).records) == len(records)


@pytest.mark.parametrize("columns", [{"prompt": []}, {}])
def test_an_empty_parquet_file_holds_no_records(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = tmp_path / "facts.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(SphereBenchError, match="holds no records"):
        load(str(path))


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_table_of_texts_is_easyedits_format(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    rows = [
        ["case_id", "prompt", "subject", "target_new", "ground_truth", "rephrase_prompt"],
        ["7", "Rome lies in", "Rome", "Peru", "Italy", "Where, she asks, is\nRome?\tIn"],
        ["NA", "Oslo lies in", "Oslo", "null", "", ""],
    ]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    first, second = load(str(path)).records
    assert first.request == EditRequest("7", "Rome lies in", "Rome", "Peru", "Italy")
    assert [prompt.prompt for prompt in first.case.prompts] == ["Rome lies in", rows[1][5]]
    # Words that some readers of tables take for a missing value are texts.
    assert second.request == EditRequest("NA", "Oslo lies in", "Oslo", "null", None)
    assert len(second.case.prompts) == 1


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(RECORDS), encoding="utf-8-sig")
    assert len(load(str(path)).records) == 5


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("f.json", b"[{]", "broken JSON"),
        ("f.json", b'{"a": 1}\n{"a": 2}', "broken JSON.*name it .jsonl"),
        ("f.json", b'{"a": 1}', "must hold a list of records, not one dict"),
        ("f.json", b"[]", "holds no records"),
        ("f.json", b"[" * 100_000, "broken JSON"),
        ("f.json", b'["\xff"]', "is not UTF-8 text"),
        ("f.jsonl", b'{"a": 1}\n\n{"a"', "broken JSON in line 3, record 1"),
        ("f.jsonl", b"\n", "holds no records"),
        ("f.parquet", b"PAR1 no", "broken parquet file"),
        ("f.csv", b"a,b", "holds no records"),
        ("f.csv", b"", "holds no records"),
        ("f.csv", b"prompt,prompt\na,b", "header names a field twice"),
        ("f.csv", b"prompt,subject\n\na,b,c", "line 3 has 3 cells, the header 2: put texts with"),
        ("f.csv", b'prompt,subject\n"a', "broken table in line 2"),
        ("f.csv", b"a;b\nc;d", "record 0 has the fields 'a;b': of none of the formats"),
        ("f.xlsx", b"a,b", "cannot read '.xlsx': use .json, .jsonl, .ndjson, .parquet, .csv, .tsv"),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SphereBenchError, match=problem) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "no/such/folder/facts.parquet", "/missing"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(SphereBenchError, match=f"dataset.path={name}: no such file"):
        load(name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SphereBenchError, match="is a folder: give the file itself"):
        load(str(tmp_path))


def test_without_path_and_download_the_mend_is_a_path() -> None:
    with pytest.raises(SphereBenchError, match=r"set dataset\.path=<file>"):
        load()


def test_the_download_is_kept_for_later_runs_offline(
    tmp_path: Path, served: tuple[str, Any]
) -> None:
    address, server = served
    write_json(tmp_path / "facts.json")
    first = load(url=f"{address}/facts.json")
    assert len(first.records) == 5
    server.shutdown()
    server.server_close()
    assert load(url=f"{address}/facts.json") == first


def test_a_failing_download_names_the_mend(served: tuple[str, Any]) -> None:
    with pytest.raises(SphereBenchError) as caught:
        load(url=f"{served[0]}/missing.json")
    message = str(caught.value)
    assert "cannot download http://" in message and "dataset.path=<file>" in message
    assert "\n" not in message


def test_a_hub_dataset_with_one_split_needs_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list(RECORDS)

    def found(name: str, split: str | None) -> Any:
        assert name == "someone/facts"
        both = datasets.DatasetDict({"train": table, "test": table.select([0])})
        return both[split] if split else both

    monkeypatch.setattr(datasets, "load_dataset", found)
    with pytest.raises(SphereBenchError, match=r"splits train, test: set dataset\.split"):
        load("someone/facts")
    assert len(load("someone/facts", split="test").records) == 1
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: datasets.DatasetDict({"train": table})
    )
    assert len(load("someone/facts").records) == 5


def test_a_hub_out_of_reach_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, split: str | None) -> Any:
        raise ConnectionError(f"Couldn't reach '{name}'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SphereBenchError) as caught:
        read_source("someone/facts", None, "auto", None)
    message = str(caught.value)
    assert "dataset.path=someone/facts" in message and "set dataset.path=<file>" in message
    assert "\n" not in message
