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
from sphere_bench.report.page import to_html
from sphere_bench.report.reading import find_runs
from tests.report.synthetic import write_run

ROOT = Path(__file__).parents[2]


def page(*places: Path) -> str:
    """The page alone."""
    runs = find_runs(map(str, places))
    return to_html(contents(runs, settings_of(runs)), "test")


def test_a_multirun_with_seeds_has_every_file(multirun_report):
    html = multirun_report.read_text("utf-8")
    drawings = re.findall(r'<figure class="drawing" id="figure-([\w-]+)"', html)
    assert len(drawings) == len(set(drawings)) >= 12
    figures = multirun_report.with_name("report-figures")
    assert {file.name for file in figures.iterdir()} == {
        f"{name}.{suffix}" for name in drawings for suffix in ("png", "pdf")
    }
    tables = re.findall(r'<figure class="table" id="table-([\w-]+)"', html)
    folder = multirun_report.with_name("report-tables")
    assert {file.stem for file in folder.iterdir()} == set(tables)
    assert len(pandas.read_csv(folder / "headline-seen.csv")) == 5
    markdown = multirun_report.with_suffix(".md").read_text("utf-8")
    links = re.findall(r"\]\((.*?)\)", markdown)
    assert len(links) == len(drawings)
    for link in links:
        assert (multirun_report.parent / link).stat().st_size > 0


def test_every_figure_says_what_it_shows(multirun_report):
    html = multirun_report.read_text("utf-8")
    labels = re.findall(r'role="img" aria-label="(.*?)"', html)
    assert len(labels) == html.count("<svg ")
    assert all(len(each) > 40 for each in labels)


def test_one_run(tmp_path):
    html = page(write_run(tmp_path))
    assert "run the same with sphere=off" in html
    assert "What differs between the runs" not in html
    assert "Success, %" in html and "Accuracy, %" in html


def test_perplexity_is_drawn_where_it_was_taken(tmp_path):
    assert 'id="figure-perplexity"' in page(write_run(tmp_path / "with"))
    without = page(write_run(tmp_path / "without", perplexity=False))
    assert 'id="figure-perplexity"' not in without and 'id="figure-curves-seen"' in without


@pytest.mark.parametrize("made", [0, 1])
def test_a_run_of_one_step_or_none_says_what_it_cannot_tell(tmp_path, made):
    html = page(write_run(tmp_path, steps=1, made=made))
    assert "there is no curve to draw" in html
    assert "there is nothing to correlate" in html


def test_an_unfinished_run_is_reported_as_such(tmp_path, capsys):
    folder = write_run(tmp_path, steps=50, made=2, state="running")
    html = page(folder)
    assert "1 of 1 runs are unfinished" in html
    assert "running: 20 of 500 edits" in html
    assert main(["report", str(folder)]) == 0
    assert f"{folder.name} is unfinished, running: 20 of 500 edits" in capsys.readouterr().out


def test_a_run_that_collapsed_has_ended_and_batches_left_out_are_named(tmp_path, capsys):
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


def test_the_terminal_has_the_results_and_the_gains(tmp_path, capsys):
    write_run(tmp_path)
    write_run(tmp_path, sphere="paper", efficacy=lambda step: 90.0)
    assert main(["report", f"{tmp_path}/*"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"unedited model +2 +0 +5\.0", output)
    assert re.search(r"memit +with SPHERE +1 +60 +90\.0", output)
    assert re.search(r"memit +with SPHERE +60 +\+14\.0", output)
    assert max(map(len, output.splitlines())) < 160


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere: no such folder"),
        (["nowhere", "--oot", "x"], "unrecognized arguments: --oot x"),
        (["nowhere", "--out", "report.pdf"], "--out report.pdf: name a file that ends in .html"),
        (["nowhere", "--out", "."], "--out .: name a file that ends in .html"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(capsys, arguments, message):
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
    html = page(tmp_path / "real")
    assert "tiny-gpt2, tiny-counterfact" in html
    assert {"figure-cosines", "figure-plane"} <= set(re.findall(r'\bid="([^"]+)"', html))
