"""`make try` works in a copy, and leaves everything else as it was."""

import json
import subprocess
from pathlib import Path

import first_try
import pytest
from house import TOP, environment_in


def state_of_the_checkout():
    """What git says, and size and time of every file but those of caches."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=TOP, capture_output=True, text=True, check=True)
    own = [p for p in TOP.iterdir() if p.name not in (".venv", ".try", ".git") and "cache" not in p.name]
    files = [p for top in own for p in ([top] if top.is_file() else top.rglob("*")) if p.is_file()]
    stats = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in files if "__pycache__" not in p.parts}
    return status.stdout, stats


def asked(folder, *command):
    """What a command in the copy prints."""
    env = environment_in(folder)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


def test_a_first_try_has_code_and_dvc_of_its_own_and_changes_nothing_else(tmp_path):
    before = state_of_the_checkout()
    (tmp_path / "of_the_last_try").write_text("")
    first_try.prepare(tmp_path)
    assert state_of_the_checkout() == before
    assert not (tmp_path / "of_the_last_try").exists() and not (tmp_path / ".git").exists()
    stages = asked(tmp_path, "dvc", "stage", "list", "--name-only", "studies/tiny/dvc.yaml").split()
    assert len(stages) == 15 and len([s for s in stages if s.startswith("studies/tiny/dvc.yaml:train@")]) == 4
    code = asked(tmp_path, "python", "-c", "import her2core; print(her2core.__file__)")
    assert Path(code).is_relative_to(tmp_path)


def test_it_ends_with_numbers_and_the_page(tmp_path, monkeypatch, capsys):
    metrics = {"internal": {"auc": 0.5, "low": 0.25, "high": 0.75, "patients": 8}}
    metrics["external"] = {"AMBL": {"auc": 0.625, "low": 0.3, "high": 0.9, "patients": 6}}
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(first_try, "FOLDER", tmp_path)
    monkeypatch.setattr(first_try, "prepare", lambda folder: None)
    monkeypatch.setattr(first_try, "call", lambda folder, *command: print(*command))
    first_try.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dvc repro studies/tiny/dvc.yaml"
    assert "  internal test: AUC 0.50 (0.25 to 0.75), 8 patients" in lines
    assert "  AMBL: AUC 0.62 (0.30 to 0.90), 6 patients" in lines
    assert f"Page: {tmp_path}/results/tiny/report.html" in lines


def test_a_stage_that_fails_is_said_in_one_line(tmp_path):
    with pytest.raises(subprocess.CalledProcessError, match="non-zero exit status 3"):
        first_try.call(tmp_path, "python", "-c", "raise SystemExit(3)")
