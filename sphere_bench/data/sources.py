"""Raw records from where they are: a file, a download or the Hugging Face hub."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from sphere_bench.assets import facts_counterfact_path, facts_zsre_path
from sphere_bench.errors import SphereBenchError

BUNDLED = "bundled"
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".json", *JSON_LINES, ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read_source(
    path: str | None, url: str | None, format_name: str, split: str | None
) -> tuple[str, list[Any]]:
    """All raw records of a dataset and the name of the place that they come from.

    Args:
        path: a JSON, JSONL or parquet file, a URL of one, a name on the Hugging Face hub, or
            ``bundled`` (the tiny GPT-2's facts); ``None`` downloads ``url``.
        url: the official download.
        format_name: ``zsre`` picks the ZsRE-like file of the bundled facts.
        split: which split of a dataset on the hub.

    Raises:
        SphereBenchError: nothing can be read there.
    """
    if path is None:
        if url is None:
            raise SphereBenchError("the dataset has no official download: set dataset.path=<file>")
        path = url
    if path == BUNDLED:
        bundled = facts_zsre_path() if format_name == "zsre" else facts_counterfact_path()
        return path, read_file(bundled, path)
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
    """The records of a .json, .jsonl or .parquet file.

    JSON is read as it stands: a table of columns would blur which record lacks a field.
    """
    suffix = (file.suffix if suffix is None else suffix).lower()
    if suffix not in SUFFIXES:
        raise SphereBenchError(f"{place}: cannot read '{suffix}': use {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            records = _read_parquet(file, place)
        elif suffix in JSON_LINES:
            records = _read_json_lines(file, place)
        else:
            records = _read_json(file, place)
    except OSError as error:
        raise SphereBenchError(f"{place}: cannot be read: {reason(error)}") from error
    if not records:
        raise SphereBenchError(f"{place} holds no records")
    return records


def download(url: str) -> Path:
    """The file behind ``url`` in the Hugging Face cache, downloaded where it is not there yet."""
    from datasets import DownloadConfig, DownloadManager

    # Without the server's tag a file that is in the cache is found offline too.
    settings = DownloadConfig(use_etag=False, max_retries=2)
    try:
        return Path(DownloadManager(download_config=settings).download(url))
    # Each protocol's client has exceptions of its own; what the user can do is the same.
    except Exception as error:
        # For an address out of reach the text is the address alone.
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


def _read_json_lines(file: Path, place: str) -> list[Any]:
    records = []
    for number, line in enumerate(_read_text(file, place).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise SphereBenchError(
                f"{place}: broken JSON in line {number}, record {len(records)}: {reason(error)}"
            ) from error
    return records


def _read_text(file: Path, place: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SphereBenchError(f"{place}: is not UTF-8 text: {reason(error)}") from error


def _read_parquet(file: Path, place: str) -> list[Any]:
    import pyarrow
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    # Its own cache: the shared one tells files apart by path and time, not by content.
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
        except (DatasetsError, pyarrow.ArrowException, ValueError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise SphereBenchError(f"{place}: broken parquet file: {reason(cause)}") from error
        records: list[Any] = table.to_list()
        return records
