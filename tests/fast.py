"""What makes a test process fast and changes nothing that a test can see."""

import os
import pickle
from collections.abc import Callable
from functools import cache

import omegaconf._utils
import omegaconf.base
import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf.grammar_parser import parse


def hurry() -> None:
    """Leave out what hundreds of small runs spend their time on.

    Half of a small run is the composition of its configuration: Hydra composes it once more to read
    `hydra.mode`, which no test sets, reads YAML in Python, the same files for every run, and parses
    the same interpolations again and again. No test takes the power away, so nothing has to be on
    the disk itself.
    """
    Hydra.get_mode = lambda *arguments, **keywords: None  # type: ignore[method-assign]
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
    omegaconf.base.parse = omegaconf._utils.parse = cache(parse)
    ConfigRepository.load_config = _remembering(ConfigRepository.load_config)
    os.fsync = lambda descriptor: None


def _remembering(
    load: Callable[[ConfigRepository, str], ConfigResult | None],
) -> Callable[[ConfigRepository, str], ConfigResult | None]:
    """Read the package's own options and Hydra's once; a user's may change from run to run."""
    from sphere_bench.config.composition import config_folder

    remembered: dict[tuple[str, str], bytes] = {}
    lasting = {str(config_folder()), "hydra.conf"}

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.path not in lasting:
            return load(self, config_path)
        key = source.path, config_path
        if key not in remembered:
            remembered[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(remembered[key])  # a copy, which its reader may change

    return load_config
