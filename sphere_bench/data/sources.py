"""Reads raw records from a file, a download or the Hugging Face hub."""

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from sphere_bench import assets
from sphere_bench.errors import SphereBenchError

BUNDLED = "bundled"
JSON_LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".json", *JSON_LINES, ".parquet", *DELIMITERS)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read_source(
    path: str | None, url: str | None, format_name: str, split: str | None
) -> tuple[str, list[Any]]:
    """All raw records of a dataset, and the name of their place for messages.

    Args:
        path: a JSON, JSONL, parquet, CSV or TSV file, a URL of one, a name on the Hugging Face hub
            or ``bundled`` (the tiny GPT-2's facts); ``None`` downloads ``url``.
        url: the official download.
        format_name: with ``zsre`` or ``qaedit`` the bundled facts are those in that format.
        split: which split of a dataset on the hub.

    Raises:
        SphereBenchError: no records can be read from there.
    """
    if path is None:
        if url is None:
            raise SphereBenchError("the dataset has no official download: set dataset.path=<file>")
        path = url
    if path == BUNDLED:
        facts = {"zsre": assets.facts_zsre_path, "qaedit": assets.facts_qaedit_path}
        return path, read_file(facts.get(format_name, assets.facts_counterfact_path)(), path)
    if "://" in path:
        return path, read_file(download(path), path, Path(path.split("?")[0]).suffix)
    file = Path(path).expanduser()
    if file.is_file():
        return path, read_file(file, path)
    if file.is_dir():
        raise SphereBenchError(f"dataset.path={path} is a folder: give the file itself")
    if file.suffix not in SUFFIXES and HUB_NAME.fullmatch(path):
        return path, read_hub(path, split)
    raise SphereBenchError(f"dataset.path={path}: no such file")


def read_file(file: Path, place: str, suffix: str | None = None) -> list[Any]:
    """The records of a file. Its suffix decides how it is read.

    JSON is not read as a table of columns, because that would hide which record lacks a field. The
    cells of a CSV or TSV file are texts, so it can hold EasyEdit's format with one text per field.
    """
    suffix = (file.suffix if suffix is None else suffix).lower()
    if suffix not in SUFFIXES:
        raise SphereBenchError(f"{place}: cannot read '{suffix}': use {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            records = list(parquet_rows(file, place))
        elif suffix in DELIMITERS:
            records = _read_table(file, place, DELIMITERS[suffix])
        elif suffix in JSON_LINES:
            records = list(json_rows(file, place))
        else:
            records = _read_json(file, place)
    except OSError as error:
        raise SphereBenchError(f"{place}: cannot be read: {reason(error)}") from error
    if not records:
        raise SphereBenchError(f"{place} holds no records")
    return records


def download(url: str) -> Path:
    """The file of ``url`` in the Hugging Face cache; it is downloaded if it is not there."""
    from datasets import DownloadConfig, DownloadManager

    # Without the server's tag, a file in the cache is found offline, too.
    settings = DownloadConfig(use_etag=False, max_retries=2)
    try:
        return Path(DownloadManager(download_config=settings).download(url))
    # Each protocol's client raises exceptions of its own, but the user can do the same about all.
    except Exception as error:
        # If the address cannot be reached, the error's text is nothing but the address.
        why = "not reachable" if str(error) == url else reason(error)
        raise SphereBenchError(
            f"cannot download {url} ({why}): get it on a machine with a network and set "
            "dataset.path=<file>"
        ) from error


def read_hub(name: str, split: str | None) -> list[Any]:
    """The records of a dataset on the Hugging Face hub."""
    import datasets

    try:
        found = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise SphereBenchError(
            f"dataset.path={name}: neither a file nor a dataset that can be loaded from the "
            f"Hugging Face hub ({reason(error)}): set dataset.path=<file>"
        ) from error
    if isinstance(found, dict):
        if len(found) > 1:
            raise SphereBenchError(
                f"dataset.path={name} has the splits {', '.join(map(str, found))}: "
                "set dataset.split to one of them"
            )
        (found,) = found.values()
    records: list[Any] = found.to_list()
    if not records:
        raise SphereBenchError(f"{name} holds no records")
    return records


def reason(error: Exception) -> str:
    """The beginning of an error's text on one line, or its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _read_json(file: Path, place: str) -> list[Any]:
    content = _read_text(file, place)
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        hint = " (one record a line? name it .jsonl)" if "Extra data" in str(error) else ""
        raise SphereBenchError(f"{place}: broken JSON: {reason(error)}{hint}") from error
    if not isinstance(records, list):
        raise SphereBenchError(
            f"{place}: must hold a list of records, not one {type(records).__name__}"
        )
    return records


def json_rows(file: Path, place: str) -> Iterator[Any]:
    """The values of a file with one JSON value in each line, as they are read.

    Raises:
        SphereBenchError: a line is no JSON.
    """
    record = 0
    for number, line in enumerate(text_lines(file, place), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SphereBenchError(
                f"{place}: broken JSON in line {number}, record {record}: {reason(error)}"
            ) from error
        record += 1


def text_lines(file: Path, place: str) -> Iterator[str]:
    """The lines of a text file, as they are read.

    Raises:
        SphereBenchError: it is no text.
    """
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SphereBenchError(f"{place}: is not UTF-8 text: {reason(error)}") from error


def _read_text(file: Path, place: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SphereBenchError(f"{place}: is not UTF-8 text: {reason(error)}") from error


def _read_table(file: Path, place: str, delimiter: str) -> list[Any]:
    """Rows below a header of field names. An empty cell is a missing field."""
    rows = csv.reader(StringIO(_read_text(file, place)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise SphereBenchError(f"{place}: its header names a field twice")
        records: list[Any] = []
        for cells in rows:
            if len(cells) > len(header):
                raise SphereBenchError(
                    f"{place}: line {rows.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}: put texts with a {delimiter!r} in quotes"
                )
            if cells:
                filled = zip(header, cells, strict=False)
                records.append({name: cell for name, cell in filled if cell.strip()})
    except csv.Error as error:
        raise SphereBenchError(
            f"{place}: broken table in line {rows.line_num}: {reason(error)}"
        ) from error
    return records


def parquet_rows(file: Path, place: str) -> Iterator[Any]:
    """The rows of a parquet file, batch by batch.

    Raises:
        SphereBenchError: the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    # A text that is not valid UTF-8 raises a ValueError.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SphereBenchError(f"{place}: broken parquet file: {reason(error)}") from error
