"""The name of a run: what was chosen, the seed, and a hash of what decides its results."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sphere_bench.config.identity import REFERRED, config_hash, flatten, identity, is_within
from sphere_bench.config.model_numbers import references
from sphere_bench.config.schema import Config
from sphere_bench.errors import SphereBenchError

# Each of these groups has its own place in the name.
_PLACED = ("editor", "sphere", "model", "dataset")
# Characters of one value, and of all overrides together: a file system allows 255 for a name.
_LONGEST_VALUE, _LONGEST = 24, 96
_UNUSUAL = re.compile(r"[^A-Za-z0-9._+-]+")


def run_name(
    config: Config, overrides: Sequence[str], composed: DictConfig, *, recorded: bool = False
) -> str:
    """``{editor}-{sphere}-{model}-{dataset}[-{overrides}]-seed{seed}-{eight digits}``.

    Overrides are shown if they decide results: a key by its last part and its value, a group by the
    option. Those of SPHERE are shown in its place. They come in the configuration's order. The
    digits are from the hash of what decides results, so the same command finds the same folder.

    Args:
        config: validated, but without its name.
        overrides: of the command line, as Hydra reads them.
        composed: the configuration before its references were resolved.
        recorded: whether it is a run's own, which has no references any more. What they led to was
            overridden when the run was begun.
    """
    content = asdict(config)
    values, decisive = flatten(content), identity(content)
    keys, options = _chosen(overrides, values)
    acting = [*decisive, *(REFERRED if recorded else _referred(composed, decisive))]
    labels = {
        key: _labelled(key, value)
        for key, value in values.items()
        if any(is_within(key, each) for each in keys)
        and any(is_within(key, each) for each in acting)
        and key not in ("seed", *(f"{group}.name" for group in _PLACED))
    }
    of_sphere = [label for key, label in labels.items() if is_within(key, "sphere")]
    others = [label for key, label in labels.items() if not is_within(key, "sphere")]
    # The paper's settings are the default: what was changed says more than their name.
    unnamed = of_sphere and config.sphere.name == "paper"
    parts = [
        config.editor.name,
        *([] if unnamed else [config.sphere.name]),
        *of_sphere,
        config.model.name,
        config.dataset.name,
        *_that_fit([*options, *others]),
        f"seed{config.seed}",
        config_hash(decisive)[:8],
    ]
    return "-".join(parts)


def sets_decisive(config: Config, overrides: Sequence[str]) -> bool:
    """Whether one of the overrides sets a key that decides the results of ``config``."""
    content = asdict(config)
    keys, options = _chosen(overrides, flatten(content))
    return bool(options) or any(is_within(key, each) for key in identity(content) for each in keys)


def check_effect(config: Config, overrides: Sequence[str]) -> None:
    """Raise if an override sets a key that does nothing in a recorded configuration.

    There the keys that referred to it have values of their own.

    Raises:
        SphereBenchError: one does.
    """
    keys, _ = _chosen(overrides, flatten(asdict(config)))
    for key in keys:
        if any(is_within(key, node) for node in REFERRED):
            raise SphereBenchError(
                f"{key} does nothing in a run's own configuration: set the keys that follow from "
                "it, below editor, sphere.alpha, dataset.loader or probes"
            )


def _chosen(overrides: Sequence[str], values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Keys that the overrides set, and names of the groups' options that they choose."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    keys: list[str] = []
    options: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if key in values or override.is_delete():
            keys.append(key)
        elif isinstance(value, Mapping):
            keys.extend(flatten(value, f"{key}."))
        elif key not in _PLACED:
            options[override.get_key_element()] = _label(value)
    return keys, [options[key] for key in sorted(options)]


def _referred(composed: DictConfig, decisive: Mapping[str, Any]) -> list[str]:
    """Keys and nodes that act because a decisive key refers to them, such as ``model.layers``."""
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    found = {
        reference
        for key, value in flatten(raw).items()
        if any(is_within(each, key) for each in decisive)
        for reference in references(value, composed)
    }
    return [each for each in found if any(is_within(each, node) for node in REFERRED)]


def _labelled(key: str, value: Any) -> str:
    """The last part of a key and its value; of a class its name alone."""
    name = key.rpartition(".")[2]
    return _label({name: value}) if name == "_target_" else f"{name}{_label(value)}"


def _label(value: Any) -> str:
    """A value in characters that every file system takes."""
    if isinstance(value, list | tuple):
        text = "_".join(map(_label, value))
    elif isinstance(value, Mapping):
        text = str(value.get("_target_", "")).rpartition(".")[2]
    elif isinstance(value, float):
        text = f"{value:g}"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = str(value)
    return _UNUSUAL.sub("_", text).strip("_")[:_LONGEST_VALUE]


def _that_fit(labels: Sequence[str]) -> list[str]:
    """The labels, but for those that would make the name too long."""
    fitting: list[str] = []
    for label in labels:
        if sum(map(len, fitting)) + len(fitting) + len(label) <= _LONGEST:
            fitting.append(label)
    return fitting
