"""The configuration's files, and the typed configuration of what Hydra composed from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file
from sphere_bench.provenance import config_hash
from sphere_bench.schema import Config

CONFIG_FILE = "config.yaml"

# Where a run happens, ends and is kept: keys, and nodes with all their keys.
_ELSEWHERE = ("run", "device", "statistics.cache", "checkpoint", "collapse", "trackers")


def config_folder() -> Path:
    """The YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "run.yaml").is_file():
            return folder
    raise SphereBenchError(f"{package}/configs is missing: install sphere-bench again")


def groups() -> dict[str, list[str]]:
    """The configuration's groups and the options of each, Hydra's own left out."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


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
        Exception: as :func:`validate`, and Hydra's own; ``complaints`` knows what to say.
    """
    from hydra import compose, initialize_config_dir

    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return validate(compose("run", list(overrides)))


def validate(composed: DictConfig) -> Config:
    """The typed configuration, resolved and with the run's name filled in.

    Args:
        composed: what Hydra composed; its own ``hydra`` node is left out.

    Raises:
        SphereBenchError: a value is out of its range.
        omegaconf.errors.OmegaConfBaseException: a key is unknown or missing, a value has the wrong
            type, or an interpolation leads nowhere.
    """
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    config = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), own)))
    if config.run.name is None:
        config.run.name = run_name(config)
    return config


def is_decisive(key: str) -> bool:
    """Whether a dotted key decides a run's results: all but where it runs, ends and is kept."""
    return not any(f"{key}.".startswith(f"{each}.") for each in _ELSEWHERE)


def identity(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What of a configuration decides a run's results, see :func:`is_decisive`.

    Args:
        content: the resolved configuration as plain containers.
        prefix: of the keys of ``content``, where that is a node of the configuration.
    """
    return {
        name: identity(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in content.items()
        if is_decisive(f"{prefix}{name}")
    }


def run_name(config: Config) -> str:
    """What was chosen, the seed, and the first eight digits of the identity's hash.

    Running the same command again finds the folder of the first time.
    """
    choices = (config.editor.name, config.sphere.name, config.model.name, config.dataset.name)
    digest = config_hash(identity(asdict(config)))
    return f"{'-'.join(choices)}-seed{config.seed}-{digest[:8]}"


def write_config(config: Config) -> None:
    """Write the run's ``config.yaml``, which ``run --config-dir FOLDER`` makes the run from."""
    with atomic_file(config.run.folder / CONFIG_FILE) as temporary:
        OmegaConf.save(OmegaConf.create(asdict(config)), temporary)


def read_config(folder: Path) -> Config:
    """The configuration that :func:`write_config` wrote.

    Raises:
        SphereBenchError: it is missing or damaged.
    """
    file = folder / CONFIG_FILE
    try:
        return validate(cast(DictConfig, OmegaConf.load(file)))
    except Exception as error:  # nothing that YAML, OmegaConf or the schema raise tells more
        raise SphereBenchError(f"{file} is missing or damaged: name a run's own folder") from error


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; a list is one value."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def register_resolvers() -> None:
    """``${sphere_bench.run_name:}`` for Hydra's folders.

    It validates the whole configuration, so a wrong one is told before any folder is made. With an
    argument it gives that instead: a sweep names the job's folder before it can report on the job.
    """

    def resolve(rejected: str | None = None, *, _root_: DictConfig) -> str:
        try:
            return cast(str, validate(_root_).run.name)
        except Exception:
            if rejected is None:
                raise
            return rejected

    OmegaConf.register_new_resolver("sphere_bench.run_name", resolve, replace=True)
