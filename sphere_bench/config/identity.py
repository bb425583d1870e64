"""What of a configuration decides a run's results, and the contents that it only names."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphere_bench.config.target_arguments import find_target

# Keys, and nodes with all their keys: where a run happens, ends, is kept and is watched. The
# contents of the model, of the dataset and of given statistics decide, and their fingerprints are
# recorded.
_ELSEWHERE = (
    *("run", "device", "trackers", "checkpoint", "collapse", "objective"),
    *("statistics.cache", "statistics.path", "editor.held_out_per_dimension"),
    *("model.path", "dataset.path", "dataset.url", "dataset.loader.path", "dataset.loader.url"),
)
# These act only through the keys that refer to them, such as an editor's, a loader's, a probe's.
REFERRED = (
    *("model.layers", "model.values", "model.second_moment_weight", "model.editors"),
    "model.ability_tasks",
    *("editor.sphere", "values.context_tokens"),
    *(f"dataset.{name}" for name in ("path", "url", "format", "split", "target")),
    *("evaluation.every", "perplexity", "energy"),
)
# What decides how second moments are computed, and nothing where they are given.
_COMPUTED = (
    *(f"statistics.{name}" for name in ("corpus", "tokens", "tokens_per_text", "order")),
    *("statistics.max_length", "statistics.precision", "editor.tokens_per_dimension"),
)
# How work is cut into forwards, in whichever node.
_CUT = ("tokens_per_batch", "rows_per_batch")
# A key of this name, in whichever node, names a text; with one of the suffixes, a local file.
_CORPUS = "corpus"
# This corpus has no order of its own.
_GENERATED = "generated"
_CORPUS_SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".ndjson", ".parquet")
# Keys of these names, in whichever node, name a folder whose files with one of the suffixes count.
_FOLDERS = ("include_path", "data_path")
_FOLDER_SUFFIXES = (*_CORPUS_SUFFIXES, ".yaml", ".yml", ".py", ".csv", ".tsv")
# A list of this name, in whichever node, may name files beside other things.
_TASKS = "tasks"
_CONDITIONER = "editor.method.conditioner"
_SPHERE = ("alpha", "eta", "basis", "normalize_rows", "rank_rule")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; a list is one value."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def is_within(key: str, node: str) -> bool:
    """Whether a dotted key is ``node`` or lies below it."""
    return f"{key}.".startswith(f"{node}.")


def is_decisive(key: str) -> bool:
    """Whether a dotted key can decide a run's results, whatever the other keys are."""
    return not f"{key}.".startswith(_INDECISIVE) and key.rpartition(".")[2] not in _CUT


def _beginnings(nodes: Iterable[str]) -> tuple[str, ...]:
    """What ``key + "."`` begins with where a key is one of the nodes or lies below it."""
    return tuple(f"{node}." for node in nodes)


_INDECISIVE = _beginnings((*_ELSEWHERE, *REFERRED))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides a run's results, as dotted keys.

    Paths do not: contents do, see :func:`corpora` and the fingerprints of the model and of the
    dataset. Neither do keys without an effect, such as ``sphere.alpha`` when SPHERE is off, nor the
    length of the run, unless it changes which records come first.

    Args:
        config: the whole resolved configuration as plain containers.
    """
    flat = flatten(config)
    places = (key for key in _named_files(flat) if isinstance(flat[key], str))
    without = _beginnings((*_inactive(flat), *places))
    return {
        key: value
        for key, value in flat.items()
        if is_decisive(key) and not f"{key}.".startswith(without)
    }


def _inactive(flat: Mapping[str, Any]) -> Iterator[str]:
    """Keys and nodes that decide nothing next to the others."""
    if not flat.get("sphere.enabled", True):
        yield from (f"sphere.{name}" for name in _SPHERE)
    if flat.get("values.contexts") is not None:
        yield "editor.context_lengths"
    if flat.get("statistics.path") is not None:
        yield from _COMPUTED
    if flat.get("statistics.tokens") is not None:
        yield "editor.tokens_per_dimension"
    if flat.get("statistics.corpus") == _GENERATED:
        yield "statistics.order"
    # Without it, and with nothing to compensate, runs are as they were before there was the key.
    if not flat.get("editor.compensate") or not _is_transformed(flat):
        yield "editor.compensate"
    # As it was before there was the key: the runs keep their names.
    if flat.get("model.matmul_precision") == "highest":
        yield "model.matmul_precision"
    # At the milestone 0 all records of the run are scored on the unedited model.
    if not flat.get("edits.shuffle") and 0 not in flat.get("evaluation.milestones", []):
        yield "edits.total"
    for key, value in flat.items():
        node, _, name = key.rpartition(".")
        if is_within(node, "probes") and name == "every" and value == 0:
            yield node
        if name == "tokens" and value == 0:
            yield f"{node}.{_CORPUS}"


def _is_transformed(flat: Mapping[str, Any]) -> bool:
    """Whether something changes what the editor writes."""
    transforms = flat.get("editor.method.transforms")
    conditioned = any(is_within(key, _CONDITIONER) for key in flat if flat[key] is not None)
    return bool(flat.get("sphere.enabled", True) or transforms or conditioned)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key old -> new`` for every key whose value is another, both as a file gives them back.

    Args:
        before, now: dotted keys to plain values.
    """
    first, second = (json.loads(json.dumps(each, default=str)) for each in (before, now))
    return [
        f"{key} {first.get(key)} -> {second.get(key)}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def config_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain containers, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def corpora(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every text that decides results and is a local file, or the files of a folder.

    Args:
        config: the whole resolved configuration as plain containers.

    Returns:
        dotted keys, such as ``statistics.corpus``, to SHA-256. What does not exist is left out:
        whoever reads it reports that.
    """
    flat = flatten(config)
    without = _beginnings(_inactive(flat))
    return {
        key: files_digest(files)
        for key, files in _named_files(flat).items()
        if files and is_decisive(key) and not f"{key}.".startswith(without)
    }


def _named_files(flat: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The local files that a key names; none where they do not exist."""
    found: dict[str, list[Path]] = {}
    for key, value in flat.items():
        name = key.rpartition(".")[2]
        if name == _TASKS and isinstance(value, list):
            texts = (each for each in value if isinstance(each, str))
            found[key] = [file for file in map(Path, texts) if file.is_file()]
        if not isinstance(value, str):
            continue
        place = Path(value).expanduser()
        if name == _CORPUS and place.suffix.lower() in _CORPUS_SUFFIXES:
            found[key] = [place] if place.is_file() else []
        if name in _FOLDERS:
            found[key] = sorted(
                file for file in place.rglob("*") if file.suffix.lower() in _FOLDER_SUFFIXES
            )
    return found


def foreign_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the source of every ``_target_`` outside this package.

    Args:
        config: the whole resolved configuration as plain containers.

    Returns:
        targets to the SHA-256 of the file of their module: the one that ``_target_`` names,
        followed by the one that defines the object if that is another. A target that cannot be
        found or has no file is left out.
    """
    probes = {
        name: node for name, node in config.get("probes", {}).items() if node.get("every") != 0
    }
    acting = {**config, "probes": probes}
    sources = {target: _sources(target) for target in sorted(set(_targets(acting)))}
    return {target: files_digest(files) for target, files in sources.items() if files}


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a configuration, however deep, that is not this package's."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str) and not is_within(target, "sphere_bench"):
            yield target
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from _targets(child)


def _sources(target: str) -> list[Path]:
    try:
        found = find_target(target)
    except Exception:  # a module that is not ours may fail in any way
        return []
    named = target
    while named not in sys.modules:
        named = named.rpartition(".")[0]
    files = []
    for module in dict.fromkeys((named, getattr(found, "__module__", None) or named)):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and Path(file).is_file():
            files.append(Path(file))
    return files


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
