"""Hydra behind a verb: compose the configuration, check it, hand it to the verb's task."""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sphere_bench.arguments import Parser
from sphere_bench.complaints import complain, explain
from sphere_bench.errors import SphereBenchError
from sphere_bench.provenance import is_run
from sphere_bench.schema import Config

# The configuration's file: the package's, and the one that a run leaves in its folder.
PRIMARY, OF_RUN = "run", "config"
INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


def hydra_main(
    task: Callable[[Config], None], verb: str, arguments: Sequence[str], *, has_folder: bool = True
) -> int:
    """Run ``task`` with the configuration that the arguments compose, or each that they sweep over.

    A job that fails is told on a line of its own and does not keep a sweep's others from running.

    Args:
        task: takes the validated configuration.
        verb: for help and messages.
        arguments: Hydra's command line.
        has_folder: the run's folder is made before the task starts and holds its log; otherwise
            nothing is left behind.

    Returns:
        0, or the exit code of the first error.

    Raises:
        Exception: the arguments are wrong; ``complaints`` knows what to say.
    """
    flags, overrides, config_name = _parse(verb, arguments)
    if config_name != PRIMARY:
        overrides = [*_settings_of_hydra(), *overrides]
    with TemporaryDirectory() as scratch:
        if not has_folder:
            folders = [f"hydra.{key}='{scratch}/job'" for key in ("run.dir", "sweep.dir")]
            name = f"hydra.job.name='sphere-bench {verb}'"
            own = [*folders, "hydra.sweep.subdir=job", "hydra/job_logging=none", name]
            overrides = [*own, *overrides]
        with _as_command_line([f"sphere-bench {verb}", *flags, *overrides]):
            return _run_jobs(task, config_name)


def _run_jobs(task: Callable[[Config], None], config_name: str) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from sphere_bench.composition import config_folder, register_resolvers, validate

    register_resolvers()
    failures: list[int] = []

    def job(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        try:
            task(validate(composed))
        except Exception as error:
            where = f"job {settings.job.num}: " if settings.mode == RunMode.MULTIRUN else ""
            failures.append(complain(error, where))
            _remove_if_never_begun(Path(settings.runtime.output_dir))
        finally:
            # A sweep's next model needs the memory of this one, which cycles may still hold.
            gc.collect()

    entry = hydra.main(
        version_base="1.3", config_path=str(config_folder()), config_name=config_name
    )
    try:
        entry(job)()
    except OSError as error:
        if error.filename is None:
            raise
        raise SphereBenchError(
            f"cannot make the folder {error.filename} ({error.strerror}): choose another run.root"
        ) from error
    # A job tells its own errors; all that is left are Hydra's about the arguments, some of them
    # nothing but its internals stumbling.
    except Exception as error:
        if explain(error) is not None:
            raise
        what = str(error) or type(error).__name__
        raise SphereBenchError(f"cannot read the arguments: {what}") from error
    except SystemExit as done:  # how Hydra ends after --help
        return int(done.code or 0)
    return failures[0] if failures else 0


def _settings_of_hydra() -> list[str]:
    """What the package's own configuration asks of Hydra, for one that does not."""
    from omegaconf import OmegaConf

    from sphere_bench.composition import config_folder, flatten

    primary: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{PRIMARY}.yaml"))
    options = {
        key.removeprefix("override "): option
        for entry in primary["defaults"]
        if isinstance(entry, dict)
        for key, option in entry.items()
        if key.startswith("override ")
    }
    keys = flatten({"hydra": primary["hydra"]})
    return [f"{key}={json.dumps(value)}" for key, value in {**options, **keys}.items()]


def _remove_if_never_begun(folder: Path) -> None:
    """Leave no trace of a run that wrote nothing but its log."""
    if folder.is_symlink():  # what it leads to is not ours
        return
    with suppress(OSError):
        if {file.name for file in folder.iterdir()} <= {"run.log"}:
            (folder / "run.log").unlink(missing_ok=True)
            folder.rmdir()


def _parse(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Flags and overrides for Hydra's own parser, and the name of the configuration.

    That one tells a wrong flag on several lines and wants the flags before the overrides. The
    folder of a run holds the run's own configuration.
    """
    parser = Parser(prog=f"sphere-bench {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--run", "-r", action="store_true")
    modes.add_argument("--multirun", "-m", action="store_true")
    modes.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    modes.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("overrides", nargs="*")
    given = vars(parser.parse_intermixed_args(list(arguments)))
    if given["resolve"] and not (given["cfg"] or given["help"]):
        parser.error("--resolve goes with --cfg")
    overrides: list[str] = given.pop("overrides")
    config_name: str | None = given.pop("config_name")
    if config_name is None:
        of_run = given["config_dir"] and is_run(Path(given["config_dir"]))
        config_name = OF_RUN if of_run else PRIMARY
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in given.items()
        if value
    ]
    return flags, overrides, config_name


@contextmanager
def _as_command_line(argv: list[str]) -> Iterator[None]:
    """Hydra reads the process's arguments, and raises its errors only when told to."""
    saved_argv, saved_environment = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = saved_argv
        if saved_environment is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_environment
