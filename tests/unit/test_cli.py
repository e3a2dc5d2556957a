"""The command `mlflow-domino`: answers, tables, JSON, exit codes; without a supervisor."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from mlflow_domino import secret
from mlflow_domino.cli import cli, main
from mlflow_domino.cli.tables import pairs, table
from mlflow_domino.config import Secrets
from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from mlflow_domino.models import Artifact, FileSource, RegistrySource, Status, Target, Version, new_id


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_DOMINO_TOKEN", raising=False)
    return Home.find()


@pytest.fixture
def controller(home) -> Controller:
    return Controller.open(home=home)


@pytest.fixture
def run(home, capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(*arguments: str):
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def add_version(controller: Controller, name: str, **changes) -> Version:
    """Write down a version that was built and stopped, with logs."""
    endpoint = controller.endpoint(name).endpoint
    version = Version(
        new_id(),
        endpoint.id,
        endpoint.next_number,
        1_700_000_000_000,
        RegistrySource("models:/iris@champion", "models:/iris/3", "0" * 64, "iris", "3", "sklearn"),
        endpoint.settings,
        status=Status.STOPPED,
        artifact=Artifact("e" * 24, "f" * 64, "a" * 16, "3.11.7", ("a note",)),
    )
    version = controller.records.save_version(dataclasses.replace(version, **changes))
    controller.records.save_endpoint(
        dataclasses.replace(endpoint, next_number=version.number + 1, latest=version.id, target=Target.STOPPED)
    )
    folder = controller.home.version(version.id)
    (folder / "logs").mkdir(parents=True)
    (folder / "build.log").write_text("2026-11-23T01:00:00.000Z built\n")
    (folder / "logs/replica-0.log").write_text(
        "2026-11-23T01:02:00.000Z zero\nTraceback\n2026-11-23T01:04:00.000Z password hunter2!\n"
    )
    (folder / "logs/replica-1.log").write_text("2026-11-23T01:03:00.000Z one\n")
    secret.save(folder / "secrets.json", Secrets(variables={"PASSWORD": "hunter2!"}))
    return version


@pytest.fixture
def iris(controller):
    controller.create_endpoint("iris", {"workers": "2", "env.PASSWORD": "hunter2!"})
    return add_version(controller, "iris")


# ---- the command itself --------------------------------------------------------------------------------------------


def test_every_command_has_help_and_json(run):
    def walk(group, path):
        for name in group.list_commands(None):
            found = group.get_command(None, name)
            if hasattr(found, "list_commands"):
                yield from walk(found, (*path, name))
            else:
                yield (*path, name)

    commands = list(walk(cli, ()))
    assert len(commands) == 32
    for words in commands:
        code, out, _ = run(*words, "--help")
        assert code == 0
        assert "--json" in out
        assert "--target" in out


@pytest.mark.parametrize("words", [(), ("endpoint",), ("gateway",), ("predictions",), ("token",)])
def test_the_lines_of_a_list_of_commands_are_whole(run, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run(*words, "--help")
    commands = out.partition("Commands:")[2]
    assert "..." not in commands
    assert commands.rstrip().endswith(".")


def test_a_misspelt_endpoint_is_told_the_nearest_name(run, controller):
    controller.create_endpoint("iris-scorer")
    controller.create_endpoint("other")
    code, _, err = run("endpoint", "show", "iris-scorrer")
    assert (code, err) == (3, "Error: There is no endpoint 'iris-scorrer'; did you mean 'iris-scorer'?\n")
    assert "`mlflow-domino endpoint list`" in run("endpoint", "show", "quite-different")[2]


def test_the_version_is_told(run):
    assert run("--version")[1].startswith("mlflow-domino, version ")


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("endpoint", "scale", "x", "many"), ("endpoint", "show"), ("logs", "x", "--lines", "-1")],
)
def test_wrong_usage_is_refused_with_exit_code_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (("endpoint", "show", "gone"), 3, "There is no endpoint 'gone'"),
        (("endpoint", "create", "a name"), 2, "is no name for an endpoint"),
        (("endpoint", "create", "x", "-C", "wrokers=2"), 2, "did you mean 'workers'?"),
        (("endpoint", "create", "x", "-C", "workers"), 2, "KEY=VALUE is wanted"),
        (("endpoint", "create", "x", "-C", "workers=1", "-C", "workers=2"), 2, "set twice"),
        (("status", "-t", "domino:/nope"), 3, "No data plane 'nope'"),
        (("-t", "domino:/nope", "status"), 3, "No data plane 'nope'"),
        (("status", "-t", "elsewhere"), 2, "'elsewhere' is no target"),
        (("logs", "gone"), 3, "There is no endpoint 'gone'"),
        (("predict", "gone", "-d", "{}"), 3, "There is no endpoint 'gone'"),
        (("predict", "gone", "-d", "{"), 2, "the input is not JSON"),
        (("predict", "gone", "-d", "@/nowhere/body.json"), 2, "/nowhere/body.json cannot be read"),
        (("prune", "--older-than", "soon"), 2, "is no length of time"),
        (("render", "gone", "-o", "out"), 2, "name a model or project with -m"),
    ],
)
def test_errors_go_to_stderr_with_their_exit_code(run, arguments, expected, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (expected, "")
    assert err.startswith("Error: ")
    assert message in err


def test_errors_are_json_when_json_is_wanted(run):
    code, out, err = run("endpoint", "show", "gone", "--json")
    assert (code, out) == (3, "")
    error = json.loads(err)["error"]
    assert error["code"] == "RESOURCE_DOES_NOT_EXIST"
    assert "no endpoint 'gone'" in error["message"]


def test_a_home_that_cannot_be_made_is_an_error_not_a_traceback(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(tmp_path / "file"))
    code, _, err = run("status")
    assert code == 2
    assert "cannot be written" in err


# ---- endpoints -----------------------------------------------------------------------------------------------------


def test_without_endpoints_the_way_to_the_first_is_told(run):
    code, out, err = run("endpoint", "list")
    assert (code, out) == (0, "")
    assert "mlflow deployments create" in err
    assert json.loads(run("endpoint", "list", "--json")[1]) == []


def test_endpoints_are_listed(run, iris):
    header, row = run("endpoint", "list")[1].splitlines()
    assert header.split() == ["NAME", "STATUS", "VERSION", "REPLICAS", "URL", "REASON"]
    assert row.split()[:4] == ["iris", "Stopped", "1", "0/1"]
    (document,) = json.loads(run("endpoint", "list", "--json")[1])
    assert document["name"] == "iris"
    assert document["version"] == 1
    assert document["settings"]["workers"] == 2


def test_an_endpoint_is_shown_without_its_variables_values(run, iris):
    for arguments in (("endpoint", "show", "iris"), ("status", "iris"), ("endpoint", "show", "iris", "--json")):
        code, out, err = run(*arguments)
        assert code == 0
        assert "models:/iris/3" in out
        assert "a note" in out
        assert "hunter2" not in out + err


def test_only_settings_that_differ_from_the_defaults_are_shown(run, iris):
    out = run("endpoint", "show", "iris")[1]
    assert "workers=2" in out
    assert "threads=" not in out


def test_an_endpoint_is_found_by_its_id_too(run, controller, iris):
    assert run("endpoint", "show", controller.endpoint("iris").endpoint.id)[0] == 0


def test_versions_are_listed_with_their_sources(run, controller, iris):
    source = FileSource("git+https://host/x@v1", "model.py", "predict", "0" * 64, "abcdef0123456789", ("a.py",))
    add_version(controller, "iris", source=source)
    _, first, second = run("endpoint", "versions", "iris")[1].splitlines()
    assert first.startswith("1 ")
    assert "models:/iris/3 (models:/iris@champion)" in first
    assert "git+https://host/x@v1 at abcdef0123 and 1 changed: model.py, predict" in second
    assert "latest" in second
    documents = json.loads(run("endpoint", "versions", "iris", "--json")[1])
    assert [d["source"]["kind"] for d in documents] == ["Registry", "File"]


def test_an_endpoint_without_a_version_is_made_shown_and_deleted(run):
    code, out, _ = run("endpoint", "create", "fresh", "-C", "workers=3")
    assert code == 0
    assert "endpoint update fresh -m MODEL" in out
    assert "no version yet" in run("endpoint", "show", "fresh")[1]
    assert run("endpoint", "update", "fresh")[0] == 2
    assert run("endpoint", "create", "fresh")[0] == 2
    assert run("endpoint", "delete", "fresh")[0] == 0
    assert run("endpoint", "delete", "fresh")[0] == 0
    assert json.loads(run("endpoint", "list", "--json")[1]) == []


def test_status_names_data_plane_and_home(run, home, iris):
    out = run("status")[1]
    assert re.search(r"Data plane +local: down; `mlflow-domino up` starts it", out)
    assert str(home.root) in out
    document = json.loads(run("status", "--json")[1])
    reason = "down; `mlflow-domino up` starts it"
    assert document["data_plane"] == {
        "name": "local", "up": False, "url": "http://127.0.0.1:8420", "reason": reason, "note": "",
    }  # fmt: skip
    assert [e["name"] for e in document["endpoints"]] == ["iris"]


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_is_written_alone_to_stdout_and_listed_without_itself(run, iris):
    code, token, said = run("token", "create", "iris", "ci")
    assert code == 0
    assert re.fullmatch(r"[A-Za-z0-9]{64}\n", token)
    assert "shown this once" in said
    out = run("token", "list", "iris")[1]
    assert "ci" in out
    assert token.strip() not in out + run("token", "list", "iris", "--json")[1]
    assert "is refused everywhere" in run("token", "revoke", "iris", "ci")[1]
    assert "has no token 'ci'" in run("token", "revoke", "iris", "ci")[1]
    assert "nobody can call it" in run("token", "list", "iris")[2]


def test_a_token_in_json_has_its_record_beside(run, iris):
    document = json.loads(run("token", "create", "iris", "ci", "--json")[1])
    assert sorted(document) == ["created", "id", "name", "token"]


# ---- logs ----------------------------------------------------------------------------------------------------------


def test_logs_of_all_replicas_come_in_the_order_of_time_without_secrets(run, iris):
    assert run("logs", "iris")[1].splitlines() == [
        "0 | 2026-11-23T01:02:00.000Z zero",
        "0 | Traceback",
        "1 | 2026-11-23T01:03:00.000Z one",
        "0 | 2026-11-23T01:04:00.000Z password [redacted]",
    ]


def test_logs_of_one_replica_of_the_build_and_the_last_lines(run, iris):
    assert run("logs", "iris", "--replica", "1")[1] == "2026-11-23T01:03:00.000Z one\n"
    assert run("logs", "iris", "--build")[1] == "2026-11-23T01:00:00.000Z built\n"
    assert run("logs", "iris", "-n", "1")[1].startswith("0 | 2026-11-23T01:04")
    assert run("logs", "iris", "-n", "0")[1] == ""
    assert run("logs", "iris", "--since", "1s")[1] == ""


def test_logs_in_json_are_a_document_a_line(run, iris):
    documents = [json.loads(line) for line in run("logs", "iris", "--json")[1].splitlines()]
    assert documents[1] == {"time": "2026-11-23T01:02:00.000Z", "log": "replica-0", "line": "Traceback"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--version", "9"), "has no version 9"),
        (("--replica", "7"), "Version 1 of 'iris' has no log of its replica 7"),
        (("--since", "yesterday"), "is no length of time"),
    ],
)
def test_logs_that_are_not_there_are_refused(run, iris, arguments, message):
    code, _, err = run("logs", "iris", *arguments)
    assert code in (2, 3)
    assert message in err


# ---- calls ---------------------------------------------------------------------------------------------------------


def test_a_call_without_a_token_names_the_ways_to_one(run, iris, tmp_path):
    (tmp_path / "body.json").write_text('{"data": {}}')
    code, _, err = run("predict", "iris", "-d", f"@{tmp_path}/body.json")
    assert code == 3
    assert "MLFLOW_DOMINO_TOKEN" in err
    assert "token create iris" in err


def test_a_body_that_is_no_text_is_refused(run, iris, tmp_path, monkeypatch):
    (tmp_path / "body.bin").write_bytes(b"\xff")
    with (tmp_path / "body.bin").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        for data in ("-", f"@{tmp_path}/body.bin"):
            code, _, err = run("predict", "iris", "-d", data)
            assert code == 2
            assert "cannot be read: 'utf-8' codec can't decode" in err


# ---- as a process --------------------------------------------------------------------------------------------------


def process(home: Home, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "MLFLOW_DOMINO_HOME": str(home.root), **environment}
    argv = [sys.executable, "-m", "mlflow_domino", *arguments]
    return subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_verbs_start_without_what_takes_long_to_import(home, iris):
    code = (
        "import sys; from mlflow_domino.cli import main; "
        "codes = [main(w.split()) for w in ('status', 'endpoint list', 'endpoint versions iris', 'token list iris', 'logs iris')]; "
        "heavy = {'mlflow', 'pandas', 'numpy', 'flask', 'requests', 'pip_requirements_parser', 'pathspec'} & set(sys.modules); "
        "print(codes, sorted(heavy), file=sys.stderr)"
    )
    variables = {**os.environ, "MLFLOW_DOMINO_HOME": str(home.root)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 0, 0] []"


def test_help_starts_without_the_records(home):
    code = "import sys; from mlflow_domino.cli import main; main(['--help']); sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_shell_completes_commands_and_names(home, iris):
    def complete(words: str, position: int) -> str:
        return process(
            home, _MLFLOW_DOMINO_COMPLETE="bash_complete", COMP_WORDS=f"mlflow-domino {words}", COMP_CWORD=str(position)
        ).stdout

    assert complete("end", 1) == "plain,endpoint\n"
    assert complete("endpoint show i", 3) == "plain,iris\n"
    assert complete("logs x", 2).strip() == ""
    assert "complete" in process(home, _MLFLOW_DOMINO_COMPLETE="zsh_source").stdout


def test_a_reader_that_has_seen_enough_is_no_error(home, iris):
    argv = f"{sys.executable} -m mlflow_domino logs iris | head -n 1"
    variables = {**os.environ, "MLFLOW_DOMINO_HOME": str(home.root)}
    done = subprocess.run(argv, shell=True, env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# ---- tables --------------------------------------------------------------------------------------------------------


def test_columns_stand_under_their_names():
    assert table(("A", "LONG"), [("x", 1), ("yyy", None)]) == "A    LONG\nx    1\nyyy  -"


def test_wide_and_combining_characters_keep_columns_in_line():
    lines = table(("A", "B"), [("模型", 1), ("e\u0301", 2)]).splitlines()
    assert lines == ["A     B", "模型  1", "e\u0301     2"]


def test_a_terminals_width_cuts_lines():
    assert table(("A", "B"), [("x", "y" * 50)], width=10).splitlines()[1] == "x  yyyyyy…"


def test_only_the_first_line_of_a_value_is_in_a_table():
    assert table(("A",), [("first\nsecond",)]).splitlines()[1] == "first …"


def test_what_could_steer_a_terminal_is_replaced():
    assert "\x1b" not in table(("A",), [("\x1b[31mred",)])
    assert "\x1b" not in pairs([("Log", "ok\n\x1b[2J")])


def test_pairs_leave_out_what_has_no_value_and_indent_lines():
    assert pairs([("A", "1"), ("Nothing", None), ("Long", "x\ny")]) == "A     1\nLong  x\n      y"


def test_deleting_what_is_not_there_is_no_error_and_said(run):
    assert run("endpoint", "delete", "absent") == (0, "There was no endpoint 'absent'.\n", "")
    assert json.loads(run("endpoint", "delete", "absent", "--json")[1]) == {"name": "absent", "deleted": False}


def test_the_hint_of_prune_repeats_what_was_asked(run, controller, iris):
    add_version(controller, "iris")
    code, out, _ = run("prune", "--keep", "1", "--older-than", "2h")
    assert code == 0
    assert out.endswith("can be removed: mlflow-domino prune --yes --keep 1 --older-than 2h\n")


def test_mlflows_own_command_shows_a_message_in_place_of_a_traceback(home):
    argv = [sys.executable, "-m", "mlflow", "deployments", "get", "-t", "domino", "--name", "absent"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Error: There is no endpoint 'absent'" in done.stderr
    assert "Traceback" not in done.stderr
