"""Write what pages of docs/ take from the code: configuration.md, tables.md and calibrate.md.

Such a piece stands between `<!-- made: NAME -->` and `<!-- end -->`; the rest is written by hand.
Meanings come from docstrings and from the declarations of columns, defaults from the YAML files.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from sphere_bench.build import build_measurer, build_model
from sphere_bench.config.composition import (
    compose_config,
    config_folder,
    groups,
    known_keys,
    register_resolvers,
)
from sphere_bench.config.identity import REFERRED, flatten, is_decisive, is_within
from sphere_bench.config.schema import Config
from sphere_bench.config.schema.calibration import CalibrateConfig, CalibrationConfig
from sphere_bench.data.configured import build_dataset
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.columns import Column, Table
from sphere_bench.run_folder.tables import OF_RUN

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("configuration.md", "tables.md", "calibrate.md")
#: The evaluation with every probe.
CAREFUL = "evaluation=careful"

_PIECE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_TYPES = {
    "whole": "int64",
    "real": "float64",
    "text": "string",
    "truth": "bool",
    "wholes": "list of int64",
    "reals": "list of float64",
}


def main() -> None:
    """Bring the pages up to date."""
    for name in PAGES:
        page = DOCS / name
        page.write_text(made_anew(page.read_text("utf-8")), "utf-8")


def made_anew(page: str) -> str:
    """The page with its pieces as the code has them now."""
    return _PIECE.sub(lambda found: f"{found[1]}{PIECES[found[2]]()}\n{found[3]}", page)


def described(owner: type) -> dict[str, str]:
    """The attributes or arguments of a class, by its docstring, to their meanings."""
    text = inspect.getdoc(owner) or ""
    sections = re.findall(r"^(?:Attributes|Args):\n((?: +.*\n?|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for names, meaning in _ENTRY.findall("\n".join(sections)):
        found.update(dict.fromkeys(names.split(", "), _plain(meaning).removesuffix(".")))
    return found


def _intent(owner: type) -> str:
    """The first paragraph of a class's docstring."""
    return _plain((inspect.getdoc(owner) or "").partition("\n\n")[0])


def _plain(text: str) -> str:
    """A piece of a docstring as Markdown, on one line."""
    plain = _ROLE.sub(r"`\1`", text).replace("``", "`").replace("`None`", "`null`")
    return " ".join(plain.split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _option_rows() -> Iterator[list[str]]:
    defaults = _defaults_of_run()
    for group, options in groups().items():
        for option in options:
            chosen = " (default)" if defaults.get(group) == option else ""
            text = (config_folder() / group / f"{option}.yaml").read_text("utf-8")
            yield [f"`{group}`", f"`{option}`{chosen}", _head_comment(text)]


def _defaults_of_run() -> dict[str, str]:
    primary: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "run.yaml"))
    return {
        group: option
        for entry in primary["defaults"]
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def _head_comment(text: str) -> str:
    """The first paragraph of the comment that a YAML file begins with."""
    lines = []
    for line in re.sub(r"^# @package \w+\n", "", text).splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines).rstrip(".:")


def _groups() -> str:
    return _table(["group", "option", "what it is"], _option_rows())


@cache
def _composed(*overrides: str) -> Any:
    """What Hydra composes, in the schema's types, its references kept."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return OmegaConf.merge(OmegaConf.structured(Config), compose("run", list(overrides)))


def _keys() -> str:
    values: Any = OmegaConf.to_container(_composed(), resolve=True)
    return "\n\n".join(_sections(Config, "", values))


def _calibration() -> str:
    """The keys that a calibration has besides a run's."""
    values: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "calibrate.yaml"))
    meanings = {"out": described(CalibrateConfig)["out"]}
    for name, meaning in described(CalibrationConfig).items():
        meanings[f"calibration.{name}"] = meaning
    values = {"out": values["out"], **flatten({"calibration": values["calibration"]})}
    rows = [
        [f"`{key}`", _value(values.get(key, "alphaedit")), meaning]
        for key, meaning in meanings.items()
    ]
    return _table(["key", "default", "meaning"], rows)


def _sections(node: type, prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A section for the node's own keys, then one for each node below it."""
    hints, meanings = get_type_hints(node), described(node)
    own, below = [], []
    for each in fields(node):
        kind = hints[each.name]
        if is_dataclass(kind):
            below.append((kind, each.name))
        else:
            default = _value(values[each.name])
            key = f"`{prefix}{each.name}`"
            own.append([key, _type(kind), default, meanings[each.name]])
    if own:
        title = f"### `{prefix.rstrip('.')}`" if prefix else "### Keys without a group"
        intent = f"\n\n{_intent(node)}" if prefix else ""
        yield f"{title}{intent}\n\n{_table(['key', 'type', 'default', 'meaning'], own)}"
    for kind, name in below:
        yield from _sections(kind, f"{prefix}{name}.", values[name])


def _value(value: Any) -> str:
    """A default as it would be typed in YAML; of nodes with a class their names."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return f"`{value['_target_'].rpartition('.')[2]}`"
        return ", ".join(f"`{name}`" for name in value) or "`{}`"
    if value is None or isinstance(value, bool | list):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _type(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type(each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(f"`{each}`" for each in get_args(kind))
    if get_origin(kind) in (list, Sequence):
        return f"list of {_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "node"
    if kind is Any:
        return "str, list or null"
    return "null" if kind is types.NoneType else kind.__name__


def _editors() -> str:
    rows = []
    for option in groups()["editor"]:
        config: Any = OmegaConf.to_container(_composed(f"editor={option}"), resolve=False)
        method = config["editor"]["method"]
        sets = [
            f"`{key}={_unmodelled(value) if isinstance(value, str) else json.dumps(value)}`"
            for key, value in _leaves(method)
            if key.rpartition(".")[2] != "_target_" and value not in (None, [], "unconditioned")
        ]
        rows.append([f"`{option}`", _value(method), ", ".join(sets) or "-"])
    return _table(["editor", "class", "what it sets below `editor.method`"], rows)


def _unmodelled(value: str) -> str:
    """A number that a model may have for the editor as it is where the model has none."""
    return re.sub(r"^\$\{oc\.select:[^,]+,(.*)\}$", r"\1", value)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            for index, each in enumerate(value):
                yield from _leaves(each, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", value


def _methods() -> str:
    """Every class that an editor's file names, and the frame around all of them."""
    nodes = [_composed(f"editor={option}").editor.method for option in groups()["editor"]]
    return _classes(nodes, [_class(EditingPipeline, "transforms conditioner continue_from")])


def _probes() -> str:
    return _classes(list(_composed(CAREFUL).probes.values()), [])


def _classes(nodes: Iterable[Any], first: list[str]) -> str:
    targets = dict.fromkeys(
        value
        for node in nodes
        for key, value in _leaves(OmegaConf.to_container(node, resolve=False))
        if key.rpartition(".")[2] == "_target_"
    )
    sections = [*first, *(_class(get_object(target)) for target in targets)]
    return "\n\n".join(sections)


def _class(owner: type, chosen: str = "") -> str:
    """A class and its keys: all, or those of ``chosen``."""
    hints, meanings = get_type_hints(owner.__init__), described(owner)
    rows = [
        [
            f"`{name}`",
            _type(hints[name]),
            "required" if parameter.default is parameter.empty else _value(_listed(parameter)),
            meanings[name],
        ]
        for name, parameter in inspect.signature(owner).parameters.items()
        if name != "setup"
        and parameter.kind is not parameter.VAR_KEYWORD
        and (not chosen or name in chosen.split())
    ]
    keys = _table(["key", "type", "default", "meaning"], rows) if rows else "No keys of its own."
    return f"**`{owner.__name__}`**: {_intent(owner)}\n\n{keys}"


def _listed(parameter: inspect.Parameter) -> Any:
    return list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default


def _elsewhere() -> str:
    """Keys, and nodes with all their keys, that decide no result."""
    keys = [key for key in known_keys() if not is_decisive(key) and not _is_referred(key)]
    nodes = [key for key in keys if not any(is_within(key, each) and key != each for each in keys)]
    return ", ".join(f"`{key}`" for key in sorted(nodes))


def _is_referred(key: str) -> bool:
    return any(is_within(key, node) for node in REFERRED)


def _referred() -> str:
    """Keys and nodes that count through the keys that refer to them."""
    return ", ".join(f"`{key}`" for key in sorted(REFERRED))


def _names() -> str:
    commands = ([], ["edits.batch_size=20"], ["sphere.alpha=0.2", "seed=1"])
    names = [
        f"$ {' '.join(['sphere-bench run', *overrides])}\n{compose_config(overrides).run.name}"
        for overrides in commands
    ]
    return "\n".join(["```", *names, "```"])


def _of_run() -> str:
    return _columns(OF_RUN)


def _tables() -> str:
    return "\n\n".join(
        f"## `{table.name}`: {table.meaning}\n\n{_columns(table.columns)}"
        for table in default_tables()
    )


def _careful() -> str:
    """What the careful evaluation adds to the tables."""
    known = {table.name: set(table.columns) for table in default_tables()}
    pieces = []
    for table in default_tables(CAREFUL):
        further = [each for each in table.columns if each not in known.get(table.name, ())]
        title = f"further columns of `{table.name}`" if table.name in known else f"`{table.name}`"
        if further:
            pieces.append(f"### {title}: {table.meaning}\n\n{_columns(further)}")
    return "\n\n".join(pieces)


@cache
def default_tables(*overrides: str) -> Sequence[Table]:
    """The tables of a run with the default probes, or with others."""
    config = compose_config(overrides)
    loaded = build_model(config)
    weights = EditedWeights(loaded.layout, config.editor.layers)
    return build_measurer(config, loaded, build_dataset(config), weights).tables.tables


def _columns(columns: Iterable[Column]) -> str:
    rows = [
        [f"`{column.name}`", _TYPES[column.type], column.unit, column.meaning] for column in columns
    ]
    return _table(["column", "type", "unit", "meaning"], rows)


PIECES: Mapping[str, Callable[[], str]] = {
    "groups": _groups,
    "keys": _keys,
    "calibration": _calibration,
    "names": _names,
    "elsewhere": _elsewhere,
    "referred": _referred,
    "editors": _editors,
    "methods": _methods,
    "probes": _probes,
    "of_run": _of_run,
    "tables": _tables,
    "careful": _careful,
}


if __name__ == "__main__":
    main()
