"""Texts for key statistics, one at a time, so that a corpus need not fit into memory."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sphere_bench.assets import corpus_path
from sphere_bench.data.sources import BUNDLED, JSON_LINES, reason
from sphere_bench.errors import SphereBenchError

KEY = "statistics.corpus"
TEXT_FIELDS = ("text", "passage")
TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, *JSON_LINES, ".parquet")
HUB_SOURCE = re.compile(
    r"(?P<name>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


class HubSource(NamedTuple):
    """A dataset on the Hugging Face hub, written ``name:config@revision``."""

    name: str
    config: str | None
    revision: str | None


def corpus_texts(source: str, key: str = KEY) -> Iterator[str]:
    """The texts of a corpus, in its order.

    Args:
        source: ``bundled`` (the tiny GPT-2's world), a .txt, .jsonl or .parquet file, or a dataset
            on the Hugging Face hub as ``name``, ``name:config`` or ``name:config@revision``, such
            as ``wikimedia/wikipedia:20231101.en``, which is streamed. A text file holds paragraphs
            between blank lines or, without any, a text a line. JSONL and parquet hold theirs in
            ``text``, ``passage`` or the only field that is text.
        key: the configuration's key that names it, for errors.

    Raises:
        SphereBenchError: there is no such corpus, or no text in it.
    """
    place = f"{key}={source}"
    empty = True
    for text in _texts(locate_corpus(source, key), place):
        if text.strip():
            empty = False
            yield text
    if empty:
        raise SphereBenchError(f"{place} holds no text")


def corpus_fingerprint(source: str) -> str:
    """SHA-256 that tells corpora apart: a file's content, a hub dataset's name and revision.

    It needs no network, so statistics that are cached already can be found without one; pin a
    revision to notice that a dataset on the hub has changed.
    """
    located = locate_corpus(source)
    if isinstance(located, HubSource):
        return hashlib.sha256(json.dumps(["hub", *located]).encode()).hexdigest()
    digest = hashlib.sha256()
    with located.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def locate_corpus(source: str, key: str = KEY) -> Path | HubSource:
    """The file or the hub dataset that ``source`` names.

    Raises:
        SphereBenchError: it names neither.
    """
    place = f"{key}={source}"
    file = corpus_path() if source == BUNDLED else Path(source).expanduser()
    if file.is_file():
        if file.suffix.lower() not in SUFFIXES:
            raise SphereBenchError(
                f"{place}: cannot read '{file.suffix}': use {', '.join(SUFFIXES)}"
            )
        return file
    match = HUB_SOURCE.fullmatch(source)
    if match is None or file.suffix.lower() in SUFFIXES or file.is_dir():
        raise SphereBenchError(
            f"{place}: no such file; give a {', '.join(SUFFIXES)} file, "
            "a dataset's name on the Hugging Face hub, or bundled"
        )
    return HubSource(**match.groupdict())


def _texts(located: Path | HubSource, place: str) -> Iterator[str]:
    if isinstance(located, HubSource):
        return _field_texts(_hub_rows(located, place), place)
    if located.suffix.lower() in TEXT_SUFFIXES:
        return _paragraphs(located, place)
    if located.suffix.lower() == ".parquet":
        return _field_texts(_parquet_rows(located, place), place)
    return _field_texts(_json_rows(located, place), place)


def _paragraphs(file: Path, place: str) -> Iterator[str]:
    apart = any(not line.strip() for line in _lines(file, place))
    paragraph: list[str] = []
    for line in _lines(file, place):
        if apart and line.strip():
            paragraph.append(line)
            continue
        yield "\n".join(paragraph) if apart else line
        paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _lines(file: Path, place: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SphereBenchError(f"{place}: is not UTF-8 text: {reason(error)}") from error


def _json_rows(file: Path, place: str) -> Iterator[Any]:
    for number, line in enumerate(_lines(file, place), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SphereBenchError(
                f"{place}: broken JSON in line {number}: {reason(error)}"
            ) from error


def _parquet_rows(file: Path, place: str) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise SphereBenchError(f"{place}: broken parquet file: {reason(error)}") from error


def _hub_rows(hub: HubSource, place: str) -> Iterator[Any]:
    import datasets

    try:
        yield from datasets.load_dataset(
            hub.name, hub.config, revision=hub.revision, split="train", streaming=True
        )
    # Each protocol's client has exceptions of its own; what the user can do is the same.
    except Exception as error:
        raise SphereBenchError(
            f"{place}: neither a file nor a dataset that can be streamed from "
            f"the Hugging Face hub ({reason(error)}): give a text, JSONL or parquet file"
        ) from error


def _field_texts(rows: Iterator[Any], place: str) -> Iterator[str]:
    """The text of every row; which field holds it is decided on the first row."""
    field: str | None = None
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise SphereBenchError(
                f"{place}: record {number} must be an object with a field "
                f"{' or '.join(TEXT_FIELDS)}"
            )
        if field is None:
            field = _text_field(row, place)
        text = row.get(field)
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise SphereBenchError(f"{place}: record {number}: field '{field}' must be a text")


def _text_field(row: Mapping[str, Any], place: str) -> str:
    for name in TEXT_FIELDS:
        if name in row:
            return name
    names = [name for name, value in row.items() if isinstance(value, str)]
    if len(names) != 1:
        raise SphereBenchError(
            f"{place}: its texts must be in a field {' or '.join(TEXT_FIELDS)}, "
            f"or in the only one that is text; record 0 has {', '.join(map(str, row)) or 'none'}"
        )
    return names[0]
