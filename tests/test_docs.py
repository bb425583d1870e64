"""The documents: what is made from the code is up to date, and every link leads somewhere."""

import re
from pathlib import Path

import pytest

from scripts.make_docs import DOCS, PAGES, default_tables, described, made_anew
from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config, known_keys
from sphere_bench.config.schema import Config
from sphere_bench.run_folder.folder import RunFolder
from tests.run_tables import table
from tests.tiny_models import CONFIGS

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "results", "tests/golden")
DOCUMENTS = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST_FILE = re.compile(r"`((?:\w+/)*test_\w+\.py)`")


# As the README calls them.
FAMILIES = {
    **{"GPT-2": ["gpt2"], "GPT-J": ["gptj"], "GPT-Neo": ["gpt_neo"], "GPT-NeoX": ["gpt_neox"]},
    **{"Llama": ["llama"], "Mistral": ["mistral"], "Qwen 2 and 3": ["qwen2", "qwen3"]},
    **{"Phi": ["phi"], "Gemma 1 and 2": ["gemma", "gemma2"], "BLOOM": ["bloom"]},
    **{"MPT": ["mpt"], "Falcon": ["falcon"], "OPT": ["opt"]},
}


def test_the_readme_names_the_models_that_the_tests_edit() -> None:
    *others, last = FAMILIES
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"Tests hold that {', '.join(others)} and {last} can be edited" in readme
    tested = {config.model_type for config in CONFIGS.values()}
    assert {each for types in FAMILIES.values() for each in types} == tested


@pytest.mark.parametrize("name", PAGES)
def test_what_is_made_from_the_code_is_up_to_date(name: str) -> None:
    page = (DOCS / name).read_text("utf-8")
    assert made_anew(page) == page, "run: python scripts/make_docs.py"


def test_every_key_has_a_row() -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `([\w.]+)` \|.*\| .+ \|$", page, re.MULTILINE))
    nodes = {key.rpartition(".")[0] for key in known_keys()}
    assert set(known_keys()) - nodes <= rows


def test_a_meaning_is_read_from_a_docstring_with_its_continuation() -> None:
    class Documented:
        """What it is.

        Attributes:
            first, second: the one ``and``
                the other.
            third: see :class:`~a.b.Third`; ``None`` is none.

        Raises:
            Error: never.
        """

    assert described(Documented) == {
        "first": "the one `and` the other",
        "second": "the one `and` the other",
        "third": "see `Third`; `null` is none",
    }
    assert {"seed", "device", "probes", "trackers"} <= described(Config).keys()


def test_every_column_of_a_run_is_on_the_page_of_tables(tmp_path: Path) -> None:
    few = ("experiment=smoke", "edits.total=1", "edits.batch_size=1", "run.name=few")
    quick = ("model.values.steps=1", "values.contexts=['{}']", "perplexity.tokens=50")
    assert main(["run", f"run.root={tmp_path}", *few, *quick]) == 0
    page = (DOCS / "tables.md").read_text("utf-8")
    run = RunFolder(tmp_path / "few")
    assert run.table_names() == sorted(each.name for each in default_tables())
    of_run, *sections = re.split(r"^## `", page, flags=re.MULTILINE)
    documented = {section.partition("`")[0]: of_run + section for section in sections}
    for name in run.table_names():
        columns = set(re.findall(r"^\| `(\w+)` \|", documented[name], re.MULTILINE))
        assert set(table(run.path, name)) <= columns


def test_the_readme_is_a_tour_of_the_run_that_there_is_now() -> None:
    tour = (ROOT / "README.md").read_text("utf-8")
    assert len(tour.splitlines()) <= 150
    name = compose_config([]).run.name
    assert f"tables: results/{name}\n" in tour
    assert set(re.findall(r"results/(memit-[\w.-]+)", tour)) == {name}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text("utf-8")):
        if "://" in link:
            continue
        place, _, heading = link.partition("#")
        file = document.parent / place if place else document
        assert file.exists(), link
        if heading:
            assert heading in headings(file), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = TEST_FILE.findall(document.read_text("utf-8"))
    assert [
        name for name in named if not (ROOT / "tests" / name.removeprefix("tests/")).exists()
    ] == []


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings."""
    titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
