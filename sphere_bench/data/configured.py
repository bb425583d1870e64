"""The dataset that a configuration names."""

from dataclasses import replace

from sphere_bench.config.schema import Config
from sphere_bench.config.target_arguments import make_object
from sphere_bench.data.records import EditDataset
from sphere_bench.data.selection import select
from sphere_bench.errors import SphereBenchError


def build_dataset(config: Config) -> EditDataset:
    """The run's records.

    Raises:
        SphereBenchError: they cannot be read, are fewer than a batch, or make fewer steps than
            ``checkpoint.steps`` asks for.
    """
    edits = config.edits
    dataset = select(
        make_object(config.dataset.loader),
        name=config.dataset.name,
        total=edits.total,
        start=edits.start,
        shuffle=edits.shuffle,
        seed=config.seed,
        headline=config.dataset.headline,
        on_invalid=config.dataset.on_invalid,
    )
    count = len(dataset.records)
    if edits.batch_size > count:
        raise SphereBenchError(
            f"edits.batch_size={edits.batch_size} is larger than the dataset, which has {count} "
            "records: lower it"
        )
    last = -(-count // edits.batch_size)
    if any(step > last for step in config.checkpoint.steps):
        raise SphereBenchError(f"checkpoint.steps={config.checkpoint.steps}: the run has {last}")
    return dataset


def with_total(config: Config, total: int) -> Config:
    """The same configuration for so many records."""
    return replace(config, edits=replace(config.edits, total=total))
