"""Environments, with real uv, real packages and real interpreters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlflow_domino.config import Secrets, Settings, parse
from mlflow_domino.environment import Built, Environments
from mlflow_domino.errors import Conflict, DominoError, EnvironmentFailed
from mlflow_domino.home import Home
from mlflow_domino.interpreter import find
from mlflow_domino.lock import environment_hash
from tests.packages import Index, make_harness, make_wheel


class Builder:
    """A home's environments, and what was logged."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.environments = Environments(home)
        self.log: list[str] = []

    def build(self, model: Path | None = None, **config: object) -> Built:
        settings, secrets = parse(config)
        return self.environments.build(model, settings, secrets, self.log.append)

    def installed(self, built: Built) -> dict[str, str]:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
        answer = subprocess.run([built.python, "-I", "-c", code], capture_output=True, check=True)
        installed: dict[str, str] = json.loads(answer.stdout)
        return installed

    def said(self) -> str:
        return "\n".join(self.log)


@pytest.fixture
def shared(tmp_path: Path, shared_environments: Path) -> Builder:
    """Environments with real packages, shared by the tests of a run."""
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.environments.symlink_to(shared_environments)
    return Builder(home)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """A home of the test's own on a machine that was told of no index, with a cold cache."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return Builder(Home(tmp_path / "home"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with what the harness needs, as tiny packages."""
    return make_harness(tmp_path / "wheels")


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    with Index(wheels) as index:
        yield index


def run_in(python: Path, code: str, *arguments: object) -> str:
    with tempfile.TemporaryDirectory() as folder:  # an older MLflow leaves its records where it runs
        ended = subprocess.run(
            [python, "-W", "ignore", "-c", code, *map(str, arguments)],
            capture_output=True, text=True, cwd=folder, env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


IRIS = """
import sys, mlflow
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
features, classes = load_iris(return_X_y=True, as_frame=True)
model = LogisticRegression(max_iter=500).fit(features, classes)
signature = mlflow.models.infer_signature(features, model.predict(features))
mlflow.sklearn.save_model(model, sys.argv[1], input_example=features[::50], signature=signature)
"""

PREDICT = """
import json, sys, mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps([float(v) for v in model.predict(model.metadata.load_input_example(sys.argv[1]))]))
"""


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "iris"
    run_in(Path(sys.executable), IRIS, path)
    return path


def test_a_model_runs_without_mlflows_server_and_a_second_version_installs_nothing(shared: Builder, iris: Path) -> None:
    import mlflow

    built = shared.build(iris)
    installed = shared.installed(built)
    assert "mlflow" not in installed
    assert installed["mlflow-skinny"] == mlflow.__version__
    assert {"flask", "six", "prometheus_client", "pyuwsgi"} <= {name.replace("-", "_") for name in installed}
    assert any("mlflow-skinny is installed in place of mlflow" in note for note in built.notes)
    assert json.loads(run_in(built.python, PREDICT, iris)) == [0, 1, 2]
    assert list(built.python.parent.parent.glob("lib/*/site-packages/sklearn/linear_model/__pycache__/*.pyc"))
    assert built.python_version == ".".join(map(str, sys.version_info[:3]))

    shared.log.clear()
    started = time.monotonic()
    again = shared.build(iris)
    assert time.monotonic() - started < 0.5  # 0.02 s on an idle machine
    assert (again.environment, again.lock_text, again.notes) == (built.environment, built.lock_text, built.notes)
    assert [line for line in shared.log if not line.startswith("note: ")] == []


SAVE = """
import sys, mlflow, mlflow.pyfunc, pandas as pd
code = sys.argv[1] + ".py"
with open(code, "w") as file:
    file.write('''
import sys
import mlflow.pyfunc, mlflow.models
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [value * 2 for value in model_input["x"]]
mlflow.models.set_model(Model())
''')
example = pd.DataFrame({"x": [1.5, 2.5]})
mlflow.pyfunc.save_model(sys.argv[1], python_model=code, input_example=example, pip_requirements=sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("version", "pins"),
    [
        ("3.10", ("mlflow==2.19.0", "numpy<2", "pandas<2.1")),  # both in conflict with this package's own environment
        ("3.12", ("mlflow==3.1.0", "numpy<2.3", "pandas<3")),
        ("3.13", ("mlflow==3.1.0", "pandas<3")),
    ],
)
def test_models_saved_under_other_pythons_run_under_theirs(
    shared: Builder, tmp_path: Path, version: str, pins: tuple[str, ...]
) -> None:
    try:
        interpreter, _ = find(version)
    except EnvironmentFailed as error:
        pytest.skip(error.message)
    from uv import find_uv_bin

    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([find_uv_bin(), "venv", "-q", "-p", interpreter.path, tmp_path / "venv"], check=True)
    skinny = [pin.replace("mlflow==", "mlflow-skinny==") for pin in pins]
    subprocess.run([find_uv_bin(), "pip", "install", "-q", "-p", python, *skinny, "numpy", "pandas"], check=True)
    run_in(python, SAVE, tmp_path / "model", *pins)

    built = shared.build(tmp_path / "model")
    assert built.python_version == interpreter.version
    assert json.loads(run_in(built.python, PREDICT, tmp_path / "model")) == [3.0, 5.0]
    installed = shared.installed(built)
    assert "mlflow" not in installed
    assert installed["mlflow-skinny"] == pins[0].partition("==")[2]
    if version == "3.10":
        assert installed["numpy"].startswith("1.")
        assert installed["pandas"].startswith("2.0.")


def test_a_model_that_needs_the_server_gets_the_whole_of_mlflow(shared: Builder, tmp_path: Path) -> None:
    code = SAVE.replace("import sys\nimport mlflow.pyfunc", "import sqlalchemy\nimport mlflow.pyfunc")
    import mlflow

    run_in(Path(sys.executable), code, tmp_path / "model", f"mlflow=={mlflow.__version__}")
    built = shared.build(tmp_path / "model")
    assert shared.installed(built)["mlflow"] == mlflow.__version__
    assert any("whole of mlflow" in note and "No module named 'sqlalchemy'" in note for note in built.notes)
    shared.log.clear()
    assert shared.build(tmp_path / "model").environment == built.environment
    assert "trying" not in shared.said()


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "import os; os._exit(0)", "while True: pass"])
def test_a_model_that_exits_or_hangs_in_the_trial_does_not_count_as_working(
    shared: Builder, tmp_path: Path, ending: str
) -> None:
    from mlflow_domino.lean import misfit

    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: ending\n    code: code\n")
    (model / "code").mkdir()
    (model / "code" / "ending.py").write_text(ending + "\n")
    said: list[str] = []
    reason = misfit(
        Path(sys.executable),
        model,
        variables={},
        folder=tmp_path,
        deadline_s=6 if "while" in ending else 60,
        log=said.append,
    )
    assert reason == ("no answer within 6 s" if "while" in ending else reason)
    assert reason


def test_values_of_variables_are_hidden_in_what_the_trial_says(tmp_path: Path) -> None:
    from mlflow_domino.lean import misfit

    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: saying\n    code: code\n")
    (model / "code" / "saying.py").write_text(
        "import os\nprint(os.environ['KEY'])\nraise ValueError(os.environ['KEY'])\n"
    )
    said: list[str] = []
    reason = misfit(
        Path(sys.executable), model, variables={"KEY": "sesame-open"}, folder=tmp_path, deadline_s=60, log=said.append
    )
    assert reason == "ValueError: ****"
    assert "sesame" not in "\n".join(said)


# ---- projects, and what is refused -----------------------------------------------------------------------------------


def test_a_projects_environment_has_what_is_listed_and_the_harness(own: Builder, index: Index) -> None:
    make_wheel(index.folder, "domino_one", "1.5", requires=["domino-two>=1"])
    make_wheel(index.folder, "domino_two", "1.0")
    built = own.build(environment="domino-one==1.5", index_url=index.url())
    names = {name.replace("-", "_") for name in own.installed(built)}
    assert names == {"domino_one", "domino_two", "pyuwsgi", "flask", "six", "prometheus_client"}
    assert "domino-two==1.0 \\\n    --hash=sha256:" in built.lock_text
    assert built.python.parent.parent == own.environments.path(built.environment)


def test_a_package_that_does_not_exist_is_named_with_file_and_line(own: Builder, index: Index, model: Path) -> None:
    (model / "requirements.txt").write_text("domino-one\ndomino-nowhere==1.0\n")
    make_wheel(index.folder, "domino_one")
    make_wheel(index.folder, "mlflow")
    with pytest.raises(EnvironmentFailed) as caught:
        own.build(model, index_url=index.url())
    assert "requirements.txt:2: domino-nowhere==1.0" in caught.value.message
    assert "domino-nowhere was not found in the package registry" in caught.value.log_tail
    assert "domino-nowhere was not found" in own.said()


def test_lines_in_conflict_with_each_other_are_named(own: Builder, index: Index, model: Path) -> None:
    make_wheel(index.folder, "mlflow")
    make_wheel(index.folder, "domino_one", "1.0", requires=["domino-two<2"])
    make_wheel(index.folder, "domino_two", "2.0")
    (model / "requirements.txt").write_text("six\ndomino-one==1.0\n-c limits.txt\n")
    (model / "limits.txt").write_text("domino-two==2.0\n")
    with pytest.raises(EnvironmentFailed) as caught:
        own.build(model, index_url=index.url())
    assert "requirements.txt:2: domino-one==1.0" in caught.value.message
    assert "limits.txt:1: domino-two==2.0" in caught.value.message
    assert "harness" not in caught.value.message
    assert "unsatisfiable" in caught.value.log_tail


def test_a_conflict_with_the_harness_names_its_package_and_the_line(own: Builder, index: Index, model: Path) -> None:
    make_wheel(index.folder, "mlflow")
    make_wheel(index.folder, "flask", "1.0")
    (model / "requirements.txt").write_text("six\n\nflask==1.0\n")
    with pytest.raises(EnvironmentFailed) as caught:
        own.build(model, index_url=index.url())
    assert "harness's own packages flask>=2.0: requirements.txt:3: flask==1.0" in caught.value.message
    assert "flask==1.0 and flask>=2.0" in caught.value.log_tail


def test_without_leave_to_install_them_missing_harness_packages_are_named(own: Builder, index: Index) -> None:
    with pytest.raises(EnvironmentFailed, match="lacks uWSGI, Flask, Prometheus-client, which"):
        own.build(environment="six", index_url=index.url(), install_harness_packages=False)
    built = own.build(
        environment="six,flask,pyuwsgi,prometheus-client", index_url=index.url(), install_harness_packages=False
    )
    assert built.environment


def test_a_uwsgi_of_the_requirements_is_used_instead_of_pyuwsgi(own: Builder, index: Index) -> None:
    make_wheel(index.folder, "uwsgi", "2.0.31")
    built = own.build(environment="uWSGI==2.0.31", index_url=index.url())
    assert {"uwsgi"} == {name for name in own.installed(built) if "uwsgi" in name}


def test_an_index_that_does_not_answer_is_said(own: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentFailed, match="a package index does not answer") as caught:
        own.build(environment="six", index_url="http://127.0.0.1:9/simple")
    assert "Connection refused" in caught.value.log_tail


def test_wheels_in_a_folder_do_without_any_network(own: Builder, wheels: Path) -> None:
    make_wheel(wheels, "domino_one", "1.5")
    built = own.build(environment="domino-one", find_links=str(wheels), offline=True)
    assert own.installed(built)["domino_one"] == "1.5"


def test_only_files_with_the_hashes_of_the_line_are_accepted(own: Builder, index: Index, model: Path) -> None:
    make_wheel(index.folder, "mlflow")
    make_wheel(index.folder, "domino_one", "1.5")
    (model / "requirements.txt").write_text(f"domino-one==1.5 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(EnvironmentFailed, match=r"requirements\.txt:1: no file of domino-one==1\.5 .* hash"):
        own.build(model, index_url=index.url())


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_passwords_of_indexes_are_seen_nowhere(own: Builder, wheels: Path) -> None:
    make_wheel(wheels, "domino_one")
    seen: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            for process in psutil.Process().children(recursive=True):
                try:
                    seen.append(" ".join(process.cmdline()))
                except psutil.Error:
                    continue

    with Index(wheels, user="me:open-sesame") as index:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            built = own.build(environment="domino-one", index_url=index.url("me:open-sesame"))
        finally:
            ended.set()
            watcher.join()
        with pytest.raises(DominoError) as caught:
            own.build(environment="domino-one,six", index_url=index.url("me:wrong-sesame"))
    assert any("pip compile" in line for line in seen)
    stored = [path.read_text() for path in own.home.environments.glob("*/*.json")]
    for text in ("\n".join(seen), own.said(), built.lock_text, str(caught.value), *stored):
        assert "sesame" not in text
    assert "refuses us domino-one: a user or password is missing or wrong" in caught.value.message


def test_passwords_in_the_models_own_lines_stay_out_of_the_lock(own: Builder, wheels: Path, model: Path) -> None:
    make_wheel(wheels, "mlflow")
    make_wheel(wheels, "domino_one")
    with Index(wheels, user="me:open-sesame") as index:
        files = index.url("me:open-sesame").removesuffix("simple") + "files/domino_one-9.0-py3-none-any.whl"
        (model / "requirements.txt").write_text(
            f"--extra-index-url {index.url('me:open-sesame')}\ndomino-one @ {files}\n"
        )
        built = own.build(model, index_url=index.url("${INDEX_USER}"), **{"env.INDEX_USER": "me:open-sesame"})
        assert "sesame" not in built.lock_text + own.said()
        assert "domino-one @ http://${DOMINO_URL_" in built.lock_text
        own.environments.remove(built.environment)
        settings, secrets = parse({"index_url": index.url("me:open-sesame")})
        again = own.environments.rebuild(built.lock_text, settings, secrets, own.log.append, model=model)
    assert again.environment == built.environment
    assert own.installed(again)["domino_one"] == "9.0"


# ---- locks, turns, interruptions -------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose MLflow is no real one, so that nothing but its requirements matters."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "MLmodel").write_text("mlflow_version: '9.0'\nflavors:\n  python_function:\n    loader_module: x\n")
    return path


def test_files_of_the_model_are_installed_from_wherever_it_is(
    own: Builder, index: Index, model: Path, tmp_path: Path
) -> None:
    make_wheel(index.folder, "mlflow")
    make_wheel(model / "wheels", "domino_one", "1.5")
    (model / "requirements.txt").write_text("wheels/domino_one-1.5-py3-none-any.whl\n")
    built = own.build(model, index_url=index.url())
    assert str(tmp_path) not in built.lock_text
    moved = model.rename(tmp_path / "moved")
    assert own.build(moved, index_url=index.url()).environment == built.environment
    assert own.environments.remove(built.environment)
    settings, secrets = parse({"index_url": index.url()})
    with pytest.raises(EnvironmentFailed, match="files of the model"):
        own.environments.rebuild(built.lock_text, settings, secrets, own.log.append)
    again = own.environments.rebuild(built.lock_text, settings, secrets, own.log.append, model=moved)
    assert own.installed(again)["domino_one"] == "1.5"


def test_a_stored_lock_is_installed_again_though_newer_releases_are_there(own: Builder, index: Index) -> None:
    make_wheel(index.folder, "domino_one", "1.0")
    built = own.build(environment="domino-one", index_url=index.url())
    make_wheel(index.folder, "domino_one", "2.0")
    assert own.build(environment="domino-one", index_url=index.url()).environment == built.environment

    assert own.environments.remove(built.environment)
    assert not own.environments.has(built.environment)
    settings, secrets = parse({"index_url": index.url()})
    again = own.environments.rebuild(built.lock_text, settings, secrets, own.log.append)
    assert own.installed(again)["domino_one"] == "1.0"
    assert again.environment == environment_hash(built.lock_text) == built.environment


def test_an_environment_whose_interpreter_is_gone_is_built_again(own: Builder, index: Index) -> None:
    built = own.build(environment="six", index_url=index.url())
    built.python.unlink()
    built.python.symlink_to("/nowhere/python")
    assert not own.environments.has(built.environment)
    assert own.installed(own.build(environment="six", index_url=index.url()))["six"] == "9.0"


def test_environments_are_listed_with_size_and_last_use_and_removed_once(own: Builder, index: Index) -> None:
    make_wheel(index.folder, "domino_one")
    first = own.build(environment="six", index_url=index.url())
    second = own.build(environment="domino-one", index_url=index.url())
    os.utime(own.environments.path(second.environment) / "domino.json", (1, 1))
    stored = own.environments.stored()
    assert [entry.environment for entry in stored] == [second.environment, first.environment]
    assert stored[0].last_used_ms == 1000
    assert all(entry.complete and entry.size > 1000 and entry.python_version for entry in stored)

    with own.environments._locks.lock(first.environment), pytest.raises(Conflict, match="is being built"):
        own.environments.remove(first.environment)
    assert own.environments.remove(first.environment)
    assert not own.environments.remove(first.environment)
    assert [entry.environment for entry in own.environments.stored()] == [second.environment]


def test_two_builders_of_one_environment_take_turns(own: Builder, index: Index) -> None:
    built: list[Built] = []
    threads = [
        threading.Thread(target=lambda: built.append(own.build(environment="six", index_url=index.url())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.environment for one in built}) == 1
    assert len(built) == 3
    assert own.said().count("Installed 4 packages") == 1


CHILD = """
import sys
from pathlib import Path
from mlflow_domino.config import parse
from mlflow_domino.environment import Environments
from mlflow_domino.home import Home
settings, secrets = parse({"environment": "six", "index_url": sys.argv[2]})
Environments(Home(Path(sys.argv[1]))).build(None, settings, secrets, print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_builder_that_is_stopped_leaves_no_process_and_nothing_broken(
    own: Builder, index: Index, number: signal.Signals
) -> None:
    forgotten = own.build(environment="six", index_url=index.url())  # so that the child has the lock and only installs
    shutil.rmtree(own.environments.path(forgotten.environment))
    shutil.rmtree(os.environ["UV_CACHE_DIR"])
    index.asked.clear()
    index.released.clear()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(own.home.root), index.url()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert index.asked.wait(30)
    uv = psutil.Process(child.pid).children(recursive=True)
    assert uv
    assert list(own.home.environments.glob("*/pyvenv.cfg"))
    child.send_signal(number)
    child.wait(10)
    _, alive = psutil.wait_procs(uv, timeout=5)
    assert not alive
    assert not any(entry.complete for entry in own.environments.stored())
    index.released.set()
    built = own.build(environment="six", index_url=index.url())
    assert own.installed(built)["six"] == "9.0"


def test_an_unwritable_home_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(EnvironmentFailed, match="cannot be written"):
        Environments(Home(tmp_path / "home")).build(None, Settings(), Secrets(), lambda _line: None)
