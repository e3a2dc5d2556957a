"""What is in the image of a cluster's gateway, and when one replaces another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_domino.data_planes.gateway_image import IMPORTED, REQUIREMENTS, imports, modules, older, release

ROOT = Path(__file__).resolve().parents[2]


def test_its_modules_import_nothing_but_the_standard_library_and_the_image_s_packages() -> None:
    allowed = {*sys.stdlib_module_names, "mlflow_domino", *IMPORTED}
    for name, path in modules().items():
        assert {imported.split(".")[0] for imported in imports(path)} <= allowed, name


def test_its_packages_are_those_of_the_package() -> None:
    written = (ROOT / "setup.py").read_text("utf-8")
    assert [item for item in REQUIREMENTS if f'"{item}"' not in written] == []


def test_its_programs_can_be_imported_from_its_modules_alone(tmp_path: Path) -> None:
    for path in modules().values():
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import mlflow_domino.gateway.app, mlflow_domino.gateway.dispatcher, mlflow_domino.gateway.pod, mlflow_domino.gateway.watcher
assert mlflow_domino.__file__.startswith(sys.argv[1])
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], check=True)


def test_a_release_is_its_version_and_its_content() -> None:
    assert release() == release()
    assert not older(release(), release())


@pytest.mark.parametrize(
    ("deployed", "replaced"),
    [
        ("", True),
        ("0.1.9-aaaaaaaaaaaa", True),
        ("0.2.0-bbbbbbbbbbbb", True),
        ("0.2.0-aaaaaaaaaaaa", False),
        ("0.10.0-bbbbbbbbbbbb", False),
        ("1.0-bbbbbbbbbbbb", False),
        ("registry.example.com/own:1", False),
    ],
)
def test_an_older_gateway_is_replaced_and_a_newer_one_or_somebody_s_own_is_not(deployed: str, replaced: bool) -> None:
    assert older(deployed, "0.2.0-aaaaaaaaaaaa") is replaced
