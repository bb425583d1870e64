"""Answer the three claims on a real model: make the runs, draw the tables, check the numbers.

    python -m scripts.claims run      # goes on with what is there, and makes the tables
    python -m scripts.claims tables   # results/claims from the runs that have ended
    python -m scripts.claims check    # recomputes the page's tables and effects.csv

`--model` is what scripts/fetch_smollm2.py writes. `--data` holds `counterfact_easyedit.json`,
`zsre_mend.json` and `downstream/`, the four files of the paper's tasks. What is run, and how it is
decided, stands in results/claims/PROTOCOL.md; `make claims` is the first. Two of them at a time
share the runs.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.claims_tables import Names, check_fit_to_publish, check_tables, write_tables
from sphere_bench.data.facts import fact_of, target_of
from sphere_bench.data.record_file import RecordFile
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results" / "claims-runs"
PAGE = ROOT / "results" / "claims"
#: CounterFact's records that have been used for choices: so many from the beginning of those
#: without conflicts, and those from this one of the file on, which `calibrate` takes.
CHOICES = 4000
CALIBRATION = 19_970
#: Passages that perplexity is taken on, so many from the end; the others are ordinary text.
HELD_OUT_PASSAGES = 200
SEEDS = (0, 1, 2)
THREE_SEEDS = ("memit", "memit-seq", "rect", "alphaedit")
ONE_SEED = ("prune", "ft")
PUBLISHED_CODE = ("memit", "alphaedit")
ZSRE = ("memit", "alphaedit")


class Planned(NamedTuple):
    """One run of the protocol."""

    dataset: str
    editor: str
    sphere: str
    seed: int
    alpha: float | None = None
    eta: float | None = None

    @property
    def swept(self) -> list[str]:
        """What the exploratory sweep sets, as overrides."""
        both = (("sphere.alpha", self.alpha), ("sphere.eta", self.eta))
        return [f"{key}={value}" for key, value in both if value is not None]

    @property
    def name(self) -> str:
        parts = [self.dataset, self.editor, self.sphere, *self.swept, f"seed{self.seed}"]
        return "-".join(parts).replace("sphere.", "").replace("=", "")


def plan() -> Iterator[Planned]:
    """All runs, in the order in which they are made: every pair of seed 0 first."""
    for editor in (*THREE_SEEDS, *ONE_SEED):
        for sphere in ("off", "paper"):
            yield Planned("counterfact", editor, sphere, 0)
    for editor in PUBLISHED_CODE:
        yield Planned("counterfact", editor, "published-code", 0)
    for editor in ZSRE:
        for sphere in ("off", "paper"):
            yield Planned("zsre", editor, sphere, 0)
    for seed in SEEDS[1:]:
        for editor in THREE_SEEDS:
            for sphere in ("off", "paper"):
                yield Planned("counterfact", editor, sphere, seed)


def sweep() -> Iterator[Planned]:
    """What is looked at where SPHERE does not help: exploratory."""
    for alpha in (0.2, 0.5, 1.0):
        yield Planned("counterfact", "memit", "paper", 0, alpha=alpha)
    for eta in (0.3, 0.7):
        yield Planned("counterfact", "memit", "paper", 0, eta=eta)


def names() -> Names:
    """Of the planned runs, and of the sweep's with the pair that they stand beside."""
    pair = [Planned("counterfact", "memit", sphere, 0) for sphere in ("off", "paper")]
    explored = [run.name for run in (*pair, *sweep())]
    return Names([run.name for run in plan()], explored, THREE_SEEDS)


def prepare(data: Path, inputs: Path) -> None:
    """Write what the runs read: records without conflicts, and the two parts of the passages.

    Each seed has CounterFact records of its own; none of them has been used for a choice.

    Raises:
        SphereBenchError: a file is not there or not of its format.
    """
    inputs.mkdir(parents=True, exist_ok=True)
    found = without_conflicts(data / "counterfact_easyedit.json")
    unused = [record for index, record in list(found.items())[CHOICES:] if index < CALIBRATION]
    for seed in SEEDS:
        _write(inputs / f"counterfact-{seed}.json", _as_json(unused[seed :: len(SEEDS)]))
    records = without_conflicts(data / "zsre_mend.json")
    _write(inputs / "zsre-0.json", _as_json(list(records.values())))
    passages = data / "downstream" / "test-ClosedDomainQA.jsonl"
    try:
        lines = passages.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SphereBenchError(f"{passages}: {error.strerror}: name --data") from error
    texts = list(dict.fromkeys(json.loads(line)["passage"] for line in lines))
    _write(inputs / "ordinary.jsonl", _as_lines(texts[:-HELD_OUT_PASSAGES]))
    _write(inputs / "perplexity.jsonl", _as_lines(texts[-HELD_OUT_PASSAGES:]))


def without_conflicts(file: Path) -> dict[int, object]:
    """The file's valid records whose fact has one target only, as MultiCounterFact has them.

    Of records about one fact only the first is there.

    Returns:
        A record's place in the file to the record.
    """
    dataset = RecordFile(str(file))
    raw = json.loads(file.read_text(encoding="utf-8"))
    first: dict[object, int] = {}
    targets = defaultdict(set)
    for index in range(len(dataset)):
        try:
            request = dataset[index].request
        except SphereBenchError:
            continue
        first.setdefault(fact_of(request), index)
        targets[fact_of(request)].add(target_of(request))
    return {index: raw[index] for fact, index in first.items() if len(targets[fact]) == 1}


def overrides(run: Planned, model: Path, data: Path) -> list[str]:
    """What is said of a run on the command line, behind ``experiment=claims``."""
    inputs = RUNS / "inputs"
    return [
        f"run.name={run.name}",
        f"editor={run.editor}",
        f"sphere={run.sphere}",
        f"seed={run.seed}",
        f"dataset={run.dataset}",
        f"dataset.path={_relative(inputs / f'{run.dataset}-{run.seed}.json')}",
        f"model.path={_relative(model)}",
        f"statistics.corpus={_relative(inputs / 'ordinary.jsonl')}",
        f"perplexity.corpus={_relative(inputs / 'perplexity.jsonl')}",
        f"probes.ability.data_path={_relative(data / 'downstream')}",
        # There are no more.
        *(["edits.total=800"] if run.dataset == "zsre" else []),
        *run.swept,
    ]


def make_runs(runs: Iterable[Planned], model: Path, data: Path) -> int:
    """Make the runs one after another, or go on with them; how many failed."""
    prepare(data, RUNS / "inputs")
    failed = []
    for run in runs:
        command = [sys.executable, "-m", "sphere_bench", "run", "experiment=claims"]
        print(f"== {run.name}", flush=True)
        # The last bits of a run depend on the number of threads, so that all have the same.
        ended = subprocess.run(
            [*command, *overrides(run, model, data)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        if ended.returncode:
            failed.append(run.name)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return len(failed)


def draw_tables() -> None:
    """Make results/claims from the runs that have ended."""
    write_tables(PAGE, RUNS, names())
    check_fit_to_publish(PAGE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="make the runs of the protocol, or go on with them")
    running.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    running.add_argument("--data", type=Path, default=ROOT / "data")
    running.add_argument("--only", default="", help="the runs with this in their name")
    running.add_argument("--explore", action="store_true", help="the exploratory sweep instead")
    verbs.add_parser("tables", help="write results/claims from the runs that have ended")
    verbs.add_parser("check", help="recompute the page's tables from those of the runs")
    options = parser.parse_args()
    try:
        if options.verb == "run":
            chosen = sweep() if options.explore else plan()
            runs = [run for run in chosen if options.only in run.name]
            failed = make_runs(runs, options.model, options.data)
            draw_tables()
            return min(failed, 1)
        if options.verb == "tables":
            draw_tables()
            return 0
        differing = check_tables(PAGE, names())
    except SphereBenchError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    for line in differing:
        print(f"differs: {line}", file=sys.stderr)
    return min(len(differing), 1)


def _relative(path: Path) -> str:
    """A path as it is told to the runs, which start in the project's root."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _write(file: Path, text: str) -> None:
    """Replace a file, unless it is the same: a run that is going on may read it."""
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _as_json(records: list[object]) -> str:
    return json.dumps(records, ensure_ascii=False)


def _as_lines(texts: list[str]) -> str:
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
