"""The files of a report of many runs, and its page in a real browser, where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import pandas
import pytest

from sphere_bench.report.drawing import Drawing, panels
from tests.report.synthetic import falling

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1200,900",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# The page itself allows no script; a copy without its policy is measured.
MEASURE = """<script>
const boxes = [...document.querySelectorAll("figure.drawing svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return [svg.parentElement.ariaLabel, box.width, box.height];
});
const requests = performance.getEntriesByType("resource").map(entry => entry.name);
const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const color = getComputedStyle(document.querySelector("svg text")).fill;
document.body.textContent = JSON.stringify({boxes, requests, overflow, color});
</script>"""


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


def test_a_figure_for_a_paper_has_its_fonts_inside(tmp_path):
    # The other tests leave them out, see tests/matplotlibrc.
    with matplotlib.rc_context({"pdf.use14corefonts": False}):
        figure, _ = panels(1, 1, 2.0)
        Drawing("figure", "", "", figure).save(tmp_path)
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_every_figure_says_what_it_shows(multirun_report):
    html = multirun_report.read_text("utf-8")
    labels = re.findall(r'role="img" aria-label="(.*?)"', html)
    assert len(labels) == html.count("<svg ")
    assert all(len(each) > 40 for each in labels)


def test_runs_parquet_has_a_row_for_each_run_with_numbers_as_numbers(multirun_report):
    runs = pandas.read_parquet(multirun_report.with_name("runs.parquet")).set_index("run")
    assert len(runs) == 8
    row = runs.loc["memit-paper-seed1"]
    assert (row["editor"], row["seed"], row["edits"]) == ("memit", 1, 60)
    assert row["headline"] == "success"
    assert (row["alpha"], row["eta"]) == (0.8, 0.5)
    assert row["seen_efficacy_success"] == falling(6)
    assert row["seen_score_accuracy"] == falling(6) / 2
    assert runs.loc["memit-off-seed1", ["alpha", "eta"]].isna().all()
    assert runs["alpha"].dtype == float


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = page.with_name(f"{page.stem}-profile")
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def measure(page: Path, folder: Path, *flags: str) -> dict[str, list]:
    html, policies = POLICY.subn("", page.read_text("utf-8"))
    assert policies == 1
    copy = folder / "measured.html"
    copy.write_text(html.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    (body,) = re.findall(r"<body>(.*?)</body>", browse(copy, *flags).stdout, re.DOTALL)
    return json.loads(body)


def console(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
def test_the_console_stays_silent(multirun_report, tmp_path):
    page = tmp_path / "report.html"
    shutil.copy(multirun_report, page)
    assert console(browse(page)) == []
    # The policy forbids every request, and a forbidden one is logged: so silence means something.
    html = page.read_text("utf-8")
    page.write_text(html.replace("<main>", '<main><img src="http://localhost:9/x.png">'), "utf-8")
    assert console(browse(page))


@needs_chromium
@pytest.mark.parametrize("width", [1400, 500])
def test_every_figure_is_seen_and_nothing_is_fetched(multirun_report, tmp_path, width):
    found = measure(multirun_report, tmp_path, f"--window-size={width},900")
    assert len(found["boxes"]) >= 12
    for alternative, box_width, height in found["boxes"]:
        assert alternative and box_width > 200 and height > 50
    assert found["requests"] == []
    # What is wide scrolls in its own frame, not the page.
    assert found["overflow"] <= 0


@needs_chromium
def test_figures_follow_the_colour_scheme(multirun_report, tmp_path):
    colors = [
        measure(multirun_report, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")[
            "color"
        ]
        for scheme in (0, 1)
    ]
    assert colors == ["rgb(231, 233, 236)", "rgb(28, 32, 38)"]


def test_the_page_refers_to_nothing_outside(multirun_report):
    html = multirun_report.read_text("utf-8")
    references = re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert references
    assert {each for each in references if not each.startswith(("#", "data:"))} == set()
    assert "@import" not in html and "<script" not in html
