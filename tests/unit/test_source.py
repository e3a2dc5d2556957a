"""Project code as a source: directories and Git repositories, copied once."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import urllib.parse
from pathlib import Path

import pytest

from mlflow_domino import source
from mlflow_domino.config import Settings
from mlflow_domino.errors import DominoError, Failed, InvalidInput, NotFound, Unsupported
from tests.forge import commit_all, git, serving

PREDICT = "def predict(x):\n    return x\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def project(tmp_path):
    return write(tmp_path / "project", {"model.py": PREDICT, "lib/helper.py": "VALUE = 1\n", "data/raw.csv": "1\n"})


@pytest.fixture
def repository(project):
    git(project, "init", "-q", "-b", "main")
    commit_all(project)
    return project


class Fetch:
    """Fetches into a folder of its own, and keeps what was logged."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.lines: list[str] = []

    def __call__(self, uri, **settings):
        settings = {"file": "model.py", **settings}
        return source.fetch(str(uri), Settings(**settings), self.destination, self.lines.append)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def files(self) -> set[str]:
        root = self.destination / "source"
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.fixture
def fetch(tmp_path):
    return Fetch(tmp_path / "version")


# ---- directories ---------------------------------------------------------------------------------------------------


def test_a_directory_is_copied_whole(fetch, project):
    fetched = fetch(project)
    assert fetch.files() == {"model.py", "lib/helper.py", "data/raw.csv"}
    assert (fetched.kind, fetched.flavor) == ("File", "file")
    assert (fetched.file, fetched.function) == ("model.py", "predict")
    assert fetched.uri == str(project)
    assert fetched.commit is None
    assert fetched.dirty == ()
    assert sorted(path.name for path in fetch.destination.iterdir()) == ["source"]


def test_editing_the_project_afterwards_changes_nothing(fetch, project):
    fetch(project)
    (project / "model.py").write_text("def predict():\n    return 'other'\n")
    assert (fetch.destination / "source/model.py").read_text() == PREDICT


def test_the_copy_is_read_only_and_keeps_what_can_be_run(fetch, project):
    (project / "tool.sh").write_text("#!/bin/sh\n")
    (project / "tool.sh").chmod(0o775)
    fetch(project)
    root = fetch.destination / "source"
    assert stat.S_IMODE((root / "model.py").stat().st_mode) == 0o444
    assert stat.S_IMODE((root / "tool.sh").stat().st_mode) == 0o555
    assert stat.S_IMODE((root / "lib").stat().st_mode) == 0o755


def test_equal_content_has_an_equal_digest_whatever_its_times_and_place(tmp_path, project):
    first = Fetch(tmp_path / "a")(project)
    os.utime(project / "model.py", (1, 1))
    moved = project.rename(tmp_path / "elsewhere")
    second = Fetch(tmp_path / "b")(moved)
    assert first.digest == second.digest
    assert (tmp_path / "a/source/model.py").stat().st_mtime == (tmp_path / "b/source/model.py").stat().st_mtime
    (moved / "empty.txt").touch()
    assert Fetch(tmp_path / "c")(moved).digest != first.digest


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_each_difference_changes_the_digest(tmp_path, project, change):
    first = Fetch(tmp_path / "a")(project)
    if change == "content":
        (project / "lib/helper.py").write_text("VALUE = 2\n")
    elif change == "name":
        (project / "lib/helper.py").rename(project / "lib/helpes.py")
    else:
        (project / "lib/helper.py").chmod(0o755)
    assert Fetch(tmp_path / "b")(project).digest != first.digest


def test_a_relative_path_and_a_file_url_mean_the_same_directory(fetch, project, monkeypatch):
    monkeypatch.chdir(project.parent)
    assert fetch("./project").uri == str(project)
    assert fetch(f"file://{urllib.parse.quote(str(project))}").uri == str(project)


def test_modelignore_and_exclude_files_are_left_out(fetch, project):
    write(project, {".modelignore": "data/\n", "train.ipynb": "{}", "notes.txt": ""})
    fetch(project, exclude_files=("*.ipynb",))
    assert fetch.files() == {"model.py", "lib/helper.py", ".modelignore", "notes.txt"}


def test_a_pattern_takes_back_a_file_from_a_folder_that_is_left_out(fetch, project):
    write(project, {".modelignore": "data/*\n!data/small.csv\n", "data/small.csv": "1"})
    fetch(project)
    assert "data/small.csv" in fetch.files()
    assert "data/raw.csv" not in fetch.files()


def test_bytecode_and_git_are_never_copied(fetch, repository):
    write(repository, {"__pycache__/x.pyc": "", "lib/__pycache__/y.pyc": "", ".modelignore": "!*\n!.git/\n!.git/**\n"})
    fetch(repository)
    assert not [name for name in fetch.files() if ".git/" in name or "__pycache__" in name]


def test_a_large_folder_that_is_left_out_is_not_even_read(fetch, project):
    hidden = write(project, {"venv/secret.txt": "", ".modelignore": "venv/\n"}) / "venv"
    os.mkfifo(hidden / "pipe")
    (hidden / "python").symlink_to("/usr/bin/env")
    fetch(project)
    assert not [name for name in fetch.files() if name.startswith("venv")]


def test_names_in_other_alphabets_and_with_blanks_are_copied(fetch, project):
    names = {"données é.txt", "模型.json", " blank ", "new\nline", "quo'te\"", "%x $(x) @(exec)"}
    write(project, dict.fromkeys(names, ""))
    (project / os.fsdecode(b"latin-\xe9")).touch()
    fetch(project)
    assert names | {os.fsdecode(b"latin-\xe9")} <= fetch.files()


# ---- links and special files ---------------------------------------------------------------------------------------


def test_links_inside_the_project_work_in_the_copy(fetch, project):
    (project / "same.csv").symlink_to("data/raw.csv")
    (project / "absolute.csv").symlink_to(project / "data/raw.csv")
    (project / "lib/data").symlink_to("../data")
    (project / "lib/absolute").symlink_to(project / "data")
    fetch(project)
    root = fetch.destination / "source"
    for name in ("same.csv", "absolute.csv", "lib/data/raw.csv", "lib/absolute/raw.csv"):
        assert (root / name).read_text() == "1\n"
        assert (root / name).resolve().is_relative_to(root)


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.txt", "/etc", "../nowhere"])
def test_a_link_that_leaves_the_project_is_refused_by_name(fetch, project, target):
    (project.parent / "outside.txt").touch()
    (project / "lib/link").symlink_to(target if target[0] == "/" else "../" + target)
    with pytest.raises(InvalidInput, match=r"lib/link is a link that leaves .* \(to .*exclude_files"):
        fetch(project)
    assert list(fetch.destination.iterdir()) == []


def test_a_link_that_leaves_the_project_may_be_left_out(fetch, project):
    (project / "link").symlink_to("/etc/hostname")
    fetch(project, exclude_files=("link",))
    assert "link" not in fetch.files()


def test_a_link_through_a_folder_link_cannot_leave_either(fetch, project):
    (project.parent / "outside").mkdir()
    (project / "door").symlink_to("../outside")
    with pytest.raises(InvalidInput, match="door is a link that leaves"):
        fetch(project)


def test_a_link_to_a_folder_that_is_left_out_is_refused(fetch, project):
    (project / "alias").symlink_to("data")
    with pytest.raises(InvalidInput, match="alias is a link to data, which is left out"):
        fetch(project, exclude_files=("data",))


def test_a_copy_inside_of_what_is_copied_is_refused_unless_it_is_left_out(project):
    inside = Fetch(project / "home" / "version")
    with pytest.raises(InvalidInput, match="home is in the folder that is copied"):
        inside(project)
    inside(project, exclude_files=("home",))
    assert inside.files() == {"model.py", "lib/helper.py", "data/raw.csv"}


def test_an_editors_lock_which_links_to_nothing_is_passed_over(fetch, project):
    (project / ".#model.py").symlink_to("me@host.1234")
    fetch(project)
    assert ".#model.py" not in fetch.files()


def test_a_link_to_itself_is_refused(fetch, project):
    (project / "loop").symlink_to("loop")
    with pytest.raises(InvalidInput, match="loop is a link that leads back to itself"):
        fetch(project)


@pytest.mark.parametrize("kind", ["named pipe", "socket"])
def test_special_files_are_refused_by_name(fetch, project, kind, monkeypatch):
    monkeypatch.chdir(project)  # a socket's path is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        if kind == "socket":
            server.bind("special")
        else:
            os.mkfifo("special")
        with pytest.raises(InvalidInput, match=f"special is a {kind}, not a file; leave it out"):
            fetch(project)


# ---- what is wrong with it -----------------------------------------------------------------------------------------


def test_a_project_without_the_setting_file_says_what_is_wanted(fetch, project):
    with pytest.raises(InvalidInput, match=r"holds no MLmodel file.* -C file=model\.py -C function=predict"):
        fetch(project, file="")


def test_a_missing_file_names_the_nearest(fetch, project):
    with pytest.raises(NotFound, match=r"has no file 'mdel\.py': did you mean 'model\.py'\?"):
        fetch(project, file="mdel.py")


def test_a_folder_as_file_is_refused(fetch, project):
    with pytest.raises(InvalidInput, match="lib is a folder"):
        fetch(project, file="lib")


def test_a_script_of_another_language_is_refused(fetch, project):
    write(project, {"model.R": "predict <- function(x) x"})
    with pytest.raises(Unsupported, match=r"only Python scripts"):
        fetch(project, file="model.R")


def test_a_script_that_is_left_out_is_refused_with_the_pattern(fetch, project):
    write(project, {".modelignore": "\n*.py\n"})
    with pytest.raises(NotFound, match=r"model\.py is left out of the project by line 2 of \.modelignore \('\*\.py'\)"):
        fetch(project)
    write(project, {".modelignore": "lib/\n"})
    with pytest.raises(NotFound, match=r"lib/helper\.py is left out of the project by line 1 of \.modelignore"):
        fetch(project, file="lib/helper.py")


@pytest.mark.parametrize("uri", ["./nowhere", "/nowhere/at/all", "x" * 5000, "file:///nowhere"])
def test_a_directory_that_is_not_there_is_named(fetch, uri):
    with pytest.raises(NotFound, match="there is no directory"):
        fetch(uri)


def test_a_model_written_without_its_scheme_gets_a_hint(fetch):
    with pytest.raises(NotFound, match="a registered model is written models:/iris/3"):
        fetch("iris/3")


def test_a_file_in_place_of_a_directory_is_refused(fetch, project):
    with pytest.raises(NotFound, match=r"model\.py is a file; name the folder.* -C file=model\.py"):
        fetch(project / "model.py")


def test_a_file_that_cannot_be_read_is_named(fetch, project, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (project / "secret").touch(mode=0)
    with pytest.raises(InvalidInput, match="secret cannot be read: Permission denied"):
        fetch(project)


def test_a_destination_that_cannot_be_written_is_named(project, tmp_path):
    (tmp_path / "in-the-way").touch()
    with pytest.raises(Failed, match=r"cannot be copied: .*in-the-way"):
        Fetch(tmp_path / "in-the-way" / "version")(project)


# ---- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "def predict(): ...",
        "async def predict(): ...",
        "class predict: ...",
        "predict = lambda x: x",
        "predict = make()",
        "predict: object = make()",
        "import functools\npredict = functools.partial(print)",
        "from helper import predict",
        "from helper import run as predict",
        "from helper import *",
        "def __getattr__(name): ...",
        "try:\n    from fast import predict\nexcept ImportError:\n    predict = None",
        "if True:\n    def predict(): ...",
        "with open('x') as f:\n    predict = f",
        "for predict in []: ...",
        "match 1:\n    case 1:\n        def predict(): ...",
        "(predict := print)",
        "predict, other = make()",
        "def outer():\n    global predict\n    predict = print",
        "globals()['predict'] = print",
        "predict = None\ndef predict(): ...",
    ],
)
def test_whatever_may_be_a_function_is_accepted(fetch, project, text):
    write(project, {"model.py": text})
    fetch(project)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predict = 3", r"model\.py:1: predict is an int, not a function"),
        ("\npredict = {'a': 1}", r"model\.py:2: predict is a dict"),
        ("predict = [x for x in y]", "predict is a list"),
        ("predict = None", "predict is None"),
        ("predict: str = 'x'", "predict is a str"),
        ("def predict(): ...\npredict = 'x'", r"model\.py:2: predict is a str"),
        ("import predict", "predict is a module"),
        ("import json as predict", "predict is a module"),
    ],
)
def test_what_cannot_be_called_is_refused_with_its_line(fetch, project, text, message):
    write(project, {"model.py": text})
    with pytest.raises(InvalidInput, match=message):
        fetch(project)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def other(): ...",
        "class A:\n    def predict(self): ...",
        "def f():\n    predict = 1",
        "x = [predict for predict in y]",
    ],
)
def test_a_missing_function_is_refused(fetch, project, text):
    write(project, {"model.py": text})
    with pytest.raises(NotFound, match=r"model\.py has no function 'predict'.*-C function="):
        fetch(project)


def test_a_missing_function_names_the_nearest(fetch, project):
    with pytest.raises(NotFound, match=r"has no function 'predit': did you mean 'predict'\?"):
        fetch(project, function="predit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = 1\ndef predict(:\n", r"model\.py:2: syntax error: .*\n    def predict\(:"),
        (b"\xff\xfe", r"model\.py(:\d+: syntax error| is not Python)"),
        (b"def predict():\n\tif 1:\n        return\n", r"model\.py:3: syntax error"),
        (b"def predict(): return '\0'", r"model\.py"),
    ],
)
def test_a_syntax_error_is_refused_with_file_and_line(fetch, project, content, message):
    (project / "model.py").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        fetch(project)


def test_the_syntax_of_another_python_is_left_to_it(fetch, project):
    write(project, {"model.py": "print 'Python of long ago'"})
    fetch(project, python_version="3.99")
    assert "Python 3.99 will judge it" in fetch.log


# ---- Git work trees ------------------------------------------------------------------------------------------------


def test_a_clean_work_tree_records_its_commit(fetch, repository):
    fetched = fetch(repository)
    assert fetched.commit == git(repository, "rev-parse", "HEAD")
    assert fetched.dirty == ()
    assert "unchanged" in fetch.log


def test_changed_untracked_and_deleted_files_are_part_of_the_version_and_said(fetch, repository):
    write(repository, {"model.py": PREDICT + "\n", "new file é.py": "", "fresh/a.txt": ""})
    (repository / "data/raw.csv").unlink()
    fetched = fetch(repository)
    assert fetched.dirty == ("data/raw.csv", "fresh/a.txt", "model.py", "new file é.py")
    assert {"new file é.py", "fresh/a.txt"} <= fetch.files()
    assert "data/raw.csv" not in fetch.files()
    assert "not in commit" in fetch.log
    assert "new file é.py" in fetch.log


def test_a_dirty_file_that_is_left_out_is_not_said(fetch, repository):
    write(repository, {"notes.txt": "", "__pycache__/x.pyc": ""})
    assert fetch(repository, exclude_files=("notes.txt",)).dirty == ()


def test_what_git_ignores_is_left_out_and_said(fetch, repository):
    write(repository, {".gitignore": ".env\nvenv/\n", ".env": "PASSWORD=x", "venv/x": ""})
    (repository / "venv/python").symlink_to("/usr/bin/env")
    fetch(repository)
    assert ".env" not in fetch.files()
    assert "left out, because Git ignores it: .env, venv/" in fetch.log


def test_modelignore_takes_back_what_git_ignores(fetch, repository):
    write(repository, {".gitignore": "*.pkl\nweights/\n", ".modelignore": "!model.pkl\n!weights/\n!weights/**\n"})
    write(repository, {"model.pkl": "", "other.pkl": "", "weights/w.bin": ""})
    fetch(repository)
    assert {"model.pkl", "weights/w.bin"} <= fetch.files()
    assert "other.pkl" not in fetch.files()


def test_a_script_that_git_ignores_is_refused_with_the_way_out(fetch, repository):
    write(repository, {".gitignore": "local.py\n", "local.py": PREDICT})
    with pytest.raises(
        NotFound, match=r"local\.py is left out of the project by \.gitignore .*!local\.py in \.modelignore"
    ):
        fetch(repository, file="local.py")


def test_a_folder_of_a_work_tree_is_a_project_of_its_own(fetch, repository):
    write(repository, {"models/a/model.py": PREDICT, "models/a/extra.txt": "", "models/b/model.py": PREDICT})
    git(repository, "add", "models/a/model.py")
    git(repository, "commit", "-q", "-m", "more")
    fetched = fetch(repository / "models/a")
    assert fetch.files() == {"model.py", "extra.txt"}
    assert fetched.dirty == ("extra.txt",)
    assert fetched.commit == git(repository, "rev-parse", "HEAD")


def test_a_project_in_a_folder_that_git_ignores_is_a_plain_directory(fetch, repository):
    write(repository, {".gitignore": "build/\n", "build/model.py": PREDICT})
    fetched = fetch(repository / "build")
    assert fetch.files() == {"model.py"}
    assert fetched.commit is None


def test_a_repository_without_a_commit_is_said(fetch, project):
    git(project, "init", "-q")
    fetched = fetch(project)
    assert fetched.commit is None
    assert "no commit yet" in fetch.log


def test_a_submodule_is_copied_without_what_it_ignores(fetch, repository, tmp_path):
    inner = write(tmp_path / "inner", {"code.py": "", ".gitignore": "*.log\n"})
    git(inner, "init", "-q")
    commit_all(inner)
    git(repository, "submodule", "--quiet", "add", str(inner), "vendor")
    commit_all(repository)
    write(repository, {"vendor/x.log": ""})
    fetch(repository)
    assert "vendor/code.py" in fetch.files()
    assert "vendor/x.log" not in fetch.files()


def test_variables_of_git_do_not_mislead(fetch, repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere-index"))
    assert fetch(repository).commit is not None


def test_without_git_a_work_tree_is_copied_and_that_is_said(fetch, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch(repository).commit is None
    assert "git is not installed" in fetch.log


def test_a_pointer_of_git_lfs_is_said(fetch, project):
    write(project, {"weights.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"})
    fetch(project)
    assert "weights.bin is a pointer of Git LFS" in fetch.log


# ---- Git repositories ----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(repository, tmp_path):
    """A bare repository with a tag, a branch with a slash, and one more commit on main."""
    git(repository, "tag", "-a", "-m", "first", "v1")
    git(repository, "checkout", "-q", "-b", "feature/x")
    write(repository, {"model.py": "def predict():\n    return 'feature'\n"})
    commit_all(repository)
    git(repository, "checkout", "-q", "main")
    write(repository, {"model.py": "def predict():\n    return 'main'\n", "nested/model.py": PREDICT})
    commit_all(repository)
    git(tmp_path, "clone", "-q", "--bare", str(repository), "bare.git")
    return tmp_path / "bare.git"


@pytest.mark.parametrize(
    ("ref", "revision"),
    [("", "main"), ("@main", "main"), ("@v1", "v1^{commit}"), ("@feature/x", "feature/x"), ("@main~1", "main~1")],
)
def test_a_ref_is_resolved_to_its_commit(fetch, bare, ref, revision):
    expected = git(bare, "rev-parse", revision)
    fetched = fetch(f"git+file://{bare}{ref}")
    assert fetched.commit == expected
    assert fetched.dirty == ()
    assert (fetch.destination / "source/model.py").read_text() == git(bare, "show", f"{expected}:model.py") + "\n"
    assert sorted(path.name for path in fetch.destination.iterdir()) == ["source"]


@pytest.mark.parametrize("length", [40, 10])
def test_a_commit_that_no_ref_points_to_is_found_whole_or_shortened(fetch, bare, length):
    commit = git(bare, "rev-parse", "main~1")
    assert fetch(f"git+file://{bare}@{commit[:length]}").commit == commit


def test_a_subdirectory_is_the_project(fetch, bare):
    fetched = fetch(f"git+file://{bare}@main#subdirectory=nested")
    assert fetch.files() == {"model.py"}
    assert fetched.uri == f"git+file://{bare}@main#subdirectory=nested"


def test_a_file_url_of_a_bare_repository_or_with_a_ref_is_fetched(fetch, bare, repository):
    assert fetch(f"file://{bare}").commit == git(bare, "rev-parse", "main")
    assert fetch(f"file://{repository}@v1").commit == git(bare, "rev-parse", "v1^{commit}")


def test_a_file_url_of_a_work_tree_includes_what_is_not_committed(fetch, bare, repository):
    write(repository, {"nested/new.txt": ""})
    assert fetch(f"file://{repository}").dirty == ("nested/new.txt",)
    assert fetch(f"file://{repository}#subdirectory=nested").dirty == ("new.txt",)


def test_a_submodule_of_a_repository_is_fetched(fetch, repository, tmp_path):
    inner = write(tmp_path / "inner", {"code.py": ""})
    git(inner, "init", "-q")
    commit_all(inner)
    git(repository, "submodule", "--quiet", "add", str(inner), "vendor")
    commit_all(repository)
    fetch(f"git+file://{repository}")
    assert "vendor/code.py" in fetch.files()
    assert not [name for name in fetch.files() if name.endswith("/.git")]


def test_a_wrong_ref_names_those_that_are_there(fetch, bare):
    with pytest.raises(NotFound, match=r"no branch, tag or commit 'v2'\. There are: feature/x, main, v1"):
        fetch(f"git+file://{bare}@v2")
    assert list(fetch.destination.iterdir()) == []


def test_a_wrong_subdirectory_names_its_neighbours(fetch, bare):
    with pytest.raises(NotFound, match=r"no folder 'nestd' .*beside it are: data, lib, nested"):
        fetch(f"git+file://{bare}#subdirectory=nestd")


def test_an_empty_repository_is_refused(fetch, tmp_path):
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    with pytest.raises(NotFound, match="the repository is empty"):
        fetch(f"git+file://{tmp_path}/empty.git")


def test_a_repository_that_is_not_there_says_what_git_says(fetch, tmp_path):
    with pytest.raises(Failed, match=r"cannot be fetched\. Git says: .*nowhere"):
        fetch(f"git+file://{tmp_path}/nowhere.git")


def test_without_git_a_repository_is_refused_with_the_way_out(fetch, bare, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match=r"git is not installed; install it"):
        fetch(f"git+file://{bare}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("git+ftp://host/x", "write git\\+https://"),
        ("git://host/x", "write git\\+https://"),
        ("git@host:team/x.git", "write git\\+https://"),
        ("git+https:///x", "names no server"),
        ("git+https://-oProxyCommand=x/y", "names no server"),
        ("git+file://host/x", "names no server"),
        ("git+https://host/x?token=hunter2", "no part that begins with"),
        ("git+https://host/x#egg=name", "subdirectory="),
        ("git+https://host/x#subdirectory=../up", "subdirectory="),
        ("git+https://host/x@--upload-pack=evil", "is not the name of a branch"),
        ("git+https://host/x@a:b", "is not the name of a branch"),
        ("git+https://host/x y", "%20"),
        ("git+ssh://git:hunter2@host/x", "ssh takes no password"),
        ("git+https://me:hunter2/3@host/x", "percent-encoded"),
        ("git+https://me:hunter2%0A@host/x", "cannot pass on"),
        ("https://me:hunter2@host/x.git", "is written git\\+https://host/x.git"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secret(fetch, uri, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        fetch(uri)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def forge(bare):
    with serving(bare.parent) as forge:
        yield forge


def test_a_password_in_a_url_works_and_is_seen_nowhere(fetch, forge, bare, tmp_path):
    where = f"127.0.0.1:{forge.server_port}/bare.git"
    fetched = fetch(f"git+http://me:hunter2@{where}@main")
    assert fetched.commit == git(bare, "rev-parse", "main")
    assert fetched.uri == f"git+http://{where}@main"
    assert "Basic bWU6aHVudGVyMg==" in forge.asked
    assert any("git" in command for command in forge.commands)
    own = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode()
    assert not [command for command in forge.commands - {own} if "hunter2" in command]
    assert "hunter2" not in fetch.log + repr(fetched)
    for path in fetch.destination.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize("userinfo", ["me:wrongsecret@", "wrongsecret@", ""])
def test_a_wrong_password_fails_at_once_without_asking_or_telling(fetch, forge, userinfo, monkeypatch):
    monkeypatch.setenv("GIT_ASKPASS", "/bin/false")
    with pytest.raises(Failed, match="cannot be fetched") as caught:
        fetch(f"git+http://{userinfo}127.0.0.1:{forge.server_port}/bare.git")
    assert "wrongsecret" not in str(caught.value) + fetch.log
    assert list(fetch.destination.iterdir()) == []


# ---- again, after a kill, and copies of copies ---------------------------------------------------------------------


def test_what_a_killed_fetch_left_is_replaced(fetch, project):
    write(
        fetch.destination, {"source/half.py": "", "copy.partial/x": "", "clone.partial/y": "", ".credential.abc": "x"}
    )
    write(fetch.destination, {"model/MLmodel": "", "secrets.json": "{}"})
    (fetch.destination / "source").chmod(0o555)
    fetch(project)
    assert fetch.files() == {"model.py", "lib/helper.py", "data/raw.csv"}
    assert sorted(path.name for path in fetch.destination.iterdir()) == ["secrets.json", "source"]


def test_a_fetch_that_is_refused_leaves_nothing(fetch, project):
    with pytest.raises(DominoError):
        fetch(project, function="nowhere")
    assert list(fetch.destination.iterdir()) == []


def test_a_version_is_copied_again_with_another_function(fetch, repository, tmp_path):
    write(repository, {"model.py": PREDICT + "\ndef other():\n    return 2\n"})
    first = fetch(repository)
    second = source.again(
        fetch.destination,
        first,
        Settings(file="model.py", function="other", exclude_files=("data",)),
        tmp_path / "next",
    )
    assert (second.commit, second.dirty, second.uri) == (first.commit, ("model.py",), first.uri)
    assert second.function == "other"
    assert not (tmp_path / "next/source/data").exists()
    with pytest.raises(NotFound, match="has no function 'third'"):
        source.again(fetch.destination, first, Settings(file="model.py", function="third"), tmp_path / "third")


def test_a_source_is_removed_though_it_is_read_only(fetch, project):
    fetch(project)
    source.remove(fetch.destination)
    source.remove(fetch.destination)
    assert not fetch.destination.exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/iris/3", True),
        ("runs:/0123/model", True),
        ("s3://bucket/model", True),
        ("mlflow-artifacts:/x/model", True),
        ("git+https://host/x", False),
        ("file:///nowhere", False),
        ("./nowhere", False),
        ("git@host:x/y", False),
    ],
)
def test_the_two_kinds_are_told_apart(uri, expected):
    assert source.is_registry_uri(uri) is expected


def test_a_directory_with_a_model_is_of_the_registry_kind(project):
    assert not source.is_registry_uri(str(project))
    (project / "MLmodel").touch()
    assert source.is_registry_uri(str(project))
    assert source.is_registry_uri(f"file://{project}")


@pytest.mark.parametrize("uri", ["", "  ", "a\0b"])
def test_no_uri_at_all_says_what_is_wanted(fetch, uri):
    with pytest.raises(InvalidInput, match="is wanted"):
        fetch(uri)
