"""Texts for key statistics from every kind of source."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

from sphere_bench.data import corpus
from sphere_bench.data.corpus import corpus_fingerprint, corpus_texts
from sphere_bench.errors import SphereBenchError


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("c.txt", "one\ntwo\n", ["one", "two"]),
        ("c.txt", "one\nstill one\n\n\ntwo", ["one\nstill one", "two"]),
        ("c.jsonl", '{"text": "one", "title": "t"}\n\n{"text": "two"}\n', ["one", "two"]),
        ("c.jsonl", '{"passage": "one", "title": "t"}\n', ["one"]),
        ("c.jsonl", '{"id": 3, "body": "one"}\n', ["one"]),
        ("c.jsonl", '{"text": "one"}\n{"text": null}\n{"text": " "}\n', ["one"]),
    ],
)
def test_texts_of_a_file(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert list(corpus_texts(str(path))) == texts


def test_texts_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = [{"id": "1", "text": "one"}, {"id": "2", "text": None}, {"id": "3", "text": "three"}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert list(corpus_texts(str(path))) == ["one", "three"]


def test_a_hub_corpus_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None, **choices: Any) -> Any:
        assert (name, config) == ("wikimedia/wikipedia", "20231101.en")
        assert choices == {"revision": "abc", "split": "train", "streaming": True}
        return iter([{"id": "1", "text": "one"}, {"id": "2", "text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    texts = corpus_texts("wikimedia/wikipedia:20231101.en@abc")
    assert list(texts) == ["one", "two"]


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **choices: object) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SphereBenchError, match=r"\(no network\): give a text, JSONL") as caught:
        list(corpus_texts("wikimedia/wikipedia"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("c.txt", b"\n \n", "holds no text"),
        ("c.txt", b"\xff\xff", "is not UTF-8 text"),
        ("c.jsonl", b"", "holds no text"),
        ("c.jsonl", b'{"text": "a"}\n{', "broken JSON in line 2"),
        ("c.jsonl", b'{"text": "a"}\n{"text": 5}', "record 1: field 'text' must be a text"),
        ("c.jsonl", b"[1]", "record 0 must be an object"),
        ("c.jsonl", b'{"a": "x", "b": "y"}', "in a field text or passage, .* record 0 has a, b"),
        ("c.parquet", b"no", "broken parquet file"),
        ("c.csv", b"text", "cannot read '.csv'"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SphereBenchError, match=problem) as caught:
        list(corpus_texts(str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["missing.txt", "a b", "no/such/folder/x.jsonl", ""])
def test_a_missing_corpus_is_named(source: str) -> None:
    with pytest.raises(SphereBenchError, match=f"statistics.corpus={source}: no such file"):
        list(corpus_texts(source))
    with pytest.raises(SphereBenchError, match="no such file"):
        corpus_fingerprint(source)


def test_a_files_fingerprint_is_its_contents(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    one.write_text("text")
    same.write_text("text")
    other.write_text("texts")
    assert corpus_fingerprint(str(one)) == corpus_fingerprint(str(same))
    assert corpus_fingerprint(str(one)) != corpus_fingerprint(str(other))


def test_a_hub_corpus_fingerprint_tells_name_config_and_revision_apart() -> None:
    sources = ["wiki", "a/wiki", "a/wiki:en", "a/wiki:de", "a/wiki:en@main", "a/wiki@main"]
    assert len({corpus_fingerprint(source) for source in sources}) == len(sources)


def test_the_bundled_corpus_has_texts() -> None:
    texts = list(corpus_texts("bundled"))
    assert len(texts) > 100
    assert all(json.dumps(text) for text in texts)
    assert len(corpus_fingerprint("bundled")) == 64


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    file = tmp_path / "numbered.txt"
    file.write_text("\n".join(f"text {number}" for number in range(100)))
    return file


def test_a_random_order_is_always_the_same_and_not_the_files(numbered: Path) -> None:
    in_file = list(corpus_texts(str(numbered)))
    drawn = list(corpus_texts(str(numbered), order="random"))
    assert drawn != in_file and sorted(drawn) == sorted(in_file)
    assert drawn == list(corpus_texts(str(numbered), order="random"))
    # The beginning is from everywhere: of a file that is sorted, too.
    assert max(in_file.index(text) for text in drawn[:10]) > 50


def test_a_random_order_does_not_depend_on_how_many_texts_are_in_memory(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list(corpus_texts(str(numbered), order="random"))
    monkeypatch.setattr(corpus, "_TEXTS_AT_A_TIME", 7)
    assert list(corpus_texts(str(numbered), order="random")) == drawn


def test_a_streamed_dataset_is_shuffled_without_being_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []

    def rows(shards: list[int]) -> Iterator[dict[str, str]]:
        for shard in shards:
            for number in range(1000):
                read.append(number)
                yield {"text": f"text {number} of shard {shard}"}

    def load(*_: object, **__: object) -> Any:
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(corpus, "_HUB_BUFFER", 50)
    first = list(islice(corpus_texts("some/set", order="random"), 20))
    assert len(read) < 500
    assert first == list(islice(corpus_texts("some/set", order="random"), 20))
    in_order = list(islice(corpus_texts("some/set"), 20))
    assert in_order == [f"text {number} of shard 0" for number in range(20)]
    assert not set(first) <= set(in_order)
