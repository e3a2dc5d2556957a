"""What `mlflow-domino render` writes, and that it does nothing else."""

from __future__ import annotations

import json

import pytest

from mlflow_domino.cli import main
from mlflow_domino.controller import Controller
from mlflow_domino.home import Home

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, python_version: 3.11.7}
  sklearn: {}
mlflow_version: 3.1.0
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    (tmp_path / "project/model.py").write_text("def predict(x):\n    return x\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/MLmodel").write_text(MLMODEL)
    (tmp_path / "model/requirements.txt").write_text("mlflow==3.1.0\nscikit-learn==1.5.2\n")
    return Home.find()


def render(*arguments: str) -> int:
    return main(["render", "mine", "-o", "out", *arguments])


PROJECT = ("-m", "project", "-C", "file=model.py")


def test_everything_that_would_run_is_written(home, tmp_path, capsys):
    assert render(*PROJECT, "-C", "replicas=2", "-C", "environment=pandas==2.2.3", "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert {"version.json", "requirements.in", "harness.json", "replica-0.json", "replica-1.json"} <= set(files)
    assert {f"envoy/{name}/{name}.json" for name in ("listener", "clusters", "routes")} <= set(files)
    out = tmp_path / "out"
    assert (out / "source/model.py").is_file()
    assert "pandas==2.2.3" in (out / "requirements.in").read_text()
    assert "flask" in (out / "requirements.in").read_text()
    assert json.loads((out / "harness.json").read_text())["source"]["function"] == "predict"
    assert "HASH-OF-THE-LOCK/bin/python" in (out / "replica-0.json").read_text()
    version_id = json.loads((out / "harness.json").read_text())["version_id"]
    assert version_id in (out / "envoy/routes/routes.json").read_text()


def test_a_models_own_requirements_are_named_with_their_lines(home, tmp_path):
    assert render("-m", "model") == 0
    lines = (tmp_path / "out/requirements.in").read_text().splitlines()
    assert lines[0] == "# Python 3.11.7"
    assert "scikit-learn==1.5.2  # requirements.txt:2" in lines


def test_values_of_variables_and_passwords_of_indexes_are_in_no_file(home, tmp_path):
    secrets = ("-C", "env.KEY=hunter2hunter2", "-C", "index_url=https://me:hunter2hunter2@host/simple")
    assert render(*PROJECT, *secrets) == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if "hunter2hunter2" in path.read_text()]
    assert json.loads((tmp_path / "out/version.json").read_text())["variables"] == ["KEY"]


def test_nothing_is_done(home, tmp_path):
    assert render(*PROJECT) == 0
    controller = Controller.open(home=home)
    assert controller.endpoints() == []
    assert not controller.plane.alive()
    assert not (home.root / "versions").exists()
    assert not home.environments.exists()


def test_a_folder_that_is_there_is_never_written_into(home, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert render(*PROJECT) == 2
    assert "out exists; name a new folder" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_refused_leaves_no_folder(home, tmp_path, capsys):
    assert render("-m", "project", "-C", "file=modle.py") == 3
    assert "did you mean 'model.py'" in capsys.readouterr().err
    assert render() == 2
    assert not (tmp_path / "out").exists()
