"""Time the stages of a batch of edits, against the published algorithm and against the machine.

    python scripts/benchmark.py
    python scripts/benchmark.py --reference-edits 5 model=smollm2-135m \\
        model.path=models/smollm2-135m dataset=counterfact dataset.path=counterfact.json

What is edited is a configuration of `sphere-bench run`: any of its overrides can be given, such as
`device=cuda`, `edits.batch_size=100`, `values.precision=bfloat16` or
`model.values.loss_threshold=0` (no request finishes early). The first batch of the dataset is
edited; in the same process the reference, tests/reference, edits the first requests of that batch.

A row of the table holds what sphere-bench needs or reaches (`value`), what that is compared with
(`reference`: the plain algorithm, the machine, or the first steps), and how many times better it is
(`ratio`). Two jobs on one machine spoil each other's figures.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ["section", "name", "unit", "value", "reference", "ratio"]

if TYPE_CHECKING:
    import pandas


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    sys.path.insert(0, str(ROOT))  # where the package and the reference are
    from sphere_bench.commands.error_messages import complain

    try:
        table = measure(given)
    except Exception as error:
        return complain(error)
    print(table[SHOWN].to_string(index=False, na_rep="-", float_format="{:.4g}".format))
    print(f"table: {given.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("results/benchmark.parquet"))
    add(
        "--reference-edits",
        type=_count,
        default=5,
        metavar="N",
        help="requests that the slow reference edits and scores (5); 0 leaves it out",
    )
    add(
        "--growth-steps",
        type=_count,
        metavar="N",
        help="batches, one after another, of which the last are held to the first (100 on a CUDA "
        "device, else 5); 0 leaves them out",
    )
    add("--growth-edits", type=_count, default=10, metavar="N", help="edits in each of them (10)")
    add(
        "--statistics-tokens",
        type=_count,
        metavar="N",
        help="of text that key statistics are taken of (as many as a run takes); 0 leaves them out",
    )
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for sphere-bench run")
    return parser.parse_intermixed_args(arguments)


def _count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return int(text)


def measure(given: argparse.Namespace) -> "pandas.DataFrame":
    """Measure all there is, and write the table anew after each section: it survives a cut-off."""
    from benchmark_stages import Benchmark

    from sphere_bench.config.composition import compose_config
    from sphere_bench.run_folder import provenance

    config = compose_config(given.overrides)
    benchmark = Benchmark(config, given.reference_edits)
    steps = given.growth_steps
    if steps is None:
        steps = 100 if benchmark.device.type == "cuda" else 5
    facts = provenance.collect(config=asdict(config), device=str(benchmark.device))
    for section in (
        benchmark.memory,
        benchmark.stages,
        benchmark.evaluation,
        partial(benchmark.statistics, given.statistics_tokens),
        partial(benchmark.growth, steps, given.growth_edits),
    ):
        section()
        table = benchmark.table()
        table.attrs["provenance"] = facts
        write(table, given.out)
    return table


def write(table: "pandas.DataFrame", out: Path) -> None:
    """Write the table in one piece, in place of an earlier one."""
    from sphere_bench.files import atomic_file

    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as temporary:
        table.to_parquet(temporary)


if __name__ == "__main__":
    sys.exit(main())
