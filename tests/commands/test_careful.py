"""The careful evaluation: what it adds, what it leaves alone, and that it survives a kill."""

from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

from sphere_bench.cli import main
from sphere_bench.evaluation import harness
from sphere_bench.run_folder.folder import RunFolder
from sphere_bench.run_folder.summary import summarize
from tests.children import Nursery
from tests.run_tables import assert_same_tables, table, without_times

QUICK = (
    *("model.values.steps=3", "values.contexts=['Nobody knew why. {}']", "perplexity.tokens=50"),
    *("edits.total=6", "edits.batch_size=2", "checkpoint.every=1", "evaluation.seen=4"),
)
PROBES = ("generation", "locality", "fluency", "ability")
OFTEN = ("evaluation=careful", *(f"probes.{name}.every=1" for name in PROBES))
SMALL = (
    *("probes.generation.records=2", "probes.fluency.records=1", "probes.generation.prompts=1"),
    "probes.ability.items=8",
)
needs_lm_eval = pytest.mark.skipif(
    not harness.is_installed(), reason="general ability needs the extra lm-eval"
)


def arguments(root: Path, name: str, *overrides: str) -> list[str]:
    return ["run", f"run.root={root}", f"run.name={name}", *QUICK, *overrides]


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    assert main(arguments(root, "careful", *OFTEN, *SMALL)) == 0
    return root / "careful"


def test_every_step_has_answers_agreement_and_fluency(careful: Path) -> None:
    steps = table(careful, "steps")
    for name in ("efficacy_generation", "specificity_agreement", "neighbourhood_kl", "fluency"):
        assert steps[name].notna().all(), name
    unedited, last = (steps[steps["step"] == step].iloc[0] for step in (0, 3))
    assert unedited["specificity_agreement"] == unedited["specificity_generation"] == 100.0
    assert unedited["neighbourhood_kl"] == 0.0 < last["neighbourhood_kl"]
    assert unedited["efficacy_generation"] == 0.0
    said = table(careful, "generations")
    assert set(said["kind"]) == {"rewrite", "paraphrase", "neighbourhood"}
    # Two records a scope, one prompt of each kind.
    counts = said.groupby(["step", "scope"], observed=True).size()
    assert set(counts) == {6}
    # The tiny model ends its sentences.
    assert said["text"].str.endswith(".").mean() > 0.8


@needs_lm_eval
def test_every_step_has_the_abilities_of_the_tiny_world(
    careful: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    abilities = table(careful, "abilities").set_index(["step", "task", "metric"])
    tasks = (("tiny_kinds", "acc"), ("tiny_questions", "exact_match"))
    assert sorted(abilities.index) == [(step, *each) for step in range(4) for each in tasks]
    unedited = abilities.loc[0]
    assert (unedited["value"] > unedited["chance"] + 2 * unedited["stderr"]).all()
    assert (abilities["items"] == 8).all() and (abilities["seconds"] > 0).all()
    assert (table(careful, "steps")["seconds_ability"] > 0).all()
    assert main(["report", str(careful)]) == 0
    assert "General ability, its mean change" in " ".join(capsys.readouterr().out.split())


def test_the_table_that_ends_the_run_shows_answers_and_agreement(careful: Path) -> None:
    header, *rows = summarize(RunFolder(careful)).splitlines()[1:-1]
    shown = ["efficacy", "he_ratio", "efficacy_generation", "specificity_agreement"]
    assert set(header.split()) >= set(shown)
    agreement = header.split().index("specificity_agreement")
    assert rows[0].split()[agreement] == "100.0"


def test_without_lm_eval_it_says_so_in_one_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "is_installed", lambda: False)
    few = ("edits.total=2", *SMALL, *(f"probes.{name}.every=0" for name in PROBES[:3]))
    assert main(arguments(tmp_path, "without", "evaluation=careful", *few)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "lm-eval" in line]
    assert len(said) == 1 and "probes.ability.every=0" in said[0]
    assert table(tmp_path / "without", "abilities").empty
    assert main(["report", str(tmp_path / "without")]) == 0
    alone = ("+probe@probes.ability=ability", "edits.total=2")
    assert main(arguments(tmp_path, "alone", *alone)) == 2
    assert "pip install 'sphere-bench[lm-eval]'" in capsys.readouterr().err


def test_it_leaves_the_run_as_it_is_without(careful: Path) -> None:
    assert main(arguments(careful.parent, "plain")) == 0
    without = careful.parent / "plain"
    for name in ("cases", "layers", "geometry"):
        assert_frame_equal(
            without_times(table(careful, name)),
            without_times(table(without, name)),
            check_exact=True,
        )
    steps = without_times(table(without, "steps"))
    assert_frame_equal(table(careful, "steps")[list(steps)], steps, check_exact=True)


def test_killed_and_resumed_it_has_the_same_tables(
    careful: Path, nursery: Nursery, tmp_path: Path
) -> None:
    command = arguments(tmp_path, "careful", *OFTEN, *SMALL)
    nursery.killed_before(2, command, tmp_path)
    assert main(command) == 0
    assert_same_tables(tmp_path / "careful", careful)


def test_questions_are_answered_by_the_tiny_model(tmp_path: Path) -> None:
    asked = ("dataset=tiny-qa", "model.values.steps=10", "values.contexts=null")
    assert main(arguments(tmp_path, "qa", "evaluation=careful", *asked)) == 0
    steps = table(tmp_path / "qa", "steps").set_index(["step", "scope"])
    assert steps.loc[(0, "batch"), "specificity_generation"] == 100.0
    assert steps.loc[(3, "batch"), "efficacy_generation"] == 100.0
    # At its cadence the first step and the last have answers, and the others have none.
    assert steps["efficacy_generation"].isna().groupby("step").all().to_list() == [
        False,
        True,
        True,
        False,
    ]
    answers = pandas.read_parquet(tmp_path / "qa" / "generations")
    assert set(answers["scope"]) == {"batch", "seen", "first"}
    assert answers["case_id"].str.fullmatch(r"P\d+-\d+").all()


def test_a_judge_is_an_object_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lenient.py").write_text(
        "class Lenient:\n"
        "    def __init__(self, bonus: float = 0.0):\n"
        "        self.bonus = bonus\n\n"
        "    def __call__(self, said):\n"
        "        return [self.bonus if each.target not in each.answer else 1.0 for each in said]\n"
    )
    monkeypatch.chdir(tmp_path)
    judge = "probes.generation.judge={_target_: lenient.Lenient, bonus: 0.25}"
    command = arguments(tmp_path, "judged", "evaluation=careful", judge, "edits.total=2")
    assert main([*command, "--config-dir", "mine"]) == 0
    steps = table(tmp_path / "judged", "steps")
    assert steps.loc[steps["step"] == 0, "efficacy_generation"].unique().tolist() == [25.0]
    wrong = judge.replace("bonus", "bonsu")
    assert main([*arguments(tmp_path, "other", "evaluation=careful", wrong)]) == 2
    assert "no key 'probes.generation.judge.bonsu': Lenient takes bonus" in capsys.readouterr().err
