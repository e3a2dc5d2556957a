from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from mlflow_domino.context import Entry, context
from mlflow_domino.errors import InvalidInput
from mlflow_domino.image import Base, image_named, virtual_environment


@pytest.mark.parametrize(
    "name", ["python:3.11", "a/b", "localhost:5000/x/y:1", "registry.example.com/team/image@sha256:" + "0" * 64]
)
def test_an_image_is_told_from_requirements(name: str) -> None:
    lines = ("pandas==2.2.3", "scikit-learn", "x[y]>=1", "z @ https://example.com/z.whl", "wheels/z-1-py3-none-any.whl")
    assert image_named([*lines, name], {}) == (name, lines)


def test_a_name_of_the_configuration_file_is_an_image() -> None:
    assert image_named(["standard", "pandas"], {"standard": "r/s:1"}) == ("r/s:1", ("pandas",))


def test_two_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match="one image is wanted"):
        image_named(["a/b:1", "c/d:1"], {})


@pytest.mark.parametrize(
    ("libc", "platform"),
    [("glibc-2.36", "x86_64-manylinux_2_36"), ("glibc-2.99", "x86_64-manylinux_2_40"), ("glibc-2.17", "x86_64-manylinux_2_17"),
     ("glibc-2.30", "x86_64-manylinux_2_28"), ("musl", "x86_64-unknown-linux-musl")],
)  # fmt: skip
def test_packages_are_chosen_for_the_images_own_libc(libc: str, platform: str) -> None:
    assert base(libc=libc).platform == platform


def test_a_virtual_environment_leads_to_the_images_interpreter(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("#!/somewhere/else/python3\nprint(1)\n")
    (tmp_path / "module.py").write_text("")
    (tmp_path / ".lock").write_text("")
    made = {entry.name: entry for entry in virtual_environment(base(), tmp_path, own=True)}
    assert made["packages/bin/python"].link == "/usr/bin/python3.11"
    assert b"include-system-site-packages = true" in made["packages/pyvenv.cfg"].content
    assert made["packages/bin/tool"].content.splitlines()[0] == b"#!/opt/domino/environment/bin/python"
    assert "packages/lib/python3.11/site-packages/module.py" in made
    assert not [name for name in made if name.endswith(".lock")]


def test_contexts_are_the_same_bytes_whatever_time_and_owner_files_have(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    members = [Entry("z/a", path=tmp_path / "a"), Entry("b", content=b"y"), Entry("c", link="b")]
    first, second = io.BytesIO(), io.BytesIO()
    assert context(members, first) == context(list(reversed(members)), second)
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as tar:
        assert tar.getnames() == ["b", "c", "z", "z/a"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}


def base(libc: str = "glibc-2.36") -> Base:
    return Base("image", "sha256:0", "/usr/bin/python3.11", "3.11.2", "x86_64", libc, {}, 0, False)
