"""seldon-core's environment: what is written down of it, and when it must be in the version's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_domino import seldon
from mlflow_domino.config import Settings, parse
from mlflow_domino.data_planes.assembly import recipes
from mlflow_domino.data_planes.machine import harness_settings
from mlflow_domino.interpreter import Interpreter
from mlflow_domino.lock import HARNESS, SELDON, Recipe
from mlflow_domino.models import Artifact
from mlflow_domino.requirements import Requirements
from mlflow_domino.written import to_text, version_of
from tests.records import a_version, an_endpoint


def test_a_version_that_an_older_release_built_has_no_seldon_core() -> None:
    made = replace(a_version(an_endpoint()), artifact=Artifact("e", "l", "h", "3.11.7", seldon="s"))
    document = json.loads(to_text(made))
    assert version_of(json.dumps(document), 0).artifact == made.artifact
    del document["artifact"]["seldon"]
    assert version_of(json.dumps(document), 0).artifact == Artifact("e", "l", "h", "3.11.7")


def test_the_harness_is_told_where_seldon_core_is() -> None:
    version = replace(a_version(an_endpoint()), artifact=None, settings=Settings(is_async=True, async_timeout_s=7))
    assert harness_settings(None, version, path="/p", tokens=None)["seldon_python"] == "PYTHON-OF-SELDON-CORE"
    built = replace(version, artifact=Artifact("image", "l", "h", "3.11.7", seldon="/opt/python"))
    told = harness_settings(None, built, path="/p", tokens=None)
    assert (told["seldon_python"], told["is_async"], told["async_timeout_s"]) == ("/opt/python", True, 7)
    assert harness_settings(None, built, path="/p", tokens=None, seldon_python="/x")["seldon_python"] == "/x"
    assert harness_settings(None, a_version(an_endpoint()), path="/p", tokens=None)["seldon_python"] == ""


def test_its_settings_are_those_of_the_version_but_for_what_is_installed() -> None:
    own, _ = parse({"is_async": True, "install_harness_packages": False, "environment": "x", "offline": True})
    settings = seldon.settings_of(own, "3.11")
    assert (settings.offline, settings.python_version, settings.is_async) == (True, "3.11", False)
    assert settings.install_harness_packages
    assert settings.environment[0].startswith("seldon-core==")


def test_its_recipe_is_shown_for_asynchronous_versions_only() -> None:
    assert "dockerfiles/seldon/Dockerfile" in recipes(Settings(is_async=True))
    assert "dockerfiles/seldon/Dockerfile" not in recipes(Settings())


@pytest.fixture
def python() -> Interpreter:
    return Interpreter(Path("/python"), "3.11.7", "cpython-3.11.7-linux-x86_64")


def test_what_an_asynchronous_version_needs_makes_another_lock_where_nothing_may_be_added(python: Interpreter) -> None:
    def recipe(*, needs: tuple[object, ...], given: dict[str, str] | None = None) -> Recipe:
        return Recipe.of(
            Requirements(), None, python, indexes="", install_harness=False, given=given, needs=needs,  # type: ignore[arg-type]
        )  # fmt: skip

    plain, beside = recipe(needs=HARNESS), recipe(needs=(*HARNESS, SELDON))
    assert plain.key() != beside.key()
    assert plain.key() == Recipe.of(Requirements(), None, python, indexes="", install_harness=False).key()
    assert "seldon-core" in recipe(needs=(*HARNESS, SELDON), given={"seldon-core": "1.18.2"}).given
    assert "seldon-core" not in recipe(needs=(*HARNESS, SELDON), given={"seldon-core": "1.5.0"}).given
