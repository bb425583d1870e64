"""The arguments of a verb, those that Hydra reads included."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from sphere_bench.config.composition import config_folder, groups, known_keys
from sphere_bench.config.identity import flatten, is_within
from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import RunFolder

# The configuration's file: the package's, and the one that a run leaves in its folder.
PRIMARY, OF_RUN = "run", "config"
_INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
# Below it every model has keys of its own.
_FREE = "model.editors"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other error."""

    def error(self, message: str) -> NoReturn:
        raise SphereBenchError(f"{message}; see `{self.prog} --help`")


@dataclass(frozen=True)
class HydraArguments:
    """What Hydra's own parser takes: the flags, then the overrides.

    Attributes:
        config_name: of the primary configuration.
        config_dir: a folder of the user's own options, or a run's folder.
    """

    flags: list[str]
    overrides: list[str]
    config_name: str
    config_dir: Path | None

    def with_missing_key(self, message: str) -> "HydraArguments | None":
        """The arguments that add the key which Hydra could not override, if the schema knows it.

        A YAML file of the user's own may lack keys that have a default in the schema.

        Args:
            message: of Hydra's error.
        """
        found = re.match(r"Could not override '([^']*)'", message)
        key = found[1] if found else ""
        known = key in {*known_keys()} - {*groups()} or is_within(key, _FREE)
        if not known or not any(each.startswith(f"{key}=") for each in self.overrides):
            return None
        added = [f"++{each}" if each.startswith(f"{key}=") else each for each in self.overrides]
        return replace(self, overrides=added)

    @contextmanager
    def as_command_line(self, program: str) -> Iterator[None]:
        """Make them the process's arguments, which Hydra reads.

        Python finds modules in ``config_dir``, here and in the processes that launchers start.
        """
        argv, path, environment = sys.argv, list(sys.path), os.environ.copy()
        sys.argv = [program, *self.flags, *self.overrides]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors and exits
        if self.config_dir is not None:
            folder = str(self.config_dir.absolute())
            sys.path.insert(0, folder)
            inherited = environment.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, inherited]))
        try:
            yield
        finally:
            sys.argv, sys.path[:] = argv, path
            for name in ("HYDRA_FULL_ERROR", "PYTHONPATH"):
                if name in environment:
                    os.environ[name] = environment[name]
                else:
                    os.environ.pop(name, None)


def hydra_arguments(verb: str, arguments: Sequence[str], primary: str = PRIMARY) -> HydraArguments:
    """The arguments of a verb that has a configuration.

    Hydra's parser reports a wrong flag on several lines and wants the flags before the overrides.

    Args:
        verb: for help and messages.
        arguments: the command line.
        primary: the verb's own configuration; a run's takes its place where a folder has one.

    Raises:
        SphereBenchError: a flag is wrong.
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
    modes.add_argument("--info", "-i", nargs="?", const="all", choices=_INFO)
    parser.add_argument("overrides", nargs="*")
    given = vars(parser.parse_intermixed_args(list(arguments)))
    if given["resolve"] and not (given["cfg"] or given["help"]):
        parser.error("--resolve goes with --cfg")
    overrides: list[str] = given.pop("overrides")
    config_name: str | None = given.pop("config_name")
    config_dir = Path(given["config_dir"]) if given["config_dir"] else None
    if config_name is None:
        config_name = _config_name(config_dir) if primary == PRIMARY else primary
    if config_name not in (PRIMARY, primary):
        overrides = [*_settings_of_hydra(), *overrides]
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in given.items()
        if value
    ]
    return HydraArguments(flags, overrides, config_name, config_dir)


def _config_name(config_dir: Path | None) -> str:
    """The folder of a run holds the run's own configuration.

    Raises:
        SphereBenchError: the folder holds runs and no options.
    """
    if config_dir is None or not config_dir.is_dir():
        return PRIMARY
    if RunFolder(config_dir).is_run:
        return OF_RUN
    runs = sorted(folder for folder in config_dir.iterdir() if RunFolder(folder).is_run)
    if runs and not groups([config_dir]):
        raise SphereBenchError(
            f"--config-dir {config_dir} holds runs, not options: name one run's own folder, such "
            f"as {runs[0]}"
        )
    return PRIMARY


def _settings_of_hydra() -> list[str]:
    """What the package's own configuration asks of Hydra, for one that does not."""
    from omegaconf import OmegaConf

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
