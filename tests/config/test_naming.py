"""Names of runs: what was chosen, the seed, and digits of what decides the results."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sphere_bench.config.composition import (
    config_folder,
    register_resolvers,
    validate,
    write_config,
)
from sphere_bench.config.schema import Config
from sphere_bench.errors import SphereBenchError

DEFAULT = "memit-paper-tiny-gpt2-tiny-counterfact-seed0"


@pytest.fixture(autouse=True)
def hydra_configs() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        yield


@cache
def name(*overrides: str) -> str:
    found = validate(compose("run", list(overrides)), overrides).run.name
    assert found is not None
    return found


def digits(*overrides: str) -> str:
    return name(*overrides).rpartition("-")[2]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], DEFAULT),
        (["sphere=off"], "memit-off-tiny-gpt2-tiny-counterfact-seed0"),
        (["seed=3"], "memit-paper-tiny-gpt2-tiny-counterfact-seed3"),
        (["editor=prune", "dataset=tiny-zsre"], "prune-paper-tiny-gpt2-tiny-zsre-seed0"),
        (["sphere.alpha=0.2"], "memit-alpha0.2-tiny-gpt2-tiny-counterfact-seed0"),
        (["++sphere.alpha=0.2"], "memit-alpha0.2-tiny-gpt2-tiny-counterfact-seed0"),
        (
            ["sphere.eta=0.30", "sphere.alpha=.2"],
            "memit-alpha0.2-eta0.3-tiny-gpt2-tiny-counterfact-seed0",
        ),
        (
            ["sphere=published-code", "sphere.alpha=0.2"],
            "memit-published-code-alpha0.2-tiny-gpt2-tiny-counterfact-seed0",
        ),
        (["sphere.enabled=false"], "memit-enabledfalse-tiny-gpt2-tiny-counterfact-seed0"),
        (["sphere.name=mine"], "memit-mine-tiny-gpt2-tiny-counterfact-seed0"),
        (["edits.batch_size=20"], "memit-paper-tiny-gpt2-tiny-counterfact-batch_size20-seed0"),
        (
            ["evaluation=sparse", "edits.shuffle=true", "edits.batch_size=4", "experiment=smoke"],
            "memit-paper-tiny-gpt2-tiny-counterfact-sparse-smoke-batch_size4-shuffletrue-seed0",
        ),
        (["model.layers=[1,2]"], "memit-paper-tiny-gpt2-tiny-counterfact-layers1_2-seed0"),
        (
            ["values.contexts=['So: {}','{}']"],
            "memit-paper-tiny-gpt2-tiny-counterfact-contextsSo-seed0",
        ),
        (
            ["model.values={steps: 3, kl_factor: 0}"],
            "memit-paper-tiny-gpt2-tiny-counterfact-steps3-kl_factor0-seed0",
        ),
        (
            ["++model.editors.memit.values.learning_rate=0.25"],
            "memit-paper-tiny-gpt2-tiny-counterfact-learning_rate0.25-seed0",
        ),
        (
            ["editor.values.steps=7", "editor.context_lengths=[[4,2],[6,1]]"],
            "memit-paper-tiny-gpt2-tiny-counterfact-steps7-context_lengths4_2_6_1-seed0",
        ),
        (
            ["values.context_tokens=9"],
            "memit-paper-tiny-gpt2-tiny-counterfact-context_tokens9-seed0",
        ),
        (
            ["editor.method.transforms=[{_target_: a.b.Rect}]"],
            "memit-paper-tiny-gpt2-tiny-counterfact-transformsRect-seed0",
        ),
    ],
)
def test_a_name_shows_what_was_chosen(overrides: list[str], expected: str) -> None:
    assert name(*overrides).rpartition("-")[0] == expected


def test_digits_are_eight() -> None:
    assert len(digits()) == 8 and set(digits()) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "override",
    [
        "run.root=elsewhere",
        "run.on_mismatch=restart",
        "run.on_locked=skip",
        "device=cpu",
        "statistics.cache=here",
        "checkpoint.every=3",
        "checkpoint.steps=[1]",
        "collapse.efficacy=10",
        "objective.metric=efficacy",
        "trackers=wandb",
        "model.path=elsewhere",
        "dataset.path=facts.json",
        "dataset.url=https://example.org/facts.json",
        "values.tokens_per_batch=64",
        "evaluation.tokens_per_batch=64",
        "statistics.tokens_per_batch=64",
        "edits.total=100",
        "edits.total=null",
    ],
)
def test_where_a_run_happens_and_how_long_it_is_are_not_in_its_name(override: str) -> None:
    assert name(override) == name()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "sphere=off",
        "sphere.alpha=0.7",
        "editor.sphere.alpha=0.7",
        "edits.batch_size=20",
        "edits.shuffle=true",
        "edits.start=1",
        "dataset=tiny-zsre",
        "dataset.format=easyedit",
        "model.dtype=bfloat16",
        "model.layers=[1]",
        "model.values.steps=3",
        "model.second_moment_weight=6",
        "editor.method.solver.second_moment_weight=6",
        "values.contexts=['{}']",
        "values.context_tokens=9",
        "editor.context_lengths=[[10,4]]",
        "++model.editors.memit.values.kl_factor=0.1",
        "++model.editors.memit.second_moment_weight=6",
        "statistics.tokens=100",
        "statistics.corpus=generated",
        "perplexity.tokens=0",
        "evaluation.every=2",
        "evaluation.milestones=[10]",
        "numerics.largest_update=3",
        "energy.exponent=2",
        "+probes.mine={_target_: m.P, every: 1}",
    ],
)
def test_whatever_changes_a_result_changes_the_digits(override: str) -> None:
    assert digits(override) != digits()


@pytest.mark.parametrize(
    ("context", "override"),
    [
        ("sphere=off", "sphere.alpha=0.7"),
        ("sphere=off", "sphere.eta=0.7"),
        ("sphere=off", "editor.sphere.alpha=0.7"),
        ("values.contexts=['{}']", "values.context_tokens=3"),
        ("perplexity.tokens=0", "perplexity.corpus=generated"),
        ("editor=ultraedit", "model.layers=[1]"),
        ("editor=rome", "values.context_tokens=3"),
        ("editor=rome", "model.values.clamp_norm_factor=3"),
        ("editor=ft-l", "++model.editors.rome.values={steps: 3}"),
        ("++model.editors.memit={layers: [1], values: {steps: 3}}", "model.layers=[2]"),
        ("++model.editors.memit={layers: [1], values: {steps: 3}}", "model.values.steps=4"),
        ("+probes.mine={_target_: m.P, every: 0}", "++probes.mine.seed=3"),
    ],
)
def test_a_key_without_effect_is_not_in_the_name(context: str, override: str) -> None:
    assert name(context, override) == name(context)


@pytest.mark.parametrize("context", ["edits.shuffle=true", "evaluation.milestones=[0,100]"])
def test_the_number_of_edits_decides_where_it_changes_what_comes_first(context: str) -> None:
    assert digits(context, "edits.total=100") != digits(context)
    assert "total100" in name(context, "edits.total=100")


def test_equal_values_have_equal_digits() -> None:
    assert digits("model=tiny-gpt2", "sphere.eta=0.50", "model.values.steps=20") == digits()
    assert digits("energy.exponent=2") == digits("energy.exponent=2.0")


def test_the_order_of_the_command_line_does_not_count() -> None:
    chosen = ["sphere.alpha=0.2", "seed=1", "evaluation=sparse", "edits.batch_size=20"]
    assert name(*chosen) == name(*reversed(chosen))


def test_a_name_is_not_longer_than_a_file_system_takes() -> None:
    contexts = ",".join(f"'a rather long prefix number {number} {{}}'" for number in range(20))
    steps = [f"model.values.{key}=0.123456789" for key in ("learning_rate", "weight_decay")]
    many = name(f"values.contexts=[{contexts}]", *steps, "statistics.max_length=500")
    assert "contextsa_rather_long_prefix" in many
    assert "learning_rate0.123457" in many
    assert len(many) <= 160


def test_characters_of_values_are_those_of_names() -> None:
    long = name("model.revision='a/b c:ü*'")
    assert "-revisiona_b_c-" in long


def recorded(folder: Path, *overrides: str) -> Config:
    """A run's configuration in its folder, and what a rerun from there makes of it."""
    first = ["run.root=" + str(folder), *overrides]
    config = validate(compose("run", first), first)
    config.run.folder.mkdir()
    write_config(config, config.run.folder / "config.yaml")
    return config


def again(first: Config, *overrides: str) -> str:
    composed = OmegaConf.load(first.run.folder / "config.yaml")
    composed.merge_with_dotlist(list(overrides))
    found = validate(composed, overrides).run.name  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_rerun_from_a_runs_folder_keeps_the_name_as_long_as_the_results_are_the_same(
    tmp_path: Path,
) -> None:
    first = recorded(tmp_path, "edits.batch_size=20")
    assert again(first) == first.run.name
    assert again(first, "run.root=elsewhere", "device=cpu", "edits.total=60") == first.run.name
    given = recorded(tmp_path, "run.name=mine")
    assert again(given, "device=cpu") == "mine"


def test_a_rerun_from_a_runs_folder_with_other_results_has_a_name_of_its_own(
    tmp_path: Path,
) -> None:
    first = recorded(tmp_path, "edits.batch_size=20", "sphere.alpha=0.3")
    other = again(first, "sphere.alpha=0.2", "seed=4")
    assert other == name("edits.batch_size=20", "sphere.alpha=0.2", "seed=4")
    assert "-alpha0.2-" in other and "-batch_size20-seed4-" in other
    given = recorded(tmp_path, "run.name=mine")
    assert again(given, "seed=4") == name("seed=4")
    assert again(given, "seed=4", "run.name=mine") == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.layers", "[1]"), ("editor.sphere.alpha", "0.1"), ("model.values.steps", "3")],
)
def test_a_key_that_does_nothing_in_a_recorded_configuration_is_refused(
    key: str, value: str, tmp_path: Path
) -> None:
    first = recorded(tmp_path)
    with pytest.raises(SphereBenchError, match=f"^{key} does nothing in a run's own config"):
        again(first, f"{key}={value}")


def test_a_name_from_a_file_of_ones_own_is_kept() -> None:
    composed = compose("run", ["sphere.alpha=0.2"])
    composed.run.name = "mine"
    assert validate(composed, ["sphere.alpha=0.2"]).run.name == "mine"


def test_the_name_is_known_from_what_hydra_composed() -> None:
    composed = compose("run", ["sphere.alpha=0.2"], return_hydra_config=True)
    assert validate(composed).run.name == name("sphere.alpha=0.2")
    assert asdict(validate(composed))["run"]["overrides"] == ["sphere.alpha=0.2"]
