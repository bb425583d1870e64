"""What makes a test process fast and changes nothing that a test can see."""

import os
import pickle
from collections.abc import Callable, Hashable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import omegaconf._utils
import omegaconf.base
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.grammar_parser import parse

from sphere_bench.assets import tiny_gpt2_path
from sphere_bench.config.composition import config_folder

Result = TypeVar("Result")


def hurry() -> None:
    """Leave out what hundreds of small runs spend their time on.

    Half of a small run is the composition of its configuration: Hydra composes it once more to read
    `hydra.mode`, which no test sets, reads YAML in Python, the same files for every run, merges the
    same ones, and parses the same overrides and interpolations again and again. No test takes the
    power away, so nothing has to be on the disk itself.
    """
    Hydra.get_mode = lambda *arguments, **keywords: None  # type: ignore[method-assign]
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
    omegaconf.base.parse = omegaconf._utils.parse = cache(parse)
    ConfigRepository.load_config = _remembering(ConfigRepository.load_config)
    ConfigLoaderImpl._compose_config_from_defaults_list = _merged_once(
        ConfigLoaderImpl._compose_config_from_defaults_list
    )
    OverridesParser.parse_rule = _parsed_once(OverridesParser.parse_rule)
    os.fsync = lambda descriptor: None


def hurry_loading() -> None:
    """Read the models of this repository once; imports transformers.

    What a second load of the same files does is not seen then; tests of loading use copies of them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for kind in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        kind.from_pretrained = _loaded_once(kind.from_pretrained)


def _loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    remembered: dict[str, Any] = {}
    lasting = {tiny_gpt2_path(), *(Path(__file__).parent / "golden").iterdir()}

    def loaded(path: str | Path, **how: Any) -> Any:
        if Path(path) not in lasting or "device_map" in how:
            return load(path, **how)
        key = f"{path} {how}"
        if key not in remembered:
            remembered[key] = load(path, **how)
        return deepcopy(remembered[key])

    return loaded


def _remembering(
    load: Callable[[ConfigRepository, str], ConfigResult | None],
) -> Callable[[ConfigRepository, str], ConfigResult | None]:
    """Read the package's own options and Hydra's once; a user's may change from run to run."""
    remembered, lasting = _Remembered(), _lasting_sources()

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.path not in lasting:
            return load(self, config_path)
        return remembered.copy_of((source.path, config_path), load, self, config_path)

    return load_config


def _merged_once(
    merge: Callable[[ConfigLoaderImpl, list[ResultDefault], IConfigRepository], DictConfig],
) -> Callable[[ConfigLoaderImpl, list[ResultDefault], IConfigRepository], DictConfig]:
    """Merge the same options of the package and Hydra once."""
    remembered = _Remembered()
    lasting = _lasting_sources() | {""}  # and what plugins have registered

    def merged(
        self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        paths = tuple(source.path for source in repo.get_sources())
        if not lasting.issuperset(paths):
            return merge(self, defaults, repo)
        options = (
            (each.config_path, each.package, each.parent, each.is_self, each.primary)
            for each in defaults
        )
        return remembered.copy_of((paths, *options), merge, self, defaults, repo)

    return merged


def _parsed_once(
    parse_rule: Callable[[OverridesParser, str, str], Any],
) -> Callable[[OverridesParser, str, str], Any]:
    """Parse an override once; one that is wrong is parsed again."""
    remembered = _Remembered()

    def parsed(self: OverridesParser, s: str, rule_name: str) -> Any:
        return remembered.copy_of((s, rule_name), parse_rule, self, s, rule_name)

    return parsed


class _Remembered:
    """Results, each made once; what is given is a copy, which its reader may change."""

    def __init__(self) -> None:
        self._pickled: dict[Hashable, bytes] = {}

    def copy_of(self, key: Hashable, make: Callable[..., Result], *how: Any) -> Result:
        if key not in self._pickled:
            self._pickled[key] = pickle.dumps(make(*how))
        found: Result = pickle.loads(self._pickled[key])
        return found


def _lasting_sources() -> set[str]:
    """Where options are that no test changes."""
    return {str(config_folder()), "hydra.conf"}
