"""`sphere-bench stats`: the key statistics of a configuration, ahead of its runs."""

from collections.abc import Sequence

from sphere_bench.commands.hydra_entry import hydra_main
from sphere_bench.config.schema import Config


def main(arguments: Sequence[str]) -> int:
    """The verb: one configuration, or with --multirun one after another."""
    return hydra_main(precompute, "stats", arguments, has_folder=False)


def precompute(config: Config) -> None:
    """Put the second moments that the configuration's runs need into the cache.

    Where ``statistics.path`` gives them, check that they fit the model.
    """
    from sphere_bench.build import build_model, key_statistics

    statistics = key_statistics(config, build_model(config))
    for layer, moment in statistics.second_moments().items():
        print(f"layer {layer}: second moment of {moment.shape[0]}-dimensional keys")
    statistics.held_out_moments()
    print(f"in {statistics.place}")
