import json
import subprocess

import torch

from sphere_bench.run_folder import provenance
from sphere_bench.run_folder.provenance import collect, git_state, other_machine

CONFIG = {"seed": 0, "sphere": {"alpha": 0.8, "eta": 0.5}}


def test_provenance_says_which_code_and_machine_made_the_numbers():
    facts = collect(config=CONFIG, device="cpu")
    assert facts["packages"]["torch"]
    assert facts["packages"]["transformers"]
    assert facts["config"] == CONFIG
    assert facts["device"]["torch_device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert facts["started_at"].endswith("+00:00")
    json.dumps(facts)


def test_the_code_is_that_with_which_the_process_began(monkeypatch):
    before = collect(config=CONFIG, device="cpu")["git"]
    monkeypatch.setattr(provenance, "_git", lambda *_: "another commit")
    assert collect(config=CONFIG, device="cpu")["git"] == before


def test_another_device_or_number_of_threads_is_named_and_what_is_not_known_is_not():
    before = {"threads": 1, "device": {"torch_device": "cpu", "name": None}, "git": None}
    assert other_machine(before, dict(before)) is None
    assert other_machine(before, {**before, "git": {"commit": "c0ffee"}}) is None
    assert other_machine(before, {**before, "threads": 4}) == "threads 1 -> 4"
    assert other_machine({"device": "cpu"}, {**before, "device": "cpu"}) is None


def test_provenance_never_fails(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no git here")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(provenance, "_own_git_state", git_state)  # nothing of an earlier run
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package-at-all",))
    facts = collect(config={}, device="cuda:99")
    assert facts["git"] is None
    assert facts["packages"] == {"no-such-package-at-all": None}
    assert facts["device"]["name"] is None


def test_a_repository_around_an_installed_package_is_not_the_packages_own(monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "sphere_bench"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "run_folder" / "provenance.py"))
    assert git_state() is None
    monkeypatch.setattr(provenance, "_git", lambda *_: str(tmp_path))
    assert git_state() is None


def test_the_git_state_is_the_checkouts_commit(monkeypatch, tmp_path):
    answers = {"rev-parse --show-toplevel": str(tmp_path), "rev-parse HEAD": "c0ffee"}
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "sphere_bench" / "run_folder" / "provenance.py")
    )
    monkeypatch.setattr(
        provenance, "_git", lambda _, *arguments: answers.get(" ".join(arguments), " M file")
    )
    assert git_state() == {"commit": "c0ffee", "dirty": True}
