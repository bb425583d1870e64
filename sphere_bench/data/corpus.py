"""Texts for key statistics, read one at a time, so that a corpus need not fit into memory."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sphere_bench.assets import corpus_path
from sphere_bench.data.selection import shuffled
from sphere_bench.data.sources import (
    BUNDLED,
    JSON_LINES,
    json_rows,
    parquet_rows,
    reason,
    text_lines,
)
from sphere_bench.errors import SphereBenchError

KEY = "statistics.corpus"
TEXT_FIELDS = ("text", "passage")
TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, *JSON_LINES, ".parquet")
Order = Literal["random", "file"]
# The random order is the same for every run: runs that differ in `seed` share key statistics.
_SEED = 0
# How many texts of a random order are in memory at a time: of a file, and of a streamed dataset.
_TEXTS_AT_A_TIME = 65536
_HUB_BUFFER = 10_000
HUB_SOURCE = re.compile(
    r"(?P<name>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


class HubSource(NamedTuple):
    """A dataset on the Hugging Face hub, written ``name:config@revision``."""

    name: str
    config: str | None
    revision: str | None


def corpus_texts(source: str, key: str = KEY, order: Order = "file") -> Iterator[str]:
    """The texts of a corpus, one after another.

    Args:
        source: ``bundled`` (the tiny GPT-2's world), a .txt, .jsonl or .parquet file, or a dataset
            on the Hugging Face hub as ``name``, ``name:config`` or ``name:config@revision``, such
            as ``wikimedia/wikipedia:20231101.en``, which is streamed. In a text file, blank lines
            separate the texts; without blank lines, every line is a text. In JSONL and parquet,
            the texts are in the field ``text`` or ``passage``, or in the only field of texts.
        key: the configuration's key that names the corpus, for errors.
        order: as they stand in the corpus, or drawn at random, the same way every time. A file is
            then read once to count its texts and once more for the first ones drawn. A streamed
            dataset is not read to its end: its shards and a buffer of texts are shuffled.

    Raises:
        SphereBenchError: there is no such corpus, or it holds no text.
    """
    place = f"{key}={source}"
    empty = True
    for text in _texts(locate_corpus(source, key), place, order):
        if text.strip():
            empty = False
            yield text
    if empty:
        raise SphereBenchError(f"{place} holds no text")


def corpus_fingerprint(source: str) -> str:
    """SHA-256 that identifies a corpus: of a file's content, or of a hub dataset's name.

    A hub dataset's name includes its configuration and revision. No network is needed, so cached
    statistics are found offline. To notice that a dataset on the hub has changed, name a revision.
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
        SphereBenchError: there is neither.
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


def _texts(located: Path | HubSource, place: str, order: Order) -> Iterator[str]:
    if isinstance(located, HubSource):
        return _field_texts(_hub_rows(located, place, order), place)
    if order == "random":
        return _in_random_order(lambda: _file_texts(located, place))
    return _file_texts(located, place)


def _in_random_order(read: Callable[[], Iterator[str]]) -> Iterator[str]:
    """The texts that ``read`` gives at every call, drawn at random, with few in memory."""
    order = shuffled(sum(1 for _ in read()), _SEED)
    for start in range(0, len(order), _TEXTS_AT_A_TIME):
        drawn = order[start : start + _TEXTS_AT_A_TIME]
        wanted = frozenset(drawn)
        texts = {index: text for index, text in enumerate(read()) if index in wanted}
        yield from (texts[index] for index in drawn)


def _file_texts(located: Path, place: str) -> Iterator[str]:
    if located.suffix.lower() in TEXT_SUFFIXES:
        return _paragraphs(located, place)
    if located.suffix.lower() == ".parquet":
        return _field_texts(parquet_rows(located, place), place)
    return _field_texts(json_rows(located, place), place)


def _paragraphs(file: Path, place: str) -> Iterator[str]:
    apart = any(not line.strip() for line in text_lines(file, place))
    paragraph: list[str] = []
    for line in text_lines(file, place):
        if apart and line.strip():
            paragraph.append(line)
            continue
        yield "\n".join(paragraph) if apart else line
        paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _hub_rows(hub: HubSource, place: str, order: Order) -> Iterator[Any]:
    import datasets

    try:
        rows = datasets.load_dataset(
            hub.name, hub.config, revision=hub.revision, split="train", streaming=True
        )
        if order == "random":
            rows = rows.shuffle(seed=_SEED, buffer_size=_HUB_BUFFER)
        yield from rows
    # Each protocol's client raises exceptions of its own, but the user can do the same about all.
    except Exception as error:
        raise SphereBenchError(
            f"{place}: neither a file nor a dataset that can be streamed from "
            f"the Hugging Face hub ({reason(error)}): give a text, JSONL or parquet file"
        ) from error


def _field_texts(rows: Iterator[Any], place: str) -> Iterator[str]:
    """The text of every row. The first row decides which field holds it."""
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
