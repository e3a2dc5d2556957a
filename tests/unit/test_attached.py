"""Git repositories that become folders of a project: what the setting takes, and what is fetched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_domino import source
from mlflow_domino.config import Settings, parse
from mlflow_domino.errors import Failed, InvalidInput, NotFound
from mlflow_domino.models import FileSource, Version
from mlflow_domino.written import to_text, version_of
from tests.forge import Forge, commit_all, git, serving


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text("from tools import half\n\ndef predict(x):\n    return half.of(x)\n")
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A bare repository, `tools.git`."""
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    (work / "__init__.py").touch()
    (work / "half.py").write_text("def of(x):\n    return x / 2\n")
    (work / "data.csv").write_text("1\n")
    (work / "deep" / "inner.py").write_text("VALUE = 1\n")
    (work / "setup.py").write_text("raise SystemExit('this must never run')\n")
    git(work, "init", "-q", "-b", "main")
    commit_all(work)
    git(work, "tag", "v1")
    (work / "half.py").write_text("def of(x):\n    return x / 2.0\n")
    commit_all(work)
    bare = tmp_path / "served" / "tools.git"
    bare.parent.mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(work), str(bare))
    return bare


@pytest.fixture
def forge(tools: Path):
    with serving(tools.parent) as forge:
        yield forge


class Fetch:
    """Fetches a project into a version's folder, and keeps what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, project: Path, *repositories: str, variables: dict[str, str] | None = None, **settings: object):
        parsed, _ = parse({"file": "model.py", "git_repos": list(repositories), **settings})
        return source.fetch(str(project), parsed, self.folder, self.lines.append, variables=variables)

    def files(self) -> set[str]:
        root = self.folder / "source"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path / "version")


# ---- the setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("https://example.com/team/tools.git", "tools=git+https://example.com/team/tools.git"),
        ("git+https://example.com/team/tools.git@v1.2", "tools=git+https://example.com/team/tools.git@v1.2"),
        ("lib/own=ssh://git@example.com/team/tools@main", "lib/own=git+ssh://git@example.com/team/tools@main"),
        ("file:///srv/tools.git#subdirectory=src/half", "half=git+file:///srv/tools.git#subdirectory=src/half"),
        ("https://${TOKEN}@example.com/tools", "tools=git+https://${TOKEN}@example.com/tools"),
        ("https://ada:${TOKEN}@example.com/tools@feature/x", "tools=git+https://ada:${TOKEN}@example.com/tools@feature/x"),
    ],
)  # fmt: skip
def test_a_repository_is_a_url_with_or_without_a_folder(text: str, item: str) -> None:
    assert parse({"git_repos": text})[0].git_repos == (item,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tools", "URLs of Git repositories"),
        ("ftp://example.com/tools", "URLs of Git repositories"),
        ("../up=https://example.com/tools", "URLs of Git repositories"),
        (".git=https://example.com/tools", "URLs of Git repositories"),
        ("https://ada:hunter2@example.com/tools", "in place of a password"),
        ("https://hunter2@example.com/tools", "in place of a password"),
        ("https://example.com/a/tools,https://example.com/b/tools.git", "two repositories .* folder tools"),
        ("lib=https://example.com/a,lib/b=https://example.com/b", "two repositories .* folder lib"),
        ("https://example.com/", "FOLDER=URL"),
    ],
)
def test_what_is_no_repository_is_refused_without_its_password(value: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse({"git_repos": value})
    assert "hunter2" not in str(caught.value)


# ---- what is fetched -------------------------------------------------------------------------------------------------


def test_a_repository_becomes_a_folder_and_its_commit_is_recorded(fetch: Fetch, project: Path, tools: Path) -> None:
    fetched = fetch(project, f"file://{tools}")
    assert fetch.files() == {
        "model.py", "tools/__init__.py", "tools/half.py", "tools/data.csv", "tools/deep/inner.py", "tools/setup.py",
    }  # fmt: skip
    (attached,) = fetched.repositories
    assert (attached.folder, attached.uri) == ("tools", f"git+file://{tools}")
    assert attached.commit == git(tools, "rev-parse", "main")
    assert any(attached.commit in line for line in fetch.lines)
    assert sorted(path.name for path in fetch.folder.iterdir()) == ["source"]


def test_a_ref_a_folder_and_a_subdirectory_are_kept_apart(fetch: Fetch, project: Path, tools: Path) -> None:
    fetched = fetch(project, f"file://{tools}@v1", f"lib/inner=file://{tools}#subdirectory=deep")
    assert {"tools/half.py", "lib/inner/inner.py"} <= fetch.files()
    assert "lib/inner/half.py" not in fetch.files()
    assert [r.commit for r in fetched.repositories] == [git(tools, "rev-parse", ref) for ref in ("v1", "main")]


def test_the_same_commits_give_the_same_digest(tmp_path: Path, project: Path, tools: Path) -> None:
    first = Fetch(tmp_path / "a")(project, f"file://{tools}")
    assert Fetch(tmp_path / "b")(project, f"file://{tools}").digest == first.digest
    assert Fetch(tmp_path / "c")(project, f"file://{tools}@v1").digest != first.digest


def test_what_the_project_leaves_out_is_left_out_of_its_repositories(fetch: Fetch, project: Path, tools: Path) -> None:
    (project / ".modelignore").write_text("*.csv\n/tools/deep/\n")
    fetch(project, f"file://{tools}", exclude_files="setup.py")
    assert fetch.files() == {".modelignore", "model.py", "tools/__init__.py", "tools/half.py"}


def test_a_repository_may_be_attached_to_a_repository(tmp_path: Path, project: Path, tools: Path) -> None:
    git(project, "init", "-q", "-b", "main")
    commit = commit_all(project)
    fetched = Fetch(tmp_path / "version")(f"git+file://{project}", f"file://{tools}")
    assert fetched.commit == commit
    assert fetched.repositories[0].folder == "tools"


def test_the_script_may_be_in_a_repository(fetch: Fetch, project: Path, tools: Path) -> None:
    fetched = fetch(project, f"file://{tools}", file="tools/half.py", function="of")
    assert fetched.file == "tools/half.py"


def test_a_folder_of_the_projects_own_is_not_written_over(fetch: Fetch, project: Path, tools: Path) -> None:
    (project / "tools").mkdir()
    (project / "tools" / "mine.py").touch()
    with pytest.raises(InvalidInput, match="the project itself has tools; name another folder"):
        fetch(project, f"file://{tools}")
    assert not (fetch.folder / "source").exists()


def test_what_cannot_be_fetched_is_named_and_leaves_nothing(fetch: Fetch, project: Path, tools: Path) -> None:
    with pytest.raises(Failed, match=r"nothing\.git cannot be fetched"):
        fetch(project, f"file://{tools.parent}/nothing.git")
    with pytest.raises(NotFound, match="no branch, tag or commit 'v9'"):
        fetch(project, f"file://{tools}@v9")
    with pytest.raises(NotFound, match="no folder 'absent'"):
        fetch(project, f"file://{tools}#subdirectory=absent")
    assert list(fetch.folder.iterdir()) == []


def test_a_password_comes_from_a_variable_and_is_kept_nowhere(
    fetch: Fetch, project: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = f"http://me:${{FORGE_PASSWORD}}@127.0.0.1:{forge.server_port}/tools.git"
    with pytest.raises(InvalidInput, match=r"\$\{FORGE_PASSWORD\} is not set"):
        fetch(project, item)
    fetched = fetch(project, item, variables={"FORGE_PASSWORD": "hunter2"})
    assert fetched.repositories[0].uri == f"git+http://127.0.0.1:{forge.server_port}/tools.git"
    monkeypatch.setenv("FORGE_PASSWORD", "hunter2")
    assert fetch(project, item) == fetched
    kept = b"".join(path.read_bytes() for path in fetch.folder.rglob("*") if path.is_file())
    assert b"hunter2" not in kept
    assert "hunter2" not in repr(fetched) + "\n".join(fetch.lines) + "".join(forge.commands)


def test_a_model_has_no_repositories(fetch: Fetch, tmp_path: Path, tools: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(InvalidInput, match="git_repos belong to project code"):
        fetch(model, f"file://{tools}")


# ---- the next version ------------------------------------------------------------------------------------------------


def test_a_version_of_other_settings_keeps_the_commits_of_the_one_before(
    fetch: Fetch, project: Path, tools: Path, tmp_path: Path
) -> None:
    first = fetch(project, f"file://{tools}")
    newer = tmp_path / "newer"
    git(tmp_path, "clone", "-q", str(tools), str(newer))
    (newer / "half.py").write_text("def of(x):\n    return 0\n")
    commit_all(newer)
    git(newer, "push", "-q", "origin", "main")
    settings = Settings(file="model.py", git_repos=(f"tools=git+file://{tools}",))
    again = source.again(fetch.folder, first, replace(settings, replicas=2), tmp_path / "second")
    assert again == first
    published = Fetch(tmp_path / "third")(project, f"file://{tools}")
    assert published.repositories[0].commit == git(tools, "rev-parse", "main") != first.repositories[0].commit


def test_a_version_with_other_repositories_has_those_and_no_others(
    fetch: Fetch, project: Path, tools: Path, tmp_path: Path
) -> None:
    first = fetch(project, f"file://{tools}")
    settings = Settings(file="model.py", git_repos=(f"other=git+file://{tools}@v1",))
    again = source.again(fetch.folder, first, settings, tmp_path / "second")
    assert isinstance(again, FileSource)
    assert [r.folder for r in again.repositories] == ["other"]
    assert {path.name for path in (tmp_path / "second" / "source").iterdir()} == {"model.py", "other"}
    none = source.again(fetch.folder, first, Settings(file="model.py"), tmp_path / "third")
    assert isinstance(none, FileSource)
    assert none.repositories == ()


def test_a_record_holds_them(fetch: Fetch, project: Path, tools: Path) -> None:
    fetched = fetch(project, f"file://{tools}")
    version = Version("a" * 24, "b" * 24, 1, 0, fetched, Settings(git_repos=(f"tools=git+file://{tools}",)))
    text = to_text(version)
    assert version_of(text, 0) == version
    older = json.loads(text)
    del older["source"]["repositories"]
    assert version_of(json.dumps(older), 0).source.repositories == ()  # type: ignore[union-attr]
