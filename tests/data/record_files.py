"""The records that a run gets from a file."""

from typing import Any

from sphere_bench.data.record_file import RecordFile
from sphere_bench.data.records import EditDataset
from sphere_bench.data.selection import select

FILE_KEYS = ("url", "format", "split", "target")


def load(path: str | None = None, **choices: Any) -> EditDataset:
    """What ``dataset.path``, the file's other keys and those of the stream give together."""
    of_file = {key: choices.pop(key) for key in FILE_KEYS if key in choices}
    return select(RecordFile(path, **of_file), name="mine", **choices)
