import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from sphere_bench.config.composition import (
    check_unedited,
    config_folder,
    groups,
    known_keys,
    read_config,
    register_resolvers,
    validate,
    write_config,
)
from sphere_bench.config.schema import Config
from sphere_bench.config.schema.calibration import CalibrateConfig
from sphere_bench.data.configured import build_dataset
from sphere_bench.errors import SphereBenchError

OPTIONS = [
    # Probes are added to those that the group `evaluation` chooses.
    f"+probe@probes.another={option}" if group == "probe" else f"{group}={option}"
    for group, options in groups().items()
    for option in options
]
# METHODS: layers, steps, learning rate, weight decay, clamp, lambda.
PUBLISHED = {
    "gpt2-xl": ([13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 20000),
    "gpt-j-6b": ([3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, 15000),
    "llama3-8b": ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 15000),
    "llama3-8b-random": ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 15000),
    "qwen2.5-7b": ([4, 5, 6, 7, 8], 25, 0.5, 1e-3, 4, 15000),
    "phi-1.5": ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 15000),
}


@pytest.fixture(autouse=True)
def hydra_configs() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        yield


def typed(*overrides: str) -> Config:
    return validate(compose("run", list(overrides)), overrides)


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


@pytest.mark.parametrize(
    ("asked", "alphas"), [([], [0.8, 0.5]), (["sphere.alpha=0.3"], [0.3, 0.3])]
)
def test_each_editor_of_a_calibration_has_its_own_alpha(asked, alphas):
    overrides = ["model.path=bundled", "sphere=paper", *asked]
    config = validate(compose("calibrate", overrides), overrides, CalibrateConfig)
    editors = (config.editor, config.calibration.null_space_editor)
    assert [editor.name for editor in editors] == ["memit", "alphaedit"]
    assert [config.sphere_of(editor).alpha for editor in editors] == alphas


def test_records_of_ones_own_are_all_edited(tmp_path):
    file = tmp_path / "facts.json"
    fact = {"target_new": "Peru", "ground_truth": "Chad"}
    cities = [f"City{number}." for number in range(12)]
    facts = [{**fact, "prompt": f"{city} is in", "subject": city} for city in cities]
    file.write_text(json.dumps(facts))
    dataset = build_dataset(typed("dataset=own-records", f"dataset.path={file}"))
    assert [record.request.subject for record in dataset.records] == cities
    with pytest.raises(SphereBenchError, match=r"set dataset\.path=<file>"):
        build_dataset(typed("dataset=own-records"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_makes_a_valid_configuration(option):
    config = typed(option)
    group, _, name = option.partition("=")
    if hasattr(getattr(config, group, None), "name"):
        assert getattr(config, group).name == name
    assert config.run.name
    found = set(targets(asdict(config)))
    for target in found:
        assert callable(get_object(target))
    if group == "editor":
        method = config.editor.method
        assert {"transforms", "conditioner", "continue_from"} <= method.keys()
        assert "_partial_" not in method
        assert method["_target_"] in found
        assert option != "editor=memit" or "sphere_bench.editing.solvers.LeastSquares" in found


def test_the_defaults_are_those_that_scripts_rely_on():
    config = typed()
    assert (config.seed, config.device, config.model.dtype) == (0, "auto", "float32")
    assert (config.edits.start, config.edits.shuffle) == (0, False)
    assert config.values.contexts is None
    assert config.statistics.corpus == "bundled"
    assert (config.energy.exponent, config.energy.eps) == (1, 1e-6)
    evaluation = config.evaluation
    assert (evaluation.every, evaluation.seen, evaluation.first) == (1, 200, 100)
    assert (config.run.root, config.checkpoint.every) == ("results", 10)
    assert (config.run.on_mismatch, config.run.on_locked) == ("error", "error")
    assert (config.objective.metric, config.objective.scope) == ("score", "seen")
    assert config.model.path == config.dataset.path == "bundled"


def test_a_real_model_reads_wikipedia_and_a_real_dataset_is_downloaded():
    config = typed("model=gpt2-xl", "dataset=counterfact")
    assert config.statistics.corpus.startswith("wikimedia/wikipedia")
    assert (config.dataset.path, config.dataset.format) == (None, "auto")
    assert config.edits.batch_size == 100


def test_sphere_is_the_papers_unless_the_published_codes_is_asked_for():
    assert typed().editor.apply == "in_loop"
    assert typed("sphere=published-code").editor.apply == "after"
    paper, published = typed().sphere, typed("sphere=published-code").sphere
    assert (paper.enabled, paper.alpha, paper.eta) == (True, 0.8, 0.5)
    assert (paper.basis, paper.normalize_rows) == ("pretrained", False)
    assert paper.rank_rule == "paper"
    assert (published.enabled, published.alpha, published.eta) == (True, 0.8, 0.5)
    assert (published.basis, published.normalize_rows) == ("current", True)
    assert published.rank_rule == "published-code"
    assert not typed("sphere=off").sphere.enabled


@pytest.mark.parametrize(
    "editor, off, paper, published",
    [
        ("memit", "after", "in_loop", "after"),
        ("rect", "after", "after", "after"),
        ("alphaedit", "in_loop", "in_loop", "in_loop"),
        ("nas", "in_loop", "in_loop", "in_loop"),
        ("rome", "in_loop", "in_loop", "in_loop"),
        ("ft", "in_loop", "in_loop", "in_loop"),
        ("ft-l", "in_loop", "in_loop", "in_loop"),
        ("ultraedit", "in_loop", "in_loop", "in_loop"),
        ("prune", "deployed", "deployed", "deployed"),
        ("emmet", "after", "in_loop", "after"),
        ("rlsedit", "after", "in_loop", "after"),
    ],
)
def test_where_transforms_apply_follows_the_editor(editor, off, paper, published):
    found = [
        typed(f"editor={editor}", f"sphere={sphere}").editor.apply
        for sphere in ("off", "paper", "published-code")
    ]
    assert found == [off, paper, published]
    assert typed(f"editor={editor}", "editor.apply=after").editor.apply == "after"


def test_alpha_follows_the_editor_unless_it_is_set():
    assert typed("editor.sphere.alpha=0.5").sphere.alpha == 0.5
    assert typed("editor.sphere.alpha=0.5", "sphere.alpha=0.3").sphere.alpha == 0.3


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_their_published_numbers(name):
    model = typed(f"model={name}").model
    values = model.values
    assert PUBLISHED[name] == (
        model.layers,
        values.steps,
        values.learning_rate,
        values.weight_decay,
        values.clamp_norm_factor,
        model.second_moment_weight,
    )
    assert (values.kl_factor, values.loss_threshold) == (0.0625, 0.05)


def test_an_experiment_is_the_papers_setting():
    config = typed("experiment=as-published/sphere-llama3-8b-zsre")
    assert (config.model.name, config.dataset.name) == ("llama3-8b", "zsre")
    assert (config.edits.total, config.edits.batch_size) == (15000, 100)
    assert (
        typed("experiment=as-published/sphere-llama3-8b-zsre", "model=gpt2-xl").model.name
        == "gpt2-xl"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sphere.alpha=1.5", r"sphere\.alpha=1\.5: must be between 0 and 1"),
        ("sphere.alpha=-0.1", r"sphere\.alpha=-0\.1: must be between 0 and 1"),
        ("sphere.alpha=nan", r"sphere\.alpha=nan"),
        ("sphere.eta=0", r"sphere\.eta=0\.0: must be a number greater than 0"),
        ("sphere.eta=1.01", r"sphere\.eta=1\.01: must be between 0 and 1"),
        ("sphere.basis=old", r"sphere\.basis=old: must be one of pretrained, current"),
        ("sphere.rank_rule=mine", r"sphere\.rank_rule=mine: .*published-code"),
        ("editor.apply=never", r"editor\.apply=never: must be one of in_loop, after"),
        ("editor.sphere.alpha=2", r"editor\.sphere\.alpha=2\.0"),
        ("edits.batch_size=0", r"edits\.batch_size=0: must be a number of at least 1"),
        ("edits.batch_size=1000", r"edits\.batch_size=1000 is larger than edits\.total=200"),
        ("edits.total=0", r"edits\.total=0"),
        ("edits.start=-1", r"edits\.start=-1"),
        ("seed=-1", r"seed=-1"),
        ("device=gpu", r"device=gpu: must be one of auto, cpu, cuda"),
        ("device='cuda:first'", r"device=cuda:first"),
        ("model.dtype=int8", r"model\.dtype=int8: must be one of float32"),
        ("model.layers=[]", r"model\.layers=\[\]"),
        ("model.layers=[2,1]", r"model\.layers=\[2, 1\]: must be a rising list"),
        ("model.layers=[-1,1]", r"model\.layers=\[-1, 1\]"),
        ("model.values.learning_rate=inf", r"model\.values\.learning_rate=inf"),
        ("model.values.steps=0", r"model\.values\.steps=0"),
        ("model.second_moment_weight=0", r"model\.second_moment_weight=0"),
        ("editor.values.steps=0", r"editor\.values\.steps=0: must be a number of at least 1"),
        ("editor.layers=[2,1]", r"editor\.layers=\[2, 1\]: must be a rising list"),
        ("++model.editors.memit.layers=[a]", r"editor\.layers=\['a'\]: must be a rising list"),
        ("editor.context_lengths=[[3,0]]", r"editor\.context_lengths=\[\[3, 0\]\]: must be pairs"),
        ("editor.context_lengths=[[3]]", r"editor\.context_lengths=\[\[3\]\]: must be pairs"),
        ("values.contexts=['a {}','b']", r"values\.contexts: 'b' must hold exactly one \{\}"),
        ("values.contexts=['{} {}']", r"values\.contexts: '\{\} \{\}'"),
        ("statistics.tokens=0", r"statistics\.tokens=0"),
        ("statistics.precision=half", r"statistics\.precision=half: must be one of float32"),
        ("energy.exponent=0", r"energy\.exponent=0"),
        ("energy.eps=0", r"energy\.eps=0"),
        ("evaluation.every=0", r"evaluation\.every=0"),
        ("evaluation.seen=-1", r"evaluation\.seen=-1"),
        ("evaluation.milestones=[-5]", r"evaluation\.milestones=-5"),
        ("dataset.target=question", r"dataset\.target=question: must be one of answers, alt"),
        ("dataset.on_invalid=ignore", r"dataset\.on_invalid=ignore: must be one of error, skip"),
        ("checkpoint.every=0", r"checkpoint\.every=0"),
        ("checkpoint.keep=0", r"checkpoint\.keep=0: must be a number of at least 1"),
        ("checkpoint.steps=[5,0]", r"checkpoint\.steps=0: must be a number of at least 1"),
        ("run.on_mismatch=ignore", r"run\.on_mismatch=ignore: must be one of error, restart"),
        ("run.on_locked=wait", r"run\.on_locked=wait: must be one of error, skip"),
        ("objective.metric=''", r"objective\.metric is empty"),
        ("+probes.mine.every=1", r"probes\.mine\._target_ is missing: name the probe's class"),
        ("+probes.mine={_target_: m.P}", r"probes\.mine\.every=None: must be the steps"),
        ("+probes.mine={_target_: m.P, every: -1}", r"probes\.mine\.every=-1"),
        ("run.name=../elsewhere", r"run\.name=\.\./elsewhere: must be one folder's name"),
        ("run.name='..'", r"run\.name=\.\."),
        ("run.name=''", r"run\.name="),
        ("model.name=a/b", r"model\.name=a/b"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key_and_the_range(override, message):
    with pytest.raises(SphereBenchError, match=f"^{message}"):
        typed(override)


@pytest.mark.parametrize("edge", ["sphere.alpha=0", "sphere.alpha=1", "sphere.eta=1"])
def test_the_ends_of_a_range_belong_to_it(edge):
    assert typed(edge).sphere.enabled


def test_all_edits_of_a_dataset_are_allowed_in_batches_of_any_size():
    assert typed("edits.total=null", "edits.batch_size=5000").edits.total is None


@pytest.mark.parametrize("override", ["+sphere.alhpa=0.5", "+spheer=1", "+dataset.paht=x"])
def test_an_unknown_key_is_refused(override):
    key = override[1:].partition("=")[0].rpartition(".")[2]
    with pytest.raises(ConfigKeyError, match=f"Key '{key}' not in"):
        typed(override)


def test_a_missing_key_and_a_wrong_type_are_refused():
    with pytest.raises(MissingMandatoryValue, match="alpha"):
        typed("~sphere.alpha")
    with pytest.raises(ValidationError, match="'many'"):
        typed("edits.total=many")


def test_a_file_that_starts_with_an_underscore_is_no_option(tmp_path):
    (tmp_path / "editor").mkdir()
    (tmp_path / "hydra").mkdir()
    for name in ("editor/_base", "editor/mine", "editor/also", "hydra/mine"):
        (tmp_path / f"{name}.yaml").touch()
    assert groups([tmp_path]) == {"editor": ["also", "mine"]}
    assert groups()["sphere"] == ["off", "paper", "published-code"]


def test_every_key_of_the_schema_is_known():
    keys = set(known_keys())
    assert {"seed", "sphere.alpha", "model.values.steps", "editor.sphere.alpha"} <= keys


def test_a_name_that_is_given_is_kept_and_the_folder_is_below_the_root():
    config = typed("run.name=mine", "run.root=runs")
    assert config.run.folder.as_posix() == "runs/mine"


def test_hydra_writes_where_the_run_does():
    composed = compose("run", ["run.root=runs", "seed=5"], return_hydra_config=True)
    folder = validate(composed).run.folder
    assert OmegaConf.select(composed, "hydra.run.dir") == folder.as_posix()
    assert OmegaConf.select(composed, "hydra.sweep.dir") == "runs"
    assert OmegaConf.select(composed, "hydra.sweep.subdir") == folder.name


def test_a_runs_configuration_comes_back_as_it_was(tmp_path):
    mine = typed(f"run.root={tmp_path}", "run.name=mine", "values.contexts=['So: {}']")
    file = tmp_path / "config.yaml"
    write_config(mine, file)
    assert read_config(file) == mine
    assert mine.run.overrides == [
        f"run.root={tmp_path}",
        "run.name=mine",
        "values.contexts=['So: {}']",
    ]


def test_a_run_from_before_statistics_had_a_precision_can_be_read(tmp_path):
    config = typed("run.name=old")
    file = tmp_path / "config.yaml"
    write_config(config, file)
    kept = OmegaConf.load(file)
    del kept.statistics["precision"]
    OmegaConf.save(kept, file)
    assert read_config(file) == config


def test_a_run_from_before_editors_had_values_of_their_own_can_be_read(tmp_path):
    config = typed("run.name=old", "editor.context_lengths=[]")
    file = tmp_path / "config.yaml"
    write_config(config, file)
    kept = OmegaConf.load(file)
    del kept.editor["values"], kept.editor["context_lengths"]
    OmegaConf.save(kept, file)
    assert read_config(file) == config


def test_a_configuration_that_was_edited_in_a_runs_folder_is_noticed(tmp_path):
    config = typed("run.name=mine", "values.contexts=['So: {}']")
    file = tmp_path / "config.yaml"
    write_config(config, file)
    check_unedited(file, asdict(config))
    file.write_text(file.read_text().replace("alpha: 0.8", "alpha: 0.3"))
    with pytest.raises(
        SphereBenchError, match=r"config.yaml was edited .*sphere\.alpha 0\.8 -> 0\.3\): undo"
    ):
        check_unedited(file, asdict(config))


@pytest.mark.parametrize("content", [None, "", "a: [", "seed: 0", "- 1", "\0"])
def test_a_damaged_configuration_of_a_run_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SphereBenchError, match=r"config\.yaml is missing or damaged"):
        read_config(tmp_path / "config.yaml")


def test_a_datasets_loader_takes_the_keys_of_the_dataset():
    config = typed("dataset.path=facts.json", "dataset.format=zsre", "dataset.target=alt")
    assert config.dataset.loader == {
        "_target_": "sphere_bench.data.record_file.RecordFile",
        "path": "facts.json",
        "format": "zsre",
        "url": None,
        "split": None,
        "target": "alt",
    }


def test_a_dataset_without_a_loader_names_the_key():
    with pytest.raises(SphereBenchError, match=r"dataset\.loader\._target_ is missing"):
        typed("~dataset.loader._target_")
