"""Hydra behind a verb: compose the configuration, check it, give it to the verb's task."""

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from sphere_bench.commands.arguments import PRIMARY, HydraArguments, hydra_arguments
from sphere_bench.commands.error_messages import complain, describe, explain
from sphere_bench.config.composition import config_folder, register_resolvers, validate
from sphere_bench.config.schema import Config
from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import RunFolder
from sphere_bench.run_folder.provenance import OWN_OVERRIDE

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Takes a configuration of the verb's schema.
Task = Callable[[Any], float | None]

# Launchers import this module in the processes of their jobs, which need the resolvers too.
register_resolvers()


def hydra_main(
    task: Task,
    verb: str,
    arguments: Sequence[str],
    *,
    has_folder: bool = True,
    primary: str = PRIMARY,
    schema: type[Config] = Config,
) -> int:
    """Run ``task`` with the configuration that the arguments compose, or each that they sweep over.

    A job of a sweep that fails is reported at once, and all of them on the last line. It does not
    keep the others from running.

    Args:
        task: takes the validated configuration and returns what a sweeper optimises, if anything.
        verb: for help and messages.
        arguments: Hydra's command line.
        has_folder: the run's folder is made before the task starts and holds its log; otherwise
            nothing is left behind.
        primary: the package's file that the configuration starts from.
        schema: of the configuration.

    Returns:
        0, or the exit code of a sweep's first failure.

    Raises:
        Exception: the arguments are wrong or a single run failed; ``error_messages`` explains it.
    """
    given = hydra_arguments(verb, arguments, primary)
    with TemporaryDirectory() as scratch:
        note = Path(scratch) / "sweep"
        own = [
            f"{OWN_OVERRIDE}{{_target_: sphere_bench.commands.sweep.JobRecords, note: '{note}'}}"
        ]
        if not has_folder:
            own += [f"hydra.{key}='{scratch}/job'" for key in ("run.dir", "sweep.dir")]
            own += ["hydra.sweep.subdir=job", "hydra/job_logging=none"]
            own += [f"hydra.job.name='sphere-bench {verb}'"]
        given = replace(given, overrides=[*given.overrides, *own])
        return _run_jobs(Job(task, schema), f"sphere-bench {verb}", given, note)


@dataclass
class Job:
    """What Hydra calls for every job, in whichever process.

    Attributes:
        error: what a single run failed with. A job of a sweep raises: the sweeper has to know.
    """

    task: Task
    schema: type[Config]
    error: Exception | None = None

    def __call__(self, composed: "DictConfig") -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from sphere_bench.commands.sweep import JobError

        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        try:
            return self._do(validate(composed, settings.overrides.task, self.schema))
        except Exception as error:
            _close_logs(folder)
            _remove_if_never_begun(folder)
            if settings.mode != RunMode.MULTIRUN:
                self.error = error
                return None
            complain(error, f"job {settings.job.num}: ")
            raise JobError(*describe(error)) from None
        finally:
            _close_logs(folder)
            if settings.mode == RunMode.MULTIRUN:
                # The next model needs the memory of this one, which cycles may still hold.
                gc.collect()

    def _do(self, config: Config) -> float | None:
        try:
            return self.task(config)
        except SystemExit as error:  # not a way to end all jobs of a sweep, or with success
            raise RuntimeError(f"something in the run called sys.exit({error.code})") from error


def _run_jobs(job: Job, program: str, given: HydraArguments, note: Path) -> int:
    import hydra
    from hydra.errors import ConfigCompositionException

    from sphere_bench.commands.sweep import discard_records, finish_sweep

    failure: Exception | None = None
    entry = hydra.main(
        version_base="1.3", config_path=str(config_folder()), config_name=given.config_name
    )
    try:
        with given.as_command_line(program):
            entry(job)()
    except SystemExit as done:  # how Hydra ends after --help
        return int(done.code or 0)
    except Exception as error:
        failure = error
    except KeyboardInterrupt:
        discard_records(note)
        raise
    if isinstance(failure, ConfigCompositionException):
        completed = given.with_missing_key(str(failure))
        if completed is not None:
            return _run_jobs(job, program, completed, note)
    if job.error is not None:
        raise job.error
    code = finish_sweep(note, failure)
    if code is None and failure is not None:
        _raise_again(failure, "start the jobs" if note.is_file() else "read the arguments")
    return code or 0


def _raise_again(error: Exception, doing: str) -> NoReturn:
    """Raise an error that is no job's, so one of the arguments or of the launcher.

    Some are nothing but Hydra stumbling over an argument.
    """
    if isinstance(error, OSError):
        if error.filename is None:  # such as that of a broken pipe
            raise error
        raise SphereBenchError(
            f"cannot make the folder {error.filename} ({error.strerror}): choose another run.root"
        ) from error
    if explain(error) is None:
        raise SphereBenchError(f"cannot {doing}: {str(error) or type(error).__name__}") from error
    raise error


def _close_logs(folder: Path) -> None:
    """Close the log files in a folder: it may be removed, and nothing is added to it any more."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == folder:
            root.removeHandler(handler)
            handler.close()


def _remove_if_never_begun(folder: Path) -> None:
    """Remove the folder of a run that wrote nothing but its log."""
    if folder.is_symlink():  # what it leads to is not ours
        return
    with suppress(OSError):
        log = RunFolder(folder).log_file
        if set(folder.iterdir()) <= {log}:
            log.unlink(missing_ok=True)
            folder.rmdir()
