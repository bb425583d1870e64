"""`sphere-bench calibrate`: the numbers of a new model, searched and written into its YAML file."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from sphere_bench.calibration.records import keep_out
from sphere_bench.calibration.settings import Setting, Trial
from sphere_bench.commands.hydra_entry import hydra_main
from sphere_bench.config.composition import groups
from sphere_bench.config.schema.calibration import CalibrateConfig
from sphere_bench.data.quality import warnings_of
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.team import process_count

_OUT = Path("calibrated", "model")


def main(arguments: Sequence[str]) -> int:
    """The verb: one model, or with --multirun one after another."""
    if process_count() > 1:
        raise SphereBenchError(
            "torchrun goes with sphere-bench run: start a calibration without it"
        )
    return hydra_main(
        calibrate,
        "calibrate",
        arguments,
        has_folder=False,
        primary="calibrate",
        schema=CalibrateConfig,
    )


def calibrate(config: CalibrateConfig) -> None:
    """Search the numbers of a model that has none, and write its YAML file.

    What needs no model comes first, so that its errors are reported before anything slow.

    Raises:
        SphereBenchError: the file exists, the records are too few, or nothing can be edited.
    """
    file = model_file(config)
    check_choices(config)
    kept_out = keep_out(config)
    for warning in warnings_of(kept_out.dataset, config.calibration.records):
        _say(warning)

    from sphere_bench.build import build_model
    from sphere_bench.calibration.account import account
    from sphere_bench.calibration.bench import Bench
    from sphere_bench.calibration.model_file import write_model
    from sphere_bench.calibration.search import Search, Space
    from sphere_bench.calibration.trial_file import TrialFile

    loaded = build_model(config)
    width = loaded.layout.weight(0).shape[1]
    space = Space.of(config.calibration, len(loaded.layout), width)
    _say(f"{kept_out}")
    _say(f"at most {space.most_trials} trials, with {space.most_values} target values in all")
    bench = Bench(config, loaded, kept_out.dataset)
    finished = TrialFile(file.with_suffix(".trials.jsonl"), bench.facts())
    trials: list[Trial] = []
    started = perf_counter()

    def try_out(setting: Setting, records: int) -> Trial:
        trial = finished.find(setting, records)
        if trial is None:
            trial = bench.try_out(setting, records)
            finished.add(trial)
        trials.append(trial)
        _say(f"trial {len(trials)}, {perf_counter() - started:.0f} s: {trial}")
        return trial

    unedited = bench.unedited()
    _say(f"unedited: {unedited}")
    found = Search(space, unedited, try_out).run()
    lines = account(config, kept_out, unedited, found)
    if found.memit is None:
        raise SphereBenchError(f"nothing could be edited; the last trial: {trials[-1]}")
    write_model(file, config, found, lines, trials)
    print(
        "\n".join(
            [*lines, f"Written: {file}", f"Use it: {command(file, config.run.overrides or [])}"]
        )
    )


def check_choices(config: CalibrateConfig) -> None:
    """Raise where a key of a run is set to what makes no sense here.

    Raises:
        SphereBenchError: one is.
    """
    if config.editor.name != "memit":
        raise SphereBenchError(
            f"editor={config.editor.name}: a calibration edits with memit and alphaedit: leave it "
            "out"
        )
    if not config.perplexity.tokens:
        raise SphereBenchError(
            "perplexity.tokens=0: a calibration needs a text to measure damage on"
        )
    for override in config.run.overrides or []:
        if override.lstrip("+").startswith("edits."):
            raise SphereBenchError(
                f"{override}: a calibration has no stream: calibration.start and "
                "calibration.records choose its records"
            )


def model_file(config: CalibrateConfig) -> Path:
    """The file to write.

    Raises:
        SphereBenchError: ``run`` could not find it, or it is there already.
    """
    if config.out is None:
        last = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(config.model.path).name.lower()).strip("-.")
        file = _OUT / f"{last}-calibrated.yaml"
    else:
        file = Path(config.out).expanduser()
    if file.suffix != ".yaml" or file.absolute().parent.name != "model" or file.stem[:1] == "_":
        raise SphereBenchError(
            f"out={file}: must be FOLDER/model/NAME.yaml, where "
            "`sphere-bench run --config-dir FOLDER model=NAME` finds it"
        )
    if file.stem in groups()["model"]:
        raise SphereBenchError(
            f"out={file}: the package's own model={file.stem} would be taken for it: choose "
            "another name"
        )
    if file.exists():
        raise SphereBenchError(f"out={file} exists: move it away, or name another file")
    return file


def command(file: Path, overrides: Sequence[str]) -> str:
    """A run of the calibrated model, with the dataset and statistics of the calibration."""
    own = ("model.", "model=", "calibration.", "out=")
    kept = [each for each in overrides if not each.lstrip("+").startswith(own)]
    return shlex.join(
        [
            "sphere-bench",
            "run",
            "--config-dir",
            str(file.parent.parent),
            f"model={file.stem}",
            *kept,
        ]
    )


def _say(line: str) -> None:
    print(f"sphere-bench: {line}", file=sys.stderr, flush=True)
