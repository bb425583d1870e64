import json
import subprocess

from sphere_bench.run_folder import provenance
from sphere_bench.run_folder.provenance import collect, git_state

CONFIG = {"seed": 0, "sphere": {"alpha": 0.8, "eta": 0.5}}


def test_provenance_says_which_code_and_machine_made_the_numbers():
    facts = collect(config=CONFIG, device="cpu")
    assert facts["packages"]["torch"]
    assert facts["packages"]["transformers"]
    assert facts["config"] == CONFIG
    assert facts["device"]["torch_device"] == "cpu"
    assert facts["started_at"].endswith("+00:00")
    json.dumps(facts)


def test_provenance_never_fails(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no git here")

    monkeypatch.setattr(subprocess, "run", fail)
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
