import json
import subprocess

import pytest

from sphere_bench import provenance
from sphere_bench.errors import SphereBenchError
from sphere_bench.provenance import (
    collect,
    config_hash,
    git_state,
    read,
    record,
    record_resumed,
)

CONFIG = {"seed": 0, "sphere": {"alpha": 0.8, "eta": 0.5}}


def test_provenance_says_which_code_model_and_data_made_the_numbers():
    facts = collect(
        config=CONFIG, device="cpu", model_fingerprint="m" * 64, dataset_fingerprint="d" * 64
    )
    assert facts["packages"]["torch"]
    assert facts["packages"]["transformers"]
    assert facts["model_fingerprint"] == "m" * 64
    assert facts["dataset_fingerprint"] == "d" * 64
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
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert git_state() is None
    monkeypatch.setattr(provenance, "_git", lambda *_: str(tmp_path))
    assert git_state() is None


def test_the_git_state_is_the_checkouts_commit(monkeypatch, tmp_path):
    answers = {"rev-parse --show-toplevel": str(tmp_path), "rev-parse HEAD": "c0ffee"}
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "sphere_bench" / "provenance.py"))
    monkeypatch.setattr(
        provenance, "_git", lambda _, *arguments: answers.get(" ".join(arguments), " M file")
    )
    assert git_state() == {"commit": "c0ffee", "dirty": True}


def test_the_configurations_hash_sees_values_and_not_the_order_of_keys():
    assert config_hash({"b": 1, "a": {"d": 2, "c": 3}}) == config_hash(
        {"a": {"c": 3, "d": 2}, "b": 1}
    )
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_a_resumed_run_keeps_its_first_provenance(tmp_path, caplog):
    facts = {"config": CONFIG, "packages": {}, "device": "cpu"}
    record(tmp_path, {**facts, "started_at": "first"})
    record_resumed(tmp_path, {**facts, "started_at": "second"})
    record_resumed(tmp_path, {**facts, "started_at": "third", "device": "cuda"})
    assert read(tmp_path) == {
        **facts,
        "started_at": "first",
        "resumed": [{"started_at": "second"}, {"started_at": "third", "device": "cuda"}],
    }
    assert "another device: cpu -> cuda" in caplog.text


@pytest.mark.parametrize("content", ["", '{"started_at"', "[]", "null", '{"config": {}}'])
def test_a_damaged_provenance_file_is_named(content, tmp_path):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(SphereBenchError, match=r"provenance\.json, .* is missing or damaged"):
        read(tmp_path)
