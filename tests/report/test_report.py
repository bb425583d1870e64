import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from sphere_bench.cli import main
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.drawing import Drawing
from sphere_bench.report.finding import find_runs
from sphere_bench.report.page import to_document, to_html
from sphere_bench.report.reading import read_run
from sphere_bench.report.score_figures import retention_by_age
from sphere_bench.run_folder.folder import RunFolder
from tests.report.synthetic import KINDS, MEASURES, METRICS, write_run

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("unarranged")


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures empty: for a test that asks whether they are there, or not even that."""
    monkeypatch.setattr(Drawing, "svg", "<svg></svg>")


def page(*places: Path) -> str:
    """The page alone."""
    found = find_runs(map(str, places))
    sections = contents(found.runs, settings_of(found.runs), found.damaged)
    return to_html(sections, "test")


def test_one_run(tmp_path):
    html = page(write_run(tmp_path))
    assert "run the same with sphere=off" in html
    assert "What differs between the runs" not in html
    assert "Success, %" in html and "Accuracy, %" in html


def test_perplexity_is_drawn_where_it_was_taken(tmp_path, undrawn):
    assert 'id="figure-perplexity"' in page(write_run(tmp_path / "with"))
    without = page(write_run(tmp_path / "without", perplexity=False))
    assert 'id="figure-perplexity"' not in without and 'id="figure-curves-seen"' in without


@pytest.mark.parametrize("made", [0, 1])
def test_a_run_of_one_step_or_none_says_what_it_cannot_show(tmp_path, made):
    html = page(write_run(tmp_path, steps=1, made=made))
    assert "there is no curve to draw" in html
    assert "there is nothing to correlate" in html


def test_an_unfinished_run_is_reported_as_such(tmp_path, capsys, undrawn):
    folder = write_run(tmp_path, steps=50, made=2, state="running")
    with RunFolder(folder).locked():
        html = page(folder)
        assert main(["report", str(folder)]) == 0
    assert "1 of 1 runs are unfinished" in html
    assert "running: 20 of 500 edits" in html
    assert f"{folder.name} is unfinished, running: 20 of 500 edits" in capsys.readouterr().out


def test_a_run_that_collapsed_has_ended_and_batches_left_out_are_named(tmp_path, capsys, undrawn):
    folder = write_run(tmp_path, steps=9, made=4, state="collapsed", skipped=[2, 3])
    collapsed = f"{folder.name}: collapsed after step 4, 40 of 90 edits"
    left_out = f"{folder.name}: batches skipped (numerics.on_nonfinite): steps 2, 3"
    html = page(folder)
    assert main(["report", str(folder)]) == 0
    for text in (html, capsys.readouterr().out):
        assert collapsed in text and left_out in text
        assert "unfinished" not in text


def test_a_run_that_diverged_is_reported_as_far_as_it_goes(tmp_path):
    folder = write_run(
        tmp_path,
        efficacy=lambda step: 90.0 if step < 4 else math.nan,
        energy=lambda step: 1.0 if step < 4 else math.inf,
    )
    html = page(folder)
    assert "too few points (3)" in html
    assert 'id="figure-energy"' in html


def test_a_run_without_geometry_says_so(tmp_path):
    html = page(write_run(tmp_path, steps=1, geometry=False))
    assert "have no geometry table" in html
    assert 'id="figure-cosines"' not in html


def test_accuracy_stands_alone_where_success_is_not_defined(tmp_path):
    html = page(write_run(tmp_path, steps=1, headline="accuracy"))
    assert "Headline metrics are accuracy." in html
    assert "Success, %" not in html


def test_two_settings_have_parts_of_their_own(tmp_path):
    write_run(tmp_path, steps=1)
    write_run(tmp_path, steps=1, seed=1, dataset__name="other")
    ids = re.findall(r'\bid="([^"]+)"', page(tmp_path))
    assert len(ids) == len(set(ids))
    assert {"1-results", "2-results", "figure-1-energy", "figure-2-energy"} <= set(ids)


def test_a_name_cannot_become_markup(tmp_path):
    html = page(write_run(tmp_path, steps=1, model__name="<script>alert(1)</script>"))
    assert "<script" not in html


def test_a_name_cannot_become_markup_anywhere(tmp_path):
    keys = ("model__name", "dataset__name", "editor__name", "sphere__name")
    names = dict.fromkeys(keys, "<script>alert(1)</script>|$x$")
    write_run(tmp_path / "<script>", steps=2, sphere="paper", **names)
    found = find_runs([str(tmp_path / "<script>")])
    sections = contents(found.runs, settings_of(found.runs))
    html, markdown = to_html(sections, "<script>"), to_document(sections, "<script>-figures")
    assert "<script" not in html and "<script" not in markdown
    assert "&lt;script&gt;" in html and "&lt;script>" in markdown


def test_a_fourth_metric_and_a_third_measure_are_drawn(tmp_path):
    for sphere in ("off", "paper"):
        write_run(
            tmp_path,
            sphere=sphere,
            kinds={**KINDS, "portable": "portability"},
            metrics=(*METRICS[:3], "portability", "score"),
            measures={**MEASURES, "generation": 0.25},
            stages=("values", "generation"),
        )
    html = page(tmp_path)
    for figure in ("curves-seen", "curves-seen-generation", "gain-generation", "lags", "time"):
        assert f'id="figure-{figure}"' in html
    assert re.search(r">Portability generation, %<", html)
    assert ">generation</text>" in html  # the stage
    assert "meaning of portability_generation" in html


def test_a_measure_with_a_table_of_its_own_has_a_retention_of_its_own(tmp_path):
    measures = {**MEASURES, "generation": 0.25}
    run = write_run(tmp_path, steps=3, measures=measures, generations=True)
    html = page(run)
    assert "Heat maps of efficacy success in percent" in html
    assert "Heat maps of efficacy generation in percent" in html
    assert html.count('id="figure-retention') == 2  # accuracy is in the headline's table
    figures = retention_by_age([read_run(RunFolder(run))], "rewrite", "generation")
    # Of the facts of the third batch alone the model says the new answer.
    assert figures.loc[[10, 20, 30], 30].tolist() == [0, 0, 100]
    assert figures.loc[20, 20] == 0 and math.isnan(figures.loc[30, 20])


def test_numbers_of_a_scope_that_are_no_scores_have_a_table(tmp_path):
    html = page(write_run(tmp_path, beside={"neighbourhood_kl": 0.3}))
    assert re.search(r">Neighbourhood kl, nats<", html)
    assert "meaning of neighbourhood_kl" in html
    assert "beside-scores" not in page(write_run(tmp_path / "other"))


def test_retention_is_of_the_first_kind_with_the_headline(tmp_path):
    html = page(write_run(tmp_path, kinds={"asked": "recall"}, metrics=("recall", "score")))
    assert "Heat maps of recall success in percent" in html


@pytest.mark.parametrize(
    "missing, words",
    [
        (
            {"energy": None, "perplexity": False},
            [
                "have not measured the hyperspherical energy",
                "have not measured the cosines between neurons",
                "have measured no perplexity",
            ],
        ),
        (
            {"geometry": False, "cases": False},
            ["have no geometry table", "have recorded no success of single prompts"],
        ),
        (
            {"metrics": ()},
            ["have recorded no headline scores", "no scores to correlate it with"],
        ),
    ],
)
def test_what_was_not_measured_is_left_out_with_a_word(tmp_path, capsys, missing, words):
    folder = write_run(tmp_path, steps=2, **missing)
    html = page(folder)
    assert [each for each in words if each not in html] == []
    assert main(["report", str(folder)]) == 0
    assert "toy, facts: success" in capsys.readouterr().out


def test_editors_of_different_layers_are_drawn_together(tmp_path):
    write_run(tmp_path, steps=1, editor="memit")
    folder = write_run(tmp_path, steps=1, editor="rome")
    for table in ("layers", "geometry"):
        for part in (folder / table).iterdir():
            frame = pandas.read_parquet(part)
            frame[frame["layer"] == 2].assign(layer=7).to_parquet(part, index=False)
    html = page(tmp_path)
    assert "memit without SPHERE, layer 2" in html
    assert "rome without SPHERE, layer 7" in html


def test_what_is_damaged_is_left_out_and_said_on_the_page_and_in_the_terminal(tmp_path, capsys):
    folder = write_run(tmp_path / "runs", steps=9)
    (folder / "layers" / "part-00004.parquet").write_bytes(b"PAR1")
    (folder / "cases" / "part-00000.parquet").unlink()
    lost = write_run(tmp_path / "runs", seed=1)
    (lost / "config.yaml").unlink()
    (tmp_path / "runs" / "multirun.yaml").touch()
    html = page(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs")]) == 0
    terminal = capsys.readouterr()
    for text in (html, terminal.out):
        assert f"{folder.name}: layers/part-00004.parquet is damaged and left out" in text
        assert f"{folder.name}: layers has no rows of steps 4 to 7" in text
        assert f"{folder.name}: cases has no rows of steps 0 to 3" in text
        assert f"eft out: {lost}/config.yaml is missing or damaged" in text
    assert f"passed over: {tmp_path}/runs/multirun.yaml is no run" in terminal.err


def test_a_config_file_that_was_edited_is_said_on_the_page_and_in_the_terminal(
    tmp_path, capsys, undrawn
):
    folder = write_run(tmp_path)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("alpha: 0.8", "alpha: 0.2"))
    assert main(["report", str(folder)]) == 0
    for text in (page(folder), capsys.readouterr().out):
        assert f"{folder.name}: config.yaml was edited by hand" in text
        assert "sphere.alpha 0.8 -&gt; 0.2" in text or "sphere.alpha 0.8 -> 0.2" in text


def test_the_version_before_is_reported_whole(tmp_path):
    write_run(tmp_path / "earlier", earlier_version=True)
    write_run(tmp_path / "now")
    earlier, now = (page(tmp_path / name) for name in ("earlier", "now"))
    figures = r'<figure class="\w+" id="([\w-]+)"'
    assert re.findall(figures, earlier) == re.findall(figures, now)


def test_the_tables_of_the_terminal_come_in_other_formats(tmp_path, capsys):
    write_run(tmp_path, efficacy=lambda step: 80.0)
    write_run(tmp_path, sphere="paper", efficacy=lambda step: 90.0)
    written = {}
    for form in ("csv", "markdown", "latex"):
        assert main(["report", str(tmp_path), "--format", form]) == 0
        written[form] = capsys.readouterr().out
    first, second = written["csv"].split("\n\n")
    results = pandas.read_csv(io.StringIO(first), comment="#")
    assert results["efficacy_success"].tolist() == [5, 80, 90]
    assert pandas.read_csv(io.StringIO(second), comment="#")["score_points"].iloc[0] == 10
    assert "| memit | with SPHERE | 1 | 60 | 90.0 |" in written["markdown"]
    assert r"memit & with SPHERE & 1 & 60 & 90.0" in written["latex"]
    assert r"\multicolumn{4}{c}{Success, \%}" in written["latex"]


def test_the_terminal_has_the_results_and_the_gains(tmp_path, capsys):
    write_run(tmp_path)
    write_run(tmp_path, sphere="paper", efficacy=lambda step: 90.0)
    assert main(["report", f"{tmp_path}/*"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"unedited model +2 +0 +5\.0", output)
    assert re.search(r"memit +with SPHERE +1 +60 +90\.0", output)
    assert re.search(r"memit +with SPHERE +1 +60 +\+14\.0  ", output)
    assert "one seed has no interval" in output
    assert max(map(len, output.splitlines())) < 160


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere: no such folder"),
        (["nowhere", "--oot", "x"], "unrecognized arguments: --oot x"),
        (["nowhere", "--out", "report.pdf"], "--out report.pdf: name a file that ends in .html"),
        (["nowhere", "--out", "."], "--out .: name a file that ends in .html"),
        (["nowhere", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["nowhere", "--format", "csv", "--out", "x.html"], "leave out --out"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(capsys, arguments, message):
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sphere-bench: error: ") and message in error
    assert error.count("\n") == 1


def test_help(capsys):
    assert main(["report", "--help"]) == 0
    assert "--out FILE.html" in capsys.readouterr().out


def test_torch_is_not_imported(tmp_path):
    folder = write_run(tmp_path, steps=1)
    code = (
        "import sys; from sphere_bench.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules or 'transformers' in sys.modules) * 3)"
    )
    subprocess.run(
        [sys.executable, "-c", code, "report", str(folder), "--out", "report.html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_a_real_run_is_reported(tmp_path):
    command = [
        "run", f"run.root={tmp_path}", "run.name=real", "edits.total=4", "edits.batch_size=2",
        "model.values.steps=3", "values.contexts=['Nobody knew why. {}']", "evaluation.seen=4",
    ]  # fmt: skip
    assert main(command) == 0
    (run,) = find_runs([str(tmp_path / "real")]).runs
    assert run.incidents == []  # both copies of its configuration agree
    html = page(tmp_path / "real")
    assert "tiny-gpt2, tiny-counterfact" in html
    assert {"figure-cosines", "figure-plane"} <= set(re.findall(r'\bid="([^"]+)"', html))
