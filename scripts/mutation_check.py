"""Check that the tests notice when the mathematics is wrong.

Every mutation of `mutations.yaml` is made in a copy of the package, one after another, and the
tests that it names must turn red. They must be green on the copy as it is, too.

    python scripts/mutation_check.py            # all of them
    python scripts/mutation_check.py prune rank # those whose name or file has one of the words
"""

import multiprocessing
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
MUTATIONS = Path(__file__).with_name("mutations.yaml")
COPIED = ("sphere_bench", "configs", "tests", "scripts", "pyproject.toml")
# Imported once: the tests run in forks of this process, which has not imported the package itself.
SLOW_IMPORTS = (
    *("torch", "scipy.stats", "pandas", "hydra", "transformers.modeling_utils"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gpt2")),
)
# Exit codes of pytest: all passed, and some failed. Any other is no answer.
GREEN, RED = 0, 1
SECONDS = 300


class Mutation(NamedTuple):
    """A mistake to make.

    Attributes:
        name: what is wrong.
        file: where, from the repository's root.
        old: text that is in the file once.
        new: what takes its place.
        tests: arguments of pytest that choose the tests which must notice it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


def read_mutations(words: Sequence[str] = ()) -> list[Mutation]:
    """All mutations, or those whose name or file has one of the words."""
    every = [Mutation(**entry) for entry in OmegaConf.to_container(OmegaConf.load(MUTATIONS))]
    return [
        each
        for each in every
        if not words or any(word in f"{each.name} {each.file}" for word in words)
    ]


def problem_of(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Why the mutation cannot be made; `None` if it can."""
    file = root / mutation.file
    found = file.read_text("utf-8").count(mutation.old) if file.is_file() else 0
    if found != 1:
        return f"its text is {found} times in {mutation.file}"
    return "it changes nothing" if mutation.old == mutation.new else None


@contextmanager
def copied_repository() -> Iterator[Path]:
    """A copy of what the tests of the mathematics need."""
    with TemporaryDirectory(prefix="mutations-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(folder)


@contextmanager
def made(mutation: Mutation, root: Path) -> Iterator[None]:
    """The copy with the mutation in it."""
    file = root / mutation.file
    text = file.read_text("utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        yield
    finally:
        file.write_text(text, "utf-8")


@cache
def outcome_unchanged(tests: str, root: Path) -> int:
    return outcome(tests, root)


def outcome(tests: str, root: Path) -> int:
    """The exit code of pytest in the copy; below 0 if it did not end by itself."""
    child = multiprocessing.get_context("fork").Process(target=run_pytest, args=(tests, root))
    child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
    code = child.exitcode
    assert code is not None
    return code


def run_pytest(tests: str, root: Path) -> None:
    """Run the tests in the copy, and end this process with pytest's exit code."""
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    # Two versions of a file may have the same size and second, by which Python knows them.
    sys.dont_write_bytecode = True
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]))


def verdict(mutation: Mutation, root: Path) -> str:
    """`killed`, `survived`, or what is wrong with the mutation itself."""
    if problem := problem_of(mutation, root):
        return problem
    if outcome_unchanged(mutation.tests, root) != GREEN:
        return f"its tests are not green without it: {mutation.tests}"
    with made(mutation, root):
        code = outcome(mutation.tests, root)
    return {GREEN: "survived", RED: "killed"}.get(code, f"pytest ended with {code}")


def main(words: Sequence[str]) -> int:
    """Try the mutations, and return 0 if all were killed."""
    mutations = read_mutations(words)
    alive = 0
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in SLOW_IMPORTS:
        import_module(name)
    with copied_repository() as root:
        for mutation in mutations:
            start = perf_counter()
            found = verdict(mutation, root)
            alive += found != "killed"
            print(f"{found:8}  {mutation.name} ({perf_counter() - start:.0f} s)", flush=True)
    print(f"{len(mutations) - alive} of {len(mutations)} mutations killed")
    return 1 if alive or not mutations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
