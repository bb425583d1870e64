"""The three claims: what is run, what is made of it, and that the check notices what differs."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from scipy import stats

from scripts import claims, claims_effects, claims_settings
from scripts.claims import Planned, names, overrides, plan, prepare, sweep
from scripts.claims_blocks import KEY_WIDTH, _decided
from scripts.claims_effects import _adjusted, effects, p_value, signs_say, verdict
from scripts.claims_signs import Correlation, signs
from scripts.claims_tables import (
    Names,
    _made,
    check_fit_to_publish,
    check_tables,
    write_tables,
)
from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config
from sphere_bench.errors import SphereBenchError
from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.finding import find_runs
from sphere_bench.report.tables import Table, write_number

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
PLANNED = [f"{sphere}-seed{seed}" for seed in SEEDS for sphere in ("off", "paper")]
NAMES = Names(PLANNED, ["off-seed0", "paper-seed0", "explored"], ["memit"])
BLOCKS = {
    "README.md": ("runs", "answers", "scores", "signs", "lost", "angles", "swept"),
    "TABLES.md": ("claim1", "claim2", "warning", "claim3", "cosines", "explored"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a small experiment; the last pair has not been made."""
    root = tmp_path_factory.mktemp("claims")
    for name in (*PLANNED[:-2], "explored"):
        sphere, _, seed = ("paper", "", "0") if name == "explored" else name.partition("-seed")
        settings = ["edits.total=4", "edits.batch_size=2", "edits.shuffle=true"]
        settings += ["model.values.steps=4", "values.contexts=['{}']", "perplexity.tokens=20"]
        settings += ["sphere.alpha=0.3"] if name == "explored" else []
        place = [f"run.root={root}", f"run.name={name}", f"sphere={sphere}", f"seed={seed}"]
        assert main(["run", *settings, *place]) == 0
    return root


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page")
    for file, blocks in BLOCKS.items():
        texts = [f"# {name}\n<!-- made: {name} -->\n<!-- end -->\n" for name in blocks]
        (page / file).write_text("\n".join(texts), encoding="utf-8")
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


def test_the_sweep_stands_beside_the_pair_of_the_protocol() -> None:
    explored = names().explored
    assert explored[:2] == ["counterfact-memit-off-seed0", "counterfact-memit-paper-seed0"]
    assert explored[2:] == [run.name for run in sweep()]


def test_prompts_with_two_targets_are_left_out_and_no_fact_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    monkeypatch.setattr(claims, "CHOICES", 0)
    prepare(tmp_path, tmp_path / "inputs")

    left = json.loads((tmp_path / "inputs" / "zsre-0.json").read_text(encoding="utf-8"))
    assert left == [records[1], records[3]]
    texts = {
        name: pandas.read_json(tmp_path / "inputs" / f"{name}.jsonl", lines=True)["text"]
        for name in ("ordinary", "perplexity")
    }
    assert list(texts["perplexity"]) == [f"Passage {number}." for number in range(50, 250)]
    assert not set(texts["ordinary"]) & set(texts["perplexity"])


def test_no_two_seeds_share_a_record_and_none_was_used_for_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"rephrase_prompt": "A?", "locality_prompt": "B?", "locality_ground_truth": "b"}
    everyone = [
        {**record, "prompt": f"P{place} is", "subject": f"P{place}", "target_new": "here"}
        for place in range(20)
    ]
    everyone[1]["prompt"] = "nowhere"  # the subject is not in it: not valid
    for name in ("counterfact_easyedit", "zsre_mend"):
        (tmp_path / f"{name}.json").write_text(json.dumps(everyone), encoding="utf-8")
    (tmp_path / "downstream").mkdir()
    (tmp_path / "downstream" / "test-ClosedDomainQA.jsonl").write_text('{"passage": "One."}')
    monkeypatch.setattr(claims, "CHOICES", 5)
    monkeypatch.setattr(claims, "CALIBRATION", 15)

    prepare(tmp_path, tmp_path / "inputs")

    parts = [
        json.loads((tmp_path / "inputs" / f"counterfact-{seed}.json").read_text(encoding="utf-8"))
        for seed in SEEDS
    ]
    # The first five that are valid are 0 and 2 to 5.
    assert sorted(each["subject"] for part in parts for each in part) == sorted(
        f"P{place}" for place in range(6, 15)
    )
    assert [len(part) for part in parts] == [3, 3, 3]


def test_effects_are_paired_differences_over_seeds(page: Path) -> None:
    runs = find_runs([str(page / "runs")]).runs
    found = effects(settings_of([run for run in runs if run.name in PLANNED]), ["memit"])

    def last(name: str, column: str) -> float:
        steps = pandas.read_parquet(page / "runs" / name / "steps")
        return float(steps[steps["scope"] == "seen"].iloc[-1][column])

    def at_the_end(sphere: str, column: str) -> list[float]:
        return [last(f"{sphere}-seed{seed}", column) for seed in SEEDS[:2]]

    assert set(found["seeds"]) == {2} and set(found["edits"]) == {4}
    # Two pairs are none too few for an interval and too few for a test.
    assert found["low"].notna().all() and found["p_holm"].isna().all()
    # The mean over one editor is that editor.
    assert list(found["editor"].unique()) == ["memit", "average"]
    rows = found.drop(columns="editor").drop_duplicates().set_index(["measure", "metric"])
    assert len(rows) == len(found) / 2
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


def changed(page: Path, name: str, change: Any) -> None:
    """Change a kept run's table of steps."""
    (part,) = (page / "runs" / name / "steps").iterdir()
    change(pandas.read_parquet(part)).to_parquet(part, index=False)


def test_a_number_that_is_missing_at_the_end_is_no_answer(page: Path, tmp_path: Path) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    changed(page, "off-seed1", lambda steps: steps.assign(perplexity=math.inf))
    changed(page, "paper-seed1", lambda steps: steps.assign(score_success=math.nan))
    runs = find_runs([str(page / "runs")]).runs
    found = effects(settings_of([run for run in runs if run.name in PLANNED]), ["memit"])
    rows = found[found["editor"] == "memit"].set_index(["measure", "metric"])
    for quantity in (("perplexity", "log_ratio"), ("success", "score")):
        assert math.isnan(rows.loc[quantity, "points"]) and rows.loc[quantity, "seeds"] == 2
        assert verdict(quantity[0], math.nan, math.nan) == "not measured in all runs"
    assert not math.isnan(rows.loc[("success", "efficacy"), "points"])


@pytest.mark.parametrize(("key", "other"), [("threads", 7), ("device", {"name": "another"})])
def test_runs_of_a_pair_on_another_machine_are_refused(
    page: Path, key: str, other: object, tmp_path: Path
) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    file = page / "runs" / "off-seed0" / "provenance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: other}))
    with pytest.raises(SphereBenchError, match=f"off-seed0 and paper-seed0 differ in their {key} "):
        check_tables(page, NAMES)


def test_p_is_that_of_the_t_behind_the_interval() -> None:
    without, with_sphere = [50.0, 61.0, 47.5], [58.0, 64.0, 53.0]
    test = stats.ttest_rel(with_sphere, without)
    high = test.confidence_interval().high
    assert p_value(5.5, high, 3) == pytest.approx(test.pvalue)
    assert math.isnan(p_value(5.5, math.nan, 1))
    assert math.isnan(p_value(5.5, 20.0, 2))  # too few pairs
    assert math.isnan(p_value(5.5, 5.5, 3))  # all pairs differ by the same


def test_a_test_that_is_missing_counts_in_its_family() -> None:
    run_of = iter((0.01, 0.02, math.nan))
    rows = [
        {"editor": editor, "measure": "success", "metric": "score", "p_holm": next(run_of)}
        for editor in ("memit", "rect", "alphaedit")
    ]
    rows += [{"editor": "average", "measure": "success", "metric": "score", "p_holm": 0.03}]
    rows += [{"editor": "average", "measure": "accuracy", "metric": "score", "p_holm": 0.03}]
    adjusted = _adjusted(pandas.DataFrame(rows), editors=4)
    assert adjusted.to_list()[:2] == pytest.approx([0.04, 0.06])
    assert adjusted[3] == 0.03 and adjusted[[2, 4]].isna().all()


@pytest.mark.parametrize(
    ("measure", "points", "p_holm", "said"),
    [
        ("success", 8.0, 0.04, "better"),
        ("success", -8.0, 0.04, "worse"),
        ("perplexity", -0.5, 0.04, "better"),
        ("success", 8.0, 0.06, "no answer"),
        ("success", 8.0, math.nan, "no test"),
    ],
)
def test_a_difference_is_an_answer_at_five_percent(
    measure: str, points: float, p_holm: float, said: str
) -> None:
    assert verdict(measure, points, p_holm) == said


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ([-0.1, -0.5, -0.2], "Below zero in 3 of 3 runs without SPHERE: the claim holds."),
        ([-0.1, 0.5, 0.2], "Below zero in 1 of 3 runs without SPHERE: the claim has no answer."),
        ([0.1, 0.5, 0.0], "Below zero in 0 of 3 runs without SPHERE: the claim is contradicted."),
        ([-0.1, -0.5], "Below zero in 2 of 2 runs without SPHERE, of 3 that are to be counted: no"),
    ],
)
def test_signs_are_an_answer_where_all_are_alike(coefficients: list[float], said: str) -> None:
    assert signs_say(coefficients, 3).startswith(said)


def test_the_page_says_what_is_missing_and_is_its_own_proof(page: Path) -> None:
    text = (page / "README.md").read_text(encoding="utf-8")
    assert "4 of 6 runs have ended." in text
    assert "Missing: `off-seed2`, `paper-seed2`." in text
    assert "lacks" not in text  # what is not kept is not missing
    assert check_tables(page, NAMES) == []


@pytest.mark.parametrize(
    ("file", "block", "row"),
    [("README.md", "swept", "| success |"), ("TABLES.md", "explored", "| success | score |")],
)
def test_what_was_explored_stands_apart(page: Path, file: str, block: str, row: str) -> None:
    text = (page / file).read_text(encoding="utf-8")
    planned, explored = text.split(f"# {block}")
    assert "alpha" not in planned and "alpha" not in (page / "effects.csv").read_text()
    found = [line for line in explored.splitlines() if row in line]
    arms = {line.split("|")[3].strip() for line in found}
    assert arms == {"with SPHERE (alpha=0.3)", "with SPHERE (alpha=0.8)"}
    assert all("no test" in line for line in found)


def test_the_answers_wait_for_all_pairs(page: Path) -> None:
    text = (page / "README.md").read_text(encoding="utf-8")
    answers = text.split("# answers")[1].split("# scores")[0]
    assert answers.count("not all pairs are there yet.") == 2
    assert "of 3 that are to be counted: no answer yet." in answers


@pytest.mark.parametrize(
    ("p_values", "said"),
    [
        (
            (0.04, 0.06, 0.05),
            "not shown (`memit` better, `rect` no answer); on average over them: better",
        ),
        (
            (0.04, 0.05, 0.06),
            "it holds (`memit` better, `rect` better); on average over them: no answer",
        ),
    ],
)
def test_an_answer_is_each_editors_and_the_means(p_values: tuple[float, ...], said: str) -> None:
    common = {"measure": "success", "points": 1.5, "low": 0.0, "high": 3.0}
    rows = [
        {**common, "editor": editor, "p_holm": p}
        for editor, p in zip(("memit", "rect", "average"), p_values, strict=True)
    ]
    text = _decided(pandas.DataFrame(rows), "score")
    assert text.startswith(f"for every editor: {said}")
    assert text.endswith(f"score +1.50 [+0.00, +3.00], p {p_values[-1]:.3f}.")


def test_the_signs_that_count_are_those_of_the_tested_editors_without_sphere() -> None:
    def run(dataset: str, editor: str, enabled: bool, seed: int, coefficient: float) -> Correlation:
        return Correlation(dataset, editor, "", enabled, seed, coefficient)

    counted = [run("counterfact", "memit", False, seed, -0.1) for seed in SEEDS]
    others = [
        run("counterfact", "memit", True, 0, 0.5),  # with SPHERE
        run("counterfact", "ft", False, 0, 0.5),  # not tested
        run("zsre", "memit", False, 0, 0.5),  # too few seeds
    ]
    assert signs([*counted, *others], ["memit"]).startswith("Below zero in 3 of 3 runs")


def test_differences_that_are_equal_but_for_the_last_bits_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        claims_effects,
        "quantities",
        lambda run: {("success", "score"): pandas.Series([run.score], index=[4])},
    )

    def run(score: float) -> Any:
        return SimpleNamespace(score=score, progress=SimpleNamespace(total=4))

    # 0.1 + 0.2 is not 0.3.
    pairs = [[(run(0.3), run(0.1 + 0.2))], [(run(1.5), run(1.5))]]
    (row,) = claims_effects._differences(pairs)
    assert (row["points"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def test_the_angles_row_has_the_share_and_what_it_would_be_by_chance(page: Path) -> None:
    layers = pandas.concat(
        pandas.read_parquet(page / "runs" / f"paper-seed{seed}" / "layers") for seed in SEEDS[:2]
    )
    share = 100 * layers["subspace_overlap"].mean()
    last = layers[layers["step"] == layers["step"].max()]
    text = (page / "README.md").read_text(encoding="utf-8").split("# angles")[1]
    (row,) = (line for line in text.splitlines() if "| memit | with SPHERE |" in line)
    chance = 100 * last["rank"].mean() / KEY_WIDTH
    assert row.endswith(f"| {write_number(share)} | {write_number(chance)} |")


def test_of_an_ability_that_tells_nothing_only_the_unedited_model_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = {"metric": "acc", "runs": 3, "edits": 1000, "unedited": 0.5, "chance": 0.5}
    measured = {"edited": 0.1, "edited_low": 0.0, "edited_high": 0.2}
    rows = [
        {**common, **measured, "task": task, "editor": editor, "variant": "with", "remark": remark}
        for task, remark in (("told", ""), ("silent", "tells nothing"))
        for editor in ("memit", "rect")
    ]
    table = Table("abilities", "", pandas.DataFrame(rows), [])
    monkeypatch.setattr(claims_settings, "ability_table", lambda setting: table)
    found = claims_settings.abilities(Setting("model", "dataset", "success", []))
    assert found is not None
    assert found.rows["task"].to_list() == ["told", "told", "silent"]
    silent = found.rows.iloc[2]
    assert silent["editor"] == "unedited model" and silent["unedited"] == 0.5
    assert silent[["runs", "edits", *measured]].isna().all()
    assert found.rows[["runs", *measured]].iloc[:2].notna().all(axis=None)


def test_the_report_is_published_as_markdown_with_its_figures(page: Path) -> None:
    assert (page / "report.md").is_file() and not (page / "report.html").exists()
    assert {file.suffix for file in (page / "report-figures").iterdir()} == {".png"}


def test_the_page_says_what_pairs_lost(page: Path, tmp_path: Path) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    for name, perplexities in (("off-seed1", [1.0, 2.0, 4.0]), ("paper-seed1", [1.0, 11.0, 16.0])):
        changed(
            page,
            name,
            lambda steps, by=perplexities: steps.assign(
                perplexity=[by[step] for step in steps["step"]]
            ),
        )
        seed0 = name.replace("1", "0")
        changed(page, seed0, lambda steps: steps.assign(perplexity=1.0))
    lost = _made(page, find_runs([str(page / "runs")]).runs, NAMES)["README.md"].split("# lost")[1]
    (row,) = (line for line in lost.splitlines() if "| memit | with SPHERE | 2, 4 | 2 |" in line)
    assert "| 0 of 2, 1 of 2 |" in row


def test_what_would_not_fit_into_the_repository_is_refused(page: Path, tmp_path: Path) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    for file in page.glob("runs/*/*.*"):
        file.write_text(re.sub(r"/[\w/.-]+", "there", file.read_text()))
    check_fit_to_publish(page)
    (page / "large").write_bytes(bytes(10_000_001))
    with pytest.raises(SphereBenchError, match="MB, more than 10: keep less"):
        check_fit_to_publish(page)
    (page / "large").unlink()
    (page / "runs" / "off-seed0" / "config.yaml").write_text("model: {path: /home/me/model}")
    with pytest.raises(SphereBenchError, match="names /home/me/model"):
        check_fit_to_publish(page)


@pytest.mark.parametrize("name", ["effects.csv", "README.md", "TABLES.md"])
def test_a_number_that_the_tables_do_not_give_is_found(
    page: Path, name: str, tmp_path: Path
) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    file = page / name
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if "success" in line and "memit" in line)
    lines[place] = lines[place].replace("success", "succes5")
    file.write_text("".join(lines), encoding="utf-8")
    (differing,) = check_tables(page, NAMES)
    assert f"{name}, line {place + 1}" in differing


def test_the_committed_page_agrees_with_its_tables() -> None:
    page = ROOT / "results" / "claims"
    if not (page / "runs").is_dir():
        pytest.skip("no run of the claims has ended yet")
    assert check_tables(page, names()) == []
    check_fit_to_publish(page)
