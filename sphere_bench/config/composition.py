"""The configuration's files, and the typed configuration of what Hydra composed from them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sphere_bench.config.identity import changed, identity
from sphere_bench.config.model_numbers import check_model_numbers
from sphere_bench.config.naming import check_effect, run_name, sets_decisive
from sphere_bench.config.schema import Config
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file


def config_folder() -> Path:
    """The YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "run.yaml").is_file():
            return folder
    raise SphereBenchError(f"{package}/configs is missing: install sphere-bench again")


def groups(folders: Iterable[Path] | None = None) -> dict[str, list[str]]:
    """The groups of options in folders of YAML files and the options of each.

    Hydra's own groups are left out. A file that starts with an underscore holds what options share
    and is no option.

    Args:
        folders: ``None`` takes the package's.
    """
    found: dict[str, set[str]] = {}
    for folder in [config_folder()] if folders is None else folders:
        for file in folder.glob("*/[!_]*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(found[name]) for name in sorted(found) if name != "hydra"}


def known_keys(node: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the configuration, dotted."""
    hints = get_type_hints(node)
    for each in fields(node):
        key, kind = f"{prefix}{each.name}", hints[each.name]
        yield key
        if is_dataclass(kind):
            yield from known_keys(cast(type, kind), f"{key}.")


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration that ``sphere-bench run`` has with these overrides, outside of a run.

    Raises:
        Exception: as :func:`validate`, and Hydra's own; ``error_messages`` explains them.
    """
    from hydra import compose, initialize_config_dir

    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return validate(compose("run", list(overrides)), overrides)


def validate(
    composed: DictConfig, overrides: Sequence[str] | None = None, schema: type[Config] = Config
) -> Config:
    """The typed configuration, resolved and with the run's name filled in.

    A name that an earlier run recorded is kept unless an override sets what decides results.

    Args:
        composed: what Hydra composed; its own ``hydra`` node is left out.
        overrides: of the command line; ``None`` takes those in the ``hydra`` node, if there is one.
        schema: of the configuration.

    Raises:
        SphereBenchError: a value is out of its range.
        omegaconf.errors.OmegaConfBaseException: a key is unknown or missing, a value has the wrong
            type, or an interpolation leads nowhere.
    """
    if overrides is None:
        overrides = OmegaConf.select(composed, "hydra.overrides.task") or []
    own = composed
    if "hydra" in composed:
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    check_model_numbers(own)
    merged = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), own))
    config = cast(Config, OmegaConf.to_object(merged))
    recorded = config.run.overrides
    config.run.overrides = [*(recorded or []), *overrides]
    named = any(each.lstrip("+").startswith("run.name=") for each in overrides)
    if recorded is not None:
        check_effect(config, overrides)
        if not named and sets_decisive(config, overrides):
            config.run.name = None
    if config.run.name is None:
        config.run.name = run_name(
            config, config.run.overrides, merged, recorded=recorded is not None
        )
    return config


def write_config(config: Config, file: Path) -> None:
    """Write a run's whole configuration, which ``run --config-dir FOLDER`` makes the run from."""
    with atomic_file(file) as temporary:
        OmegaConf.save(OmegaConf.create(asdict(config)), temporary)


def read_config(file: Path) -> Config:
    """The configuration that :func:`write_config` wrote.

    Raises:
        SphereBenchError: it is missing or damaged.
    """
    try:
        return validate(cast(DictConfig, OmegaConf.load(file)))
    except Exception as error:  # what YAML, OmegaConf or the schema say would not help
        raise SphereBenchError(f"{file} is missing or damaged: name a run's own folder") from error


def _plain(file: Path) -> object:
    """What a YAML file holds, without a schema; ``None`` where it is missing or damaged."""
    try:
        return OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # of several parsers; `read_config` reports it
        return None


def check_unedited(file: Path, recorded: Mapping[str, Any]) -> None:
    """Raise if a run's ``config.yaml`` does not say what the run was made with.

    Args:
        file: the run's ``config.yaml``.
        recorded: the configuration in its provenance, as plain containers.

    Raises:
        SphereBenchError: somebody has edited the file.
    """
    if _plain(file) == recorded:
        return
    # Only what decides results: the rest may change when the run goes on.
    edited = changed(identity(recorded), identity(asdict(read_config(file))))
    if edited:
        raise SphereBenchError(
            f"{file} was edited after the run had begun ({'; '.join(edited)}): "
            "undo that, and set keys on the command line"
        )


def register_resolvers() -> None:
    """Make ``${sphere_bench.run_name:}`` known, for Hydra's folders, and ``groups``, for help.

    The name validates the whole configuration, so a wrong one is reported before any folder is
    made. With an argument it gives that instead of the error: a sweep names a job's folder first
    and reports the error when the job runs.
    """

    def name(rejected: str | None = None, *, _root_: DictConfig) -> str:
        try:
            return cast(str, validate(_root_).run.name)
        except Exception:
            if rejected is None:
                raise
            return rejected

    def options(*, _root_: DictConfig) -> str:
        sources = [each.path for each in _root_.hydra.runtime.config_sources if each.path]
        found = groups(Path(path) for path in sources if "://" not in path)
        return "\n".join(f"  {name}: {', '.join(each)}" for name, each in found.items())

    OmegaConf.register_new_resolver("sphere_bench.run_name", name, replace=True)
    OmegaConf.register_new_resolver("sphere_bench.groups", options, replace=True)
