"""Every editor of the configuration runs three batches, with SPHERE and without."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas
import pytest

from sphere_bench.commands.run import run
from sphere_bench.config.composition import compose_config
from sphere_bench.config.schema import Config
from tests.every_editor import EDITORS, needs_peft
from tests.golden_numbers import GOLDEN, NAMES

# The golden models are small: few steps, their own lambda, statistics from a handful of texts.
OVERRIDES = (
    "model.layers=[0,1,2]",
    "model.editors.rome.layer=1",
    "model.editors.fine_tuning.layer=3",
    "model.values.steps=2",
    "values.contexts=['Nobody knew why. {}']",
    "edits.total=6",
    "edits.batch_size=2",
    "evaluation.seen=2",
    "evaluation.every=3",
    "perplexity.tokens=20",
    "checkpoint.every=2",
)
FEW_STEPS = ("editor.method.steps=5",)
OWN = {
    "stableedit": ("editor.method.warmup_batches=2",),
    **dict.fromkeys(("crispedit", "locft-bf-replay", "lora"), FEW_STEPS),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "facts.txt"
    records = json.loads((GOLDEN / NAMES[0] / "published.json").read_text())["records"]
    lines = [
        f"{prompt} {record['requested_rewrite']['target_true']['str']}."
        for record in records
        for prompt in record["neighborhood_prompts"]
    ]
    file.write_text("\n".join(lines * 40))
    return file


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "records.json"
    published = json.loads((GOLDEN / NAMES[0] / "published.json").read_text())
    file.write_text(json.dumps(published["records"]))
    return file


@cache
def composed(editor: str, sphere: str, records: Path, corpus: Path) -> Config:
    """The configuration; the model and the root of the run are to be set."""
    files = (f"dataset.path={records}", f"statistics.corpus={corpus}", "run.name=run")
    own = OWN.get(editor, ())
    return compose_config([f"editor={editor}", f"sphere={sphere}", *files, *OVERRIDES, *own])


@pytest.mark.parametrize("sphere", ["off", "paper"])
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("editor", EDITORS)
def test_three_batches(
    editor: str, model: str, sphere: str, records: Path, corpus: Path, tmp_path: Path
) -> None:
    config = composed(editor, sphere, records, corpus)
    run(
        replace(
            config,
            model=replace(config.model, path=str(GOLDEN / model)),
            run=replace(config.run, root=str(tmp_path)),
        )
    )
    steps = pandas.read_parquet(tmp_path / "run" / "steps")
    layers = pandas.read_parquet(tmp_path / "run" / "layers")
    assert steps["step"].max() == 3 and steps["edits"].max() == 6
    after = layers[layers["step"] > 0]
    assert (after["update_norm"] > 0).all() and (after["applied_norm"] > 0).all()
    assert (layers.loc[layers["step"] == 3, "drift"] > 0).all()
    if sphere == "off":
        assert after["rank"].isna().all()
    else:
        assert (after["rank"] > 0).all()
        # PRUNE's deployed change is not the batch's own.
        if editor != "prune":
            assert (after["applied_norm"] < after["update_norm"]).all()


# Of the other editors the golden numbers show that edits take.
@pytest.mark.parametrize("sphere", ["off", "paper"])
@pytest.mark.parametrize(
    "editor",
    [
        *("simie", "betaedit", "lyaplock", "stableedit", "crispedit", "locft-bf-replay"),
        pytest.param("lora", marks=needs_peft),
    ],
)
def test_edits_take_on_the_bundled_model(editor: str, sphere: str, tmp_path: Path) -> None:
    config = compose_config(
        [
            *(f"editor={editor}", f"sphere={sphere}", f"run.root={tmp_path}", "run.name=run"),
            *("edits.total=15", "edits.batch_size=5", "values.contexts=['Nobody knew why. {}']"),
            *("evaluation.every=3", "perplexity.tokens=50", "checkpoint.every=3"),
        ]
    )
    run(config)
    steps = pandas.read_parquet(tmp_path / "run" / "steps")
    seen = steps[steps["scope"] == "seen"].set_index("step")["efficacy_success"]
    assert seen[0] < 10 and seen[3] > 80
