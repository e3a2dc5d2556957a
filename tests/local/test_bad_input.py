"""What people give wrongly, by its own message, through the whole path; and nothing that runs notices any of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from mlflow_domino.cli import cli
from mlflow_domino.controller import Controller, EndpointView
from mlflow_domino.errors import DominoError, EnvironmentFailed, InvalidInput, NotFound, StartFailed, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.conftest import free_port, processes_of
from tests.deployment import ECHO, Deployment
from tests.local.test_models import save_function_with_params
from tests.packages import Index, make_harness, make_wheel

CODE = """
import time
def predict(x, *, much=0, what="number"):
    return {"number": x, "object": object(), "complex": 1j, "text": "x" * much}[what]
"""
SECRET = "p%s-$(id)-@(exec://id)-\"'-key"


@pytest.fixture(scope="module")
def steady(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An endpoint `steady` that answers, and goes on answering whatever is tried on it."""
    deployment = Deployment(home)
    deployment.create("steady", deployment.project(tmp_path_factory.mktemp("steady"), CODE), max_body="1MB")
    yield deployment
    assert call(deployment, {"data": {"x": 7}}).json()["result"] == 7
    deployment.clean()


def view_of(deployment: Deployment) -> EndpointView:
    return deployment.controller.endpoint("steady")


def call(deployment: Deployment, body: Any, **options: Any) -> requests.Response:
    return deployment.call(view_of(deployment), body, **options)


def files_of(home: Home) -> set[str]:
    """What is kept for versions and endpoints, and of what runs."""
    folders = ("versions", "endpoints", "callers", "run/s", "run/vassals", "run/launch")
    return {str(path) for folder in folders for path in (home.root / folder).glob("*")}


# ---- refused before anything is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"replica": "2"}, "unknown key 'replica': did you mean 'replicas'?"),
        ({"isAsynch": "2"}, "unknown key 'is_asynch'"),
        ({"replicas": "two"}, "replicas=two: a whole number from 1 to 32 is wanted"),
        ({"workers": 1.5}, "workers=1.5: a whole number"),
        ({"request_timeout_s": "60s"}, "request_timeout_s=60s: a number from 0.1 to 86400 is wanted, without a unit"),
        ({"max_body": "10 parsecs"}, "max_body=10 parsecs: a size is wanted, such as 512Mi"),
        ({"debug": "perhaps"}, "debug=perhaps: true or false is wanted"),
        ({"file": "nowhere.py"}, "has no file 'nowhere.py'"),
        ({"file": "models.py"}, "did you mean 'model.py'?"),
        ({"file": "../model.py"}, "a path inside the project is wanted"),
        ({"file": ""}, "a path inside the project is wanted"),
        ({"function": "predit"}, "model.py has no function 'predit': did you mean 'predict'?"),
        ({"function": "SIZE"}, "model.py:1: SIZE is an int, not a function"),
        ({"function": "time"}, "time is a module, not a function"),
        ({"config": "@nowhere.yaml"}, "nowhere.yaml cannot be read as YAML"),
        ({"env.2BAD": SECRET}, "env.2BAD: a name starts with a letter"),
        ({"env.PATH": SECRET}, "env.PATH: this name is reserved"),
        ({"env.A": SECRET + "\0"}, "env.A: the value must be text without null bytes"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_setting_is_refused_and_leaves_nothing(
    steady: Deployment, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    project = steady.project(tmp_path, CODE, SIZE=3)
    before = files_of(steady.home)
    for verb in (steady.controller.create, steady.controller.update):
        with pytest.raises(DominoError) as caught:
            verb("steady" if verb.__name__ == "update" else "refused", project, {"file": "model.py", **config})
        assert isinstance(caught.value, (InvalidInput, NotFound)), caught.value
        assert message in str(caught.value)
        assert SECRET not in str(caught.value)
    assert files_of(steady.home) == before
    assert [e.endpoint.name for e in steady.controller.endpoints()] == ["steady"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nobodys/1", "nobodys"),
        ("models:/known/99", r"known.*99"),
        ("models:/known@nowhere", "nowhere"),
        ("models:/known/latest/3", "models:/"),
        ("models:/m-0123456789abcdef0123456789abcdef", "m-0123456789abcdef"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "0123456789abcdef"),
        ("/nowhere/at/all", "there is no directory /nowhere/at/all"),
        ("git+file:///nowhere/at/all@main", "/nowhere/at/all"),
        ("", "a model's URI or a project's directory is wanted"),
        ("https://example.invalid/project", r"git\+https://example.invalid/project"),
    ],
)
def test_a_model_that_is_not_there_is_refused_by_name(steady: Deployment, uri: str, message: str) -> None:
    from mlflow import MlflowClient

    if not MlflowClient().search_registered_models():
        MlflowClient().create_registered_model("known")
    with pytest.raises(DominoError, match=message):
        steady.controller.create("refused", uri, {"file": "model.py"})
    assert [e.endpoint.name for e in steady.controller.endpoints()] in (["steady"], ["refused", "steady"])
    steady.controller.delete("refused")


def test_a_syntax_error_is_refused_with_file_and_line(steady: Deployment, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"model\.py:2: syntax error"):
        steady.update("steady", steady.project(tmp_path, "import os\ndef predict(:\n"))


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../up", "-a", "a-", "x" * 300, "häuser", "模型", "a\nb", "a%b", "$(id)", "."]
)
def test_a_name_that_would_not_stand_in_a_path_or_a_terminal_is_refused(
    steady: Deployment, tmp_path: Path, name: str
) -> None:
    project = steady.project(tmp_path, CODE)
    for verb in (
        lambda: steady.controller.create(name, project, {"file": "model.py"}),
        lambda: steady.controller.create_endpoint(name),
    ):
        with pytest.raises(InvalidInput, match="is no name for an endpoint: 1 to 100 letters"):
            verb()
    with pytest.raises(NotFound) as caught:
        steady.controller.endpoint(name)
    assert len(str(caught.value)) < 300
    steady.controller.delete(name)


# ---- environments ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = make_harness(tmp_path_factory.mktemp("wheels"))
    make_wheel(folder, "flask", "1.0")
    with Index(folder) as index:
        yield index


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"environment": "domino-nowhere==1.0"}, "domino-nowhere was not found in the package registry"),
        ({"environment": "six; import os"}, "environment.*six; import os"),
        ({"environment": "six,flask==1.0"}, "harness's own packages flask>=2.0"),
        ({"environment": "six", "install_harness_packages": "false"}, "lacks uWSGI, Flask, Prometheus-client"),
        ({"python_version": "3.99", "python_downloads": "false"}, r"Python 3.99 is not on this machine and may not be"),
        ({"python_version": "3.6"}, r"Python 3.6 is older than 3.8"),
    ],
    ids=[
        "no such package",
        "no requirement",
        "conflict with the harness",
        "harness not installed",
        "no such interpreter",
        "too old",
    ],
)
def test_an_environment_that_cannot_be_made_fails_the_version_only(
    steady: Deployment, tmp_path: Path, index: Index, config: dict[str, Any], message: str
) -> None:
    with pytest.raises((EnvironmentFailed, InvalidInput)) as caught:
        steady.update("steady", steady.project(tmp_path, CODE), index_url=index.url(), **config)
    assert re.search(message, str(caught.value)), caught.value
    newest = view_of(steady).versions[-1]
    assert newest.seen.status is Status.FAILED
    assert newest.seen.reason == caught.value.message
    assert call(steady, {"data": {"x": 1}}).json()["result"] == 1


def test_an_interpreter_that_is_not_to_be_had_says_which_are_there(steady: Deployment, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        steady.update("steady", steady.project(tmp_path, CODE), python_version="3.99", python_downloads=False)
    ours = ".".join(map(str, sys.version_info[:3]))
    assert f"There are {ours}" in str(caught.value) or f", {ours}" in str(caught.value)


# ---- versions that do not become ready -------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, str]] = {
    "raises": ('raise RuntimeError("no weights here")', "no weights here"),
    "lacks a module": ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
    "calls sys.exit": ("import sys\nsys.exit(3)", "3"),
    "ends the process": ("import os\nos._exit(4)", "by os._exit or in native code"),
    "is killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "has no such function": ("exec('')\nglobals()", "predict"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_cannot_load_says_why_within_seconds_and_changes_nothing(
    steady: Deployment, tmp_path: Path, fault: str
) -> None:
    code, reason = FAULTS[fault]
    tail = "" if fault == "has no such function" else "\ndef predict(x): return x\n"
    begun = time.monotonic()
    with pytest.raises(StartFailed) as caught:
        steady.update("steady", steady.project(tmp_path, code + tail))
    assert time.monotonic() - begun < 15
    assert "did not become ready" in caught.value.message
    assert reason in caught.value.message
    newest = view_of(steady).versions[-1]
    assert newest.seen.status is Status.FAILED
    assert reason in newest.seen.reason
    assert call(steady, {"data": {"x": 1}}).json()["result"] == 1


@pytest.mark.parametrize(
    "code", ["import time\ndef wait_for_nobody():\n    time.sleep(3600)\nwait_for_nobody()\n", "sum(range(10**13))\n"],
    ids=["sleeps", "loops in C"],
)  # fmt: skip
def test_a_version_that_hangs_while_loading_is_stalled_and_says_where(
    steady: Deployment, tmp_path: Path, code: str
) -> None:
    with pytest.raises(StartFailed) as caught:
        steady.update("steady", steady.project(tmp_path, code + "def predict(x): return x\n"), start_timeout_s=5)
    assert "5 s" in caught.value.message
    assert re.search(r'model\.py", line \d', str(caught.value)), caught.value
    newest = view_of(steady).versions[-1]
    assert newest.seen.status is Status.STALLED
    assert "start_timeout_s" in newest.seen.reason
    assert view_of(steady).endpoint.settings.start_timeout_s == 120


def test_a_warm_up_that_fails_fails_the_version(steady: Deployment, tmp_path: Path) -> None:
    project = steady.project(tmp_path, 'def predict(x):\n    raise RuntimeError("the first prediction fails")\n')
    for body, reason in (('{"data": {"x": 1}}', "the first prediction fails"), ('{"data": ', "warm.json")):
        (tmp_path / "warm.json").write_text(body)
        with pytest.raises(StartFailed, match=reason):
            steady.update("steady", project, warmup_file="warm.json")
    with pytest.raises(StartFailed, match=r"warmup_file nowhere\.json cannot be read: No such file"):
        steady.update("steady", project, warmup_file="nowhere.json")


PRINTS = """
import os, sys
print("loading with", os.environ["API_KEY"])
sys.stderr.write("and " + os.environ["API_KEY"] + "\\n")
def predict(fails=False):
    if fails:
        raise ValueError(os.environ["API_KEY"])
    return os.environ["API_KEY"] == SECRET
"""


def test_a_variables_value_is_shown_nowhere_whatever_prints_it(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create(
        "prints", deployment.project(tmp_path / "1", PRINTS, SECRET=SECRET), **{"env.API_KEY": SECRET}
    )
    assert deployment.call(view, {"data": {}}).json()["result"] is True
    answer = deployment.call(view, {"data": {"fails": True}})
    assert answer.status_code == 500
    raising = 'import os\nraise RuntimeError("cannot connect with " + os.environ["API_KEY"])\ndef predict(): ...\n'
    with pytest.raises(StartFailed, match="cannot connect with <API_KEY>") as caught:
        deployment.update("prints", deployment.project(tmp_path / "2", raising))
    shown = [answer.text, str(caught.value), *deployment.said, repr(deployment.controller.endpoint("prints"))]
    for words in (["status"], ["endpoint", "show", "prints"], ["endpoint", "versions", "prints"], ["render", "prints", "-o", str(tmp_path / "rendered")],
                  ["logs", "prints"], ["logs", "prints", "--version", "2"], ["logs", "prints", "--build"]):  # fmt: skip
        for form in ([], ["--json"]):
            done = CliRunner().invoke(cli, [*words, *form])
            assert done.exit_code == 0, done.output
            shown.append(done.output)
            shutil.rmtree(tmp_path / "rendered", ignore_errors=True)
    for process in processes_of(deployment.home):
        shown += process.cmdline()
    assert "cannot connect with <API_KEY>" in "".join(shown)
    assert not [text for text in shown if SECRET in text or json.dumps(SECRET)[1:-1] in text]
    for path in deployment.home.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and "environments" not in path.parts and "source" not in path.parts:
            content = path.read_bytes()
            kept = SECRET.encode() in content or json.dumps(SECRET)[1:-1].encode() in content
            assert not kept or (path.name == "secrets.json" and path.stat().st_mode & 0o777 == 0o600), path


VALUES = [
    "100% %d %n",
    "$(id) ${HOME} `id`",
    "@(exec://touch OWNED) @(file:///etc/passwd)",
    "one\ntwo\r\n",
    "'\"\\",
    "",
    "ü 模型",
]


def test_a_variables_value_arrives_as_it_was_written(deployment: Deployment, tmp_path: Path) -> None:
    code = "import os\ndef predict():\n    return {k: v for k, v in os.environ.items() if k.startswith('V_')}\n"
    variables = {f"V_{number}": value for number, value in enumerate(VALUES)}
    view = deployment.create("values", deployment.project(tmp_path, code), env=json.dumps(variables))
    assert deployment.call(view, {"data": {}}).json()["result"] == variables
    assert not list(deployment.home.root.rglob("OWNED"))


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "neither is"),
        (b'{"data": {"x": 1}, "parameters": [1]}', "both are"),
        (b'{"data": "x"}', "must be an object"),
        (b'{"parameters": {"x": 1}}', "must be a list"),
        (b'{"data": {"x": NaN}}', "NaN"),
        (b'{"data": {"x": 1}, "dta": 1}', "'dta'"),
        (b'{"data": {"x": 1, "y": 2}}', "'y'"),
        (b'{"data": {}}', "'x'"),
        (b'{"parameters": [1, 2, 3]}', "too many positional"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None,
)  # fmt: skip
def test_a_body_that_does_not_fit_gets_400_that_names_what_does_not(
    steady: Deployment, body: bytes, words: str
) -> None:
    answer = call(steady, None, data=body, headers={"Content-Type": "application/json"})
    assert_error(answer, 400, words)


def assert_error(answer: requests.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert set(error) == {"message", "code", "request_id"}


def test_twenty_megabytes_get_413_that_names_the_limit(steady: Deployment) -> None:
    answer = call(steady, {"data": {"x": "x" * 20_000_000}})
    assert_error(answer, 413, "1000000")


def test_a_chunked_body_is_understood(steady: Deployment) -> None:
    chunks = iter([b'{"data": ', b'{"x": 5}}'])
    answer = call(steady, None, data=chunks, headers={"Content-Type": "application/json"})
    assert answer.json()["result"] == 5


def test_forty_kilobytes_of_headers_pass_and_eighty_are_refused(steady: Deployment) -> None:
    assert call(steady, {"data": {"x": 5}}, headers={"X-Much": "y" * 40_000}).json()["result"] == 5
    assert_error(call(steady, {"data": {"x": 5}}, headers={"X-Much": "y" * 80_000}), 431, "headers")


@pytest.mark.parametrize("what", ["object", "complex"])
def test_a_result_that_cannot_be_encoded_gets_500_that_names_its_type(steady: Deployment, what: str) -> None:
    assert_error(call(steady, {"data": {"x": 1, "what": what}}), 500, what)


def test_a_connection_that_ends_in_the_middle_of_a_body_hurts_nobody(steady: Deployment) -> None:
    parts = urllib.parse.urlsplit(view_of(steady).url)
    for _ in range(20):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        connection.putrequest("POST", parts.path)
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        connection.send(b'{"data":')
        connection.close()
    assert call(steady, {"data": {"x": 1}}).json()["result"] == 1


@pytest.mark.filterwarnings("ignore")
def test_input_that_does_not_fit_a_models_signature_is_named_by_column(deployment: Deployment, tmp_path: Path) -> None:
    save_function_with_params(str(tmp_path / "model"))
    view = deployment.create("signed", str(tmp_path / "model"))
    good = {"x": 1.5, "n": 1}
    assert deployment.call(view, {"data": good}).ok
    for changed, words in (
        ({"x": "much"}, "'x'"), ({"n": 1.5}, "'n'"), ({"n": None}, "'n'"), ({"m": 1}, "'m'"), ({"x": [1.0, 2.0]}, "'x'"),
    ):  # fmt: skip
        assert_error(deployment.call(view, {"data": {**good, **changed}}), 400, words)
    assert_error(deployment.call(view, {"data": {"x": 1.5}}), 400, "'n'")
    answer = deployment.call(view, {"dataframe_records": [good], "params": {"fctor": 1.0}}, route="latest/invocations")
    assert_error(answer, 400, "'fctor'")


# ---- the machine -----------------------------------------------------------------------------------------------------


def other_home(folder: Path, home: Home, port: int) -> Home:
    """A second home on this machine, with the environments of the first."""
    other = Home(folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(f"[data_planes.local]\nport = {port}\n")
    other.environments.symlink_to(home.environments.resolve())
    return other


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a path that leaves room for sockets below it."""
    return tmp_path_factory.mktemp("s")


def test_a_port_that_is_taken_is_named_with_the_setting(steady: Deployment, short: Path) -> None:
    taken = int(urllib.parse.urlsplit(view_of(steady).url).port or 0)
    other = Deployment(other_home(short / "other", steady.home, taken))
    with pytest.raises(Unavailable, match=rf"cannot listen on 127\.0\.0\.1:{taken}: the port is taken.*`port`"):
        other.create("second", other.project(short / "p", CODE))
    assert not processes_of(other.home)
    assert other.controller.endpoints() == []


def test_a_second_home_serves_at_the_same_time(steady: Deployment, short: Path) -> None:
    other = Deployment(other_home(short / "other", steady.home, free_port()))
    try:
        view = other.create("steady", other.project(short / "p", ECHO, VALUE="second"))
        assert other.call(view, {"data": {}}).json()["result"] == "second"
        assert call(steady, {"data": {"x": 1}}).json()["result"] == 1
        assert call(steady, {"data": {"x": 1}}, auth=(other.token, other.token)).status_code == 401
        other.controller.down()
        assert call(steady, {"data": {"x": 1}}).json()["result"] == 1
    finally:
        other.controller.down()
    assert not processes_of(other.home)


def broken_text(path: Path) -> None:
    path.write_bytes(b"nothing of the kind" * 100)


def broken_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def broken_document(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE endpoints SET document = substr(document, 1, 40)")
    connection.close()


def broken_field(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE endpoints SET document = json_remove(document, '$.settings', '$.name')")
    connection.close()


@pytest.mark.parametrize("damage", [broken_text, broken_page, broken_document, broken_field])
def test_damaged_records_are_named_and_kept_as_they_are(short: Path, damage: Callable[[Path], None]) -> None:
    home = Home(short / "home")
    controller = Controller.open(home=home)
    for number in range(30):
        controller.create_endpoint(f"e{number}")
    damage(home.database)
    content = home.database.read_bytes()
    with pytest.raises(DominoError, match=r"records in .*domino\.db cannot be used"):
        Controller.open(home=home).endpoints()
    assert home.database.read_bytes() == content
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_domino", "status"],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MLFLOW_DOMINO_HOME": str(home.root)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


IN_A_NAMESPACE = """
set -e
mount -t tmpfs -o size={size},{options} none "{folder}"
cp "{config}" "{folder}"
ln -s "{environments}" "{folder}/environments"
{before}
{python} -m mlflow_domino endpoint list
exec {python} -c '{code}' "{project}"
"""
TRY = """
import sys
from mlflow_domino.controller import Controller
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
tried = (
    ("create", lambda c: c.create("small", sys.argv[1], {"file": "model.py"})),
    ("create_endpoint", lambda c: c.create_endpoint("empty")),
    ("up", lambda c: c.up()),
    ("delete", lambda c: c.delete("small")),
)
try:
    for name, verb in tried:
        try:
            verb(Controller.open())
            print(name, "done")
        except DominoError as error:
            print(name, "refused:", error)
finally:
    try:
        Controller.open(recover=False).down()
    except DominoError as error:
        print("down refused:", error)
"""


def on_a_small_disk(home: Home, short: Path, project: str, *, size: str, options: str = "rw", before: str = "") -> str:
    """Run verbs where the home is a disk of `size`, which only they see."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything, not even for itself")
    folder = short / "small"
    folder.mkdir()
    config = short / "config.toml"
    config.write_text(f"[data_planes.local]\nport = {free_port()}\n")
    script = IN_A_NAMESPACE.format(
        size=size, options=options, folder=folder, config=config, environments=home.environments.resolve(),
        before=before.format(folder=folder), python=sys.executable, code=TRY, project=project,
    )  # fmt: skip
    environment = {**os.environ, "MLFLOW_DOMINO_HOME": str(folder)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], text=True, capture_output=True, env=environment, timeout=120
    )
    assert not processes_of(Home(folder))
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_a_full_disk_is_said_and_nothing_is_left_running(steady: Deployment, short: Path) -> None:
    project = steady.project(short / "p", CODE)
    (short / "p" / "weights").write_bytes(b"x" * (8 << 20))
    said = on_a_small_disk(steady.home, short, project, size="4m")
    assert re.search(r"create refused: .*No space left", said), said


def test_a_disk_that_is_full_to_the_last_byte_is_said(steady: Deployment, short: Path) -> None:
    fill = 'head -c 100m /dev/zero > "{folder}/filler" || true'
    said = on_a_small_disk(steady.home, short, steady.project(short / "p", CODE), size="4m", before=fill)
    assert re.search("full|No space left", said), said


def test_a_home_that_cannot_be_written_is_said(steady: Deployment, short: Path) -> None:
    said = on_a_small_disk(
        steady.home, short, steady.project(short / "p", CODE), size="4m", before='mount -o remount,ro "{folder}"'
    )
    assert "set MLFLOW_DOMINO_HOME to a folder of yours" in said, said
