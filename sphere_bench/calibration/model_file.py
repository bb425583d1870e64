"""The YAML file of a calibrated model: its numbers, and in comments how they were found."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

from omegaconf import OmegaConf

from sphere_bench.calibration.search import Found
from sphere_bench.calibration.settings import Trial
from sphere_bench.config.composition import groups
from sphere_bench.config.schema import Config
from sphere_bench.config.schema.model import ModelConfig
from sphere_bench.files import atomic_file

_WIDTH = 98


def write_model(
    file: Path, config: Config, found: Found, account: Sequence[str], tried: Sequence[Trial]
) -> None:
    """Write the model's YAML file.

    Args:
        file: its name is the model's.
        config: where the model is, and its numbers that were not searched.
        found: the settings that were chosen.
        account: what was optimised on what, in paragraphs.
        tried: all trials.
    """
    paragraphs = [*account, "Tried, in this order:", *(f"- {trial}" for trial in tried)]
    comment = [line for paragraph in paragraphs for line in _comment(paragraph)]
    text = OmegaConf.to_yaml(OmegaConf.create(_node(file.stem, config, found)))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        temporary.write_text("\n".join([*comment, text]), "utf-8")


def _comment(text: str) -> list[str]:
    indent = "  " if text.startswith("-") else ""
    lines = wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False)
    return [f"# {line}" for line in lines]


def _node(name: str, config: Config, found: Found) -> dict[str, Any]:
    """The content of the file, as plain containers."""
    assert found.memit is not None
    model, setting = config.model, found.memit.setting
    defaults: list[Any] = ["_base", "_self_"]
    # Other corpora are named on the command line, as their files are where they are.
    if config.statistics.corpus in groups()["statistics"]:
        defaults.append({"override /statistics@_global_.statistics": config.statistics.corpus})
    path = Path(model.path).expanduser()
    editors: dict[str, Any] = {}
    if found.alphaedit is not None and found.alphaedit.setting.null_space is not None:
        editors["alphaedit"] = asdict(found.alphaedit.setting.null_space)
    return {
        "defaults": defaults,
        "name": name,
        "path": str(path.absolute()) if path.exists() else model.path,
        **_kept(model),
        "layers": list(setting.layers),
        "values": {**asdict(model.values), **asdict(setting.values)},
        "second_moment_weight": setting.second_moment_weight,
        "editors": editors,
    }


def _kept(model: ModelConfig) -> dict[str, Any]:
    """What the model's file says besides its numbers."""
    return {
        "revision": model.revision,
        "dtype": model.dtype,
        "modules": asdict(model.modules),
        "trust_remote_code": model.trust_remote_code,
    }
