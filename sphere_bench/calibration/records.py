"""The records that a calibration edits, which no later run should edit."""

from dataclasses import dataclass, replace

from sphere_bench.config.schema.calibration import CalibrateConfig
from sphere_bench.data.configured import build_dataset
from sphere_bench.data.records import EditDataset
from sphere_bench.errors import SphereBenchError


@dataclass(frozen=True)
class KeptOut:
    """Records that are kept out of later runs.

    Attributes:
        dataset: with these records alone.
        start: how many valid records of the dataset are before them.
        last: whether none are behind them.
    """

    dataset: EditDataset
    start: int
    last: bool

    def __str__(self) -> str:
        records = self.dataset.records
        case_ids = f"case {records[0].request.case_id} to {records[-1].request.case_id}"
        if not self.last:
            advice = f"edits.total={self.start}, or edits.start={self.start + len(records)}"
        else:
            advice = f"edits.total={self.start} or less" if self.start else "other records"
        return (
            f"{len(records)} records of {self.dataset.name}, from record {self.start} on "
            f"({case_ids}); runs leave them out with {advice}, in the file's order"
        )


def keep_out(config: CalibrateConfig) -> KeptOut:
    """The records that the configuration keeps out of later runs.

    Raises:
        SphereBenchError: the dataset has too few, or they cannot be read.
    """
    count, start = config.calibration.records, config.calibration.start
    every = replace(config.edits, total=None, start=0, batch_size=1, shuffle=False)
    dataset = build_dataset(replace(config, edits=every))
    first = len(dataset.records) - count if start is None else start
    records = dataset.records[max(first, 0) : first + count]
    if len(records) < count:
        behind = "" if start is None else f", calibration.start={start}"
        raise SphereBenchError(
            f"calibration.records={count}{behind}: {config.dataset.name} holds "
            f"{len(dataset.records)} records: ask for fewer"
        )
    last = first + count == len(dataset.records)
    return KeptOut(replace(dataset, records=records), first, last)
