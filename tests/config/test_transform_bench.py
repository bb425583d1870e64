"""The bench of transforms asks for every transform, with and without compensation."""

from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir

from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config, config_folder, register_resolvers
from tests.run_tables import table

BENCH = "experiment=transform-bench"
TARGETS = {"rect": ["Rect"], "prune": ["Prune"], "revive": ["Revive"]}
APPLY = {
    "none": "after",
    "sphere": "in_loop",
    "rect": "after",
    "prune": "deployed",
    "revive": "in_loop",
}


def parameters() -> dict[str, list[str]]:
    """What the sweep goes over."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        composed = compose("run", [BENCH], return_hydra_config=True)
    return {key: str(each).split(",") for key, each in composed.hydra.sweeper.params.items()}


def test_every_job_of_an_editor_is_what_its_name_says() -> None:
    swept = parameters()
    assert swept["editor"] == ["memit", "memit-seq", "alphaedit"]
    names = set()
    for transform, compensate in product(swept["transform"], swept["editor.compensate"]):
        chosen = [f"transform={transform}", f"editor.compensate={compensate}"]
        config = compose_config([BENCH, "editor=memit-seq", *chosen])
        names.add(config.run.name)
        method = config.editor.method
        assert config.sphere.enabled == (transform == "sphere")
        nodes = [*method["transforms"], *filter(None, [method["conditioner"]])]
        found = [node["_target_"].rpartition(".")[2] for node in nodes]
        assert found == TARGETS.get(transform, [])
        assert config.editor.apply == APPLY[transform]
    # With nothing to compensate the two jobs are one run.
    assert len(names) == 2 * len(swept["transform"]) - 1


def test_the_sweep_runs_as_typed(tmp_path: Path) -> None:
    few = ("editor=memit-seq", "transform=prune", "edits.total=4", "edits.batch_size=2")
    quick = ("model.values.steps=3", "values.contexts=['{}']", "perplexity.tokens=50")
    assert main(["run", "-m", BENCH, f"run.root={tmp_path}", *few, *quick]) == 0
    runs = sorted(tmp_path.glob("memit-seq-off-*-prune-*"))
    assert ["-compensatetrue-" in run.name for run in runs] == [False, True]
    first, second = (table(run, "layers").query("step == 2")["update_norm"] for run in runs)
    assert (first.to_numpy() != second.to_numpy()).all()
