"""Who may import whom: always downwards, and nobody the harness, which imports none of us."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: From the top down; a module imports its own layer and those below. A package stands for all that is in it.
LAYERS = (
    ("cli", "plugin", "__main__"),
    ("client", "foreground", "help", "render", "prune", "check", "cluster_check", "documents", "invocation", "asynchronous", "unit"),
    ("controller",),
    ("journal", "publication"),
    ("rollout", "access", "views", "memory"),
    ("data_planes",),
    ("source", "joining", "registry", "project", "attached", "script", "git", "environment", "workspace", "recipes", "bytecode", "lean", "lock", "resolver", "indexes",
     "requirements", "interpreter", "seldon", "microservice", "context", "image", "engine", "buildah", "recorder", "builder", "store", "cluster", "cluster_records", "lease", "holder", "objects", "gateway", "logs", "secret", "ignore", "labels", "tree"),
    ("queue", "written"),
    ("transport", "refusal", "kubeconfig", "dialect"),
    ("models",),
    ("config", "home", "disk"),
    ("volumes", "repositories"),
    ("parsers",),
    ("errors", "__init__"),
)  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "mlflow_domino").rglob("*.py")):
        relative = path.relative_to(ROOT / "mlflow_domino")
        yield relative.parts[0].removesuffix(".py"), path


def imported(path: Path) -> set[str]:
    """Names of our own modules that a file imports, wherever in it; those for annotations only do not count."""
    names: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n.split(".")[1] for n in names if n.startswith("mlflow_domino.")}


def layer(module: str) -> int | None:
    return next((n for n, members in enumerate(LAYERS) if module in members), None)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: str(v).rpartition("mlflow_domino/")[2])
def test_imports_go_downwards(module: str, path: Path) -> None:
    mine = layer(module)
    assert mine is not None, f"give {module} a layer"
    for name in imported(path) - {module}:
        theirs = layer(name)
        if theirs is not None:
            assert theirs >= mine, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("path", sorted((ROOT / "harness").glob("*.py")), ids=lambda p: p.name)
def test_the_harness_needs_the_standard_library_flask_and_prometheus_client_only(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "flask", "werkzeug", "prometheus_client", "six", "uwsgi"}
    allowed.add("_mlflow_domino_harness")  # its own name in a replica, for what uWSGI starts by path
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body:  # what is imported when the module is; a model's own packages are imported in functions
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in allowed
    assert "mlflow_domino" not in {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
