"""The three claims: what is run, what is made of it, and that the check notices what differs."""

import json
import math
import shutil
from pathlib import Path

import pandas
import pytest
from scipy import stats

from scripts.claims import Planned, overrides, plan, prepare, sweep
from scripts.claims_tables import check_tables, effects, p_value, verdict, write_tables
from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.finding import find_runs

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
NAMES = [f"{sphere}-seed{seed}" for seed in SEEDS for sphere in ("off", "paper")]
BLOCKS = ("runs", "claim1", "claim2", "warning", "claim3", "angles")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a small experiment; the last pair has not been made."""
    root = tmp_path_factory.mktemp("claims")
    for name in NAMES[:-2]:
        sphere, seed = name.split("-seed")
        settings = ["edits.total=4", "edits.batch_size=2", "edits.shuffle=true"]
        settings += ["model.values.steps=4", "values.contexts=['{}']", "perplexity.tokens=20"]
        place = [f"run.root={root}", f"run.name={name}", f"sphere={sphere}", f"seed={seed}"]
        assert main(["run", *settings, *place]) == 0
    return root


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page")
    texts = [f"# {name}\n<!-- made: {name} -->\n<!-- end -->\n" for name in BLOCKS]
    (page / "README.md").write_text("\n".join(texts), encoding="utf-8")
    write_tables(page, made, NAMES)
    return page


def test_every_pair_of_the_first_seed_comes_first() -> None:
    runs = list(plan())
    assert len({run.name for run in runs}) == len(runs) == 34
    seeds = [run.seed for run in runs]
    assert seeds == sorted(seeds)
    for editor in ("memit", "memit-seq", "rect", "alphaedit"):
        arms = [(run.sphere, run.seed) for run in runs if run[:2] == ("counterfact", editor)]
        assert {*arms} >= {(sphere, seed) for sphere in ("off", "paper") for seed in SEEDS}


@pytest.mark.parametrize(
    "run",
    [run for run in (*plan(), next(sweep())) if run.sphere == "paper" and not run.seed],
    ids=lambda run: run.name,
)
def test_what_is_said_of_a_run_is_what_it_is(run: Planned, tmp_path: Path) -> None:
    config = compose_config(["experiment=claims", *overrides(run, tmp_path, tmp_path)])
    assert (config.run.name, config.seed) == (run.name, run.seed)
    assert config.edits.total == (800 if run.dataset == "zsre" else 1000)
    assert (config.editor.name, config.sphere.enabled) == (run.editor, True)
    published = 0.5 if run.editor == "alphaedit" else 0.8
    assert config.sphere.alpha == (published if run.alpha is None else run.alpha)


def test_prompts_with_two_targets_are_left_out(tmp_path: Path) -> None:
    record = {"rephrase_prompt": "A?", "locality_prompt": "B?", "locality_ground_truth": "b"}
    facts = [("Ann lives in", "Rome"), ("Bob lives in", "Oslo"), ("ann  lives in", "Bern")]
    facts += [("Eve lives in", "Kyiv"), ("Eve lives in", "kyiv")]  # the same target twice
    records = [
        {**record, "prompt": prompt, "subject": prompt.split()[0], "target_new": target}
        for prompt, target in facts
    ]
    for name in ("counterfact_easyedit", "zsre_mend"):
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    (tmp_path / "downstream").mkdir()
    passages = [json.dumps({"passage": f"Passage {number // 2}."}) for number in range(500)]
    file = tmp_path / "downstream" / "test-ClosedDomainQA.jsonl"
    file.write_text("\n".join(passages), encoding="utf-8")

    prepare(tmp_path, tmp_path / "inputs")

    left = json.loads((tmp_path / "inputs" / "counterfact.json").read_text(encoding="utf-8"))
    assert left == [records[1], records[3], records[4]]
    texts = {
        name: pandas.read_json(tmp_path / "inputs" / f"{name}.jsonl", lines=True)["text"]
        for name in ("ordinary", "perplexity")
    }
    assert list(texts["perplexity"]) == [f"Passage {number}." for number in range(50, 250)]
    assert not set(texts["ordinary"]) & set(texts["perplexity"])


def test_effects_are_paired_differences_over_seeds(page: Path) -> None:
    found = effects(settings_of(find_runs([str(page / "runs")]).runs))

    def last(name: str, column: str) -> float:
        steps = pandas.read_parquet(page / "runs" / name / "steps")
        return float(steps[steps["scope"] == "seen"].iloc[-1][column])

    def at_the_end(sphere: str, column: str) -> list[float]:
        return [last(f"{sphere}-seed{seed}", column) for seed in SEEDS[:2]]

    rows = found.set_index(["measure", "metric"])
    assert set(rows["seeds"]) == {2} and set(rows["edits"]) == {4}
    score = rows.loc[("success", "score")]
    without, with_sphere = (at_the_end(sphere, "score_success") for sphere in ("off", "paper"))
    assert score["points"] == pytest.approx(sum(with_sphere) / 2 - sum(without) / 2)

    ratio = rows.loc[("perplexity", "log_ratio")]
    without, with_sphere = (
        [math.log(each) for each in at_the_end(sphere, "perplexity")] for sphere in ("off", "paper")
    )
    interval = stats.ttest_rel(with_sphere, without).confidence_interval()
    assert ratio["points"] == pytest.approx(sum(with_sphere) / 2 - sum(without) / 2)
    assert [ratio["low"], ratio["high"]] == pytest.approx([interval.low, interval.high])


def test_p_is_that_of_the_t_behind_the_interval() -> None:
    without, with_sphere = [50.0, 61.0, 47.5], [58.0, 64.0, 53.0]
    test = stats.ttest_rel(with_sphere, without)
    high = test.confidence_interval().high
    assert p_value(5.5, high, 3) == pytest.approx(test.pvalue)
    assert math.isnan(p_value(5.5, math.nan, 1))


@pytest.mark.parametrize(
    ("points", "p_holm", "said"),
    [(8.0, 0.04, "better"), (-8.0, 0.04, "worse"), (8.0, 0.06, "no answer")],
)
def test_a_difference_is_an_answer_at_five_percent(points: float, p_holm: float, said: str) -> None:
    assert verdict(points, p_holm) == said
    assert verdict(points, math.nan) == "one seed: no test"


def test_the_page_says_what_is_missing_and_is_its_own_proof(page: Path) -> None:
    text = (page / "README.md").read_text(encoding="utf-8")
    assert "4 of 6 runs have ended." in text
    assert "Missing: `off-seed2`, `paper-seed2`." in text
    assert check_tables(page, NAMES) == []


@pytest.mark.parametrize("name", ["effects.csv", "README.md"])
def test_a_number_that_the_tables_do_not_give_is_found(
    page: Path, name: str, tmp_path: Path
) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    file = page / name
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if "success" in line and "score" in line)
    lines[place] = lines[place].replace("success", "succes5")
    file.write_text("".join(lines), encoding="utf-8")
    (differing,) = check_tables(page, NAMES)
    assert f"{name}, line {place + 1}" in differing


def test_the_committed_page_agrees_with_its_tables() -> None:
    page = ROOT / "results" / "claims"
    if not (page / "runs").is_dir():
        pytest.skip("no run of the claims has ended yet")
    assert check_tables(page, [run.name for run in plan()]) == []
