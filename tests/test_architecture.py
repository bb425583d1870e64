"""The house: which way imports go, and that each thing is written in one place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sphere_bench"
MODULES = sorted(PACKAGE.rglob("*.py"))

# config -> models, data -> editing -> evaluation -> run folder -> stream and report -> calibration
# -> commands.
FLOORS = (
    {"errors", "signals", "assets"},
    {"files"},
    {"config"},
    {"data"},
    {"models"},
    {"geometry"},
    {"editing"},
    {"evaluation"},
    {"run_folder"},
    {"stream"},
    {"report"},
    {"build"},
    {"calibration"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MATHEMATICS = ("editing/solvers.py", "geometry/energy.py", "geometry/subspace.py")


def name_of(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(module: Path) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_nothing_is_imported_against_the_arrow(module: Path) -> None:
    own = room_of(module)
    if own == "__init__":
        return
    for name in imports_of(module):
        parts = name.split(".")
        if parts[0] == "sphere_bench" and len(parts) > 1 and parts[1] in FLOOR:
            assert parts[1] == own or FLOOR[parts[1]] < FLOOR[own], name


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_imports_torch_alone(name: str) -> None:
    allowed = ("torch", "math", "abc", "collections", "typing", "dataclasses", "sphere_bench")
    for imported in imports_of(PACKAGE / name):
        assert imported.split(".")[0] in allowed, imported
        if imported.startswith("sphere_bench"):
            assert imported.split(".")[1] in ("errors", "geometry"), imported


def test_the_report_reads_only_files() -> None:
    for module in MODULES:
        if room_of(module) == "report":
            for imported in imports_of(module):
                assert imported.split(".")[0] not in ("torch", "transformers", "datasets")
                assert imported.split(".")[:2] not in (["sphere_bench", "models"],)


def test_at_most_seven_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 7


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_has_at_most_300_lines(module: Path) -> None:
    assert len(module.read_text("utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "provenance.json",
        "progress.json",
        "run.log",
        "run.lock",
        "checkpoints",
        "part-",
        "weights.safetensors",
        "editor.safetensors",
        "probes.safetensors",
        "state.json",
    ],
)
def test_a_file_of_a_runs_folder_is_spelled_in_one_module(name: str) -> None:
    literal = re.compile(rf"""f?(["']){re.escape(name)}\1""")
    spelled = {name_of(module) for module in MODULES if literal.search(module.read_text("utf-8"))}
    assert len(spelled) == 1


def test_the_stream_knows_no_probe_editor_model_or_dataset_by_name() -> None:
    configs = PACKAGE.parent / "configs"
    names = {
        file.stem
        for group in ("editor", "model", "dataset", "probe")
        for file in (configs / group).glob("[!_]*.yaml")
    }
    rooms = [module for module in MODULES if room_of(module) in ("stream", "run_folder")]
    for module in rooms:
        # The thresholds of collapse are the configuration's own keys.
        if name_of(module) == "stream/early_stopping.py":
            continue
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{name_of(module)}: {node.value}"
