"""Images: environments of a user's own, what is refused, and what is in a version's image."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino import documents, prune
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError, EnvironmentFailed
from tests.deployment import ECHO, Deployment
from tests.forge import commit_all, git
from tests.images import BASE, SITE, Made, installed
from tests.packages import Index, make_wheel


@pytest.fixture
def image(engine: Engine) -> Iterator[Made]:
    made = Made(engine)
    yield made
    made.clean()


def test_a_users_own_image_is_the_environment_and_its_packages_can_be_imported(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image("own", f"FROM {BASE}\nRUN echo 'VALUE = 42' >{SITE}/brought_along.py\nUSER 0")
    code = "import brought_along, os\ndef predict():\n    return [brought_along.VALUE, os.getuid(), os.getgid(), os.getcwd()]\n"
    project = deployment.project(tmp_path / "p", code)
    view = deployment.create("own", project, environment=own, username="ada", project="engine")
    assert deployment.call(view, {"data": {}}).json()["result"] == [42, 12574, 12574, "/mnt/ada/engine"]


def test_an_environment_may_have_a_name_in_the_configuration_file_and_keeps_the_packages_that_it_has(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image("whole", f"FROM {BASE}\n{installed('six==1.16.0')}\nUSER 0")
    config = deployment.home.config
    before = config.read_text()
    config.write_text(before + f'[environments.company]\nimage = "{own}"\n')
    try:
        view = deployment.create("named", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment="company")
    finally:
        config.write_text(before)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    version = deployment.controller.find_version("named")
    lock = (deployment.home.version(version.id) / "requirements.lock").read_text()
    assert "flask==" in lock
    assert "six==" not in lock


def test_an_image_without_the_packages_is_refused_naming_each(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image("lacking", f"FROM {BASE}\n{installed('six==1.16.0')}")
    with pytest.raises(EnvironmentFailed, match="lacks uWSGI, Flask, Prometheus-client"):
        deployment.create(
            "lacking",
            deployment.project(tmp_path / "p", ECHO, VALUE=1),
            environment=own,
            install_harness_packages="false",
        )


def test_an_image_whose_packages_conflict_is_refused_naming_them(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image("old", f"FROM {BASE}\n{installed('Flask==1.0.2')}")
    with pytest.raises(EnvironmentFailed, match=r"conflict with the harness's own packages flask>=2\.0"):
        deployment.create("old", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment=own)


def test_an_image_without_the_user_is_refused_when_the_build_cannot_make_it(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image("nobody", f"FROM {BASE}\nUSER 1000")
    with pytest.raises(EnvironmentFailed, match=r"no user with uid and gid 12574.*USER root"):
        deployment.create("nobody", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment=own)


def test_an_image_that_has_the_user_is_built_as_its_own_user(
    deployment: Deployment, image: Made, tmp_path: Path
) -> None:
    own = image(
        "served", f"FROM {BASE}\nRUN echo 'ubuntu:x:12574:12574::/home/ubuntu:/bin/sh' >>/etc/passwd\nUSER 12574"
    )
    view = deployment.create("served", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment=own)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1


def test_an_image_without_python_is_refused(deployment: Deployment, image: Made, tmp_path: Path) -> None:
    own = image("bare", "FROM scratch\nCOPY file /file", file="x")
    with pytest.raises(EnvironmentFailed, match="has no Python"):
        deployment.create("bare", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment=own)


def test_an_image_that_is_nowhere_is_refused_with_its_name(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"localhost:1/no/such:1 is not on this machine"):
        deployment.create(
            "absent", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment="localhost:1/no/such:1"
        )


def test_a_change_of_code_builds_no_packages_and_the_same_version_is_one_image(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.create("lean", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    deployment.said.clear()
    deployment.update("lean", deployment.project(tmp_path / "2", ECHO, VALUE=2))
    assert not [line for line in deployment.said if "mlflow-domino/packages" in line]
    plane, version = deployment.controller.plane, deployment.controller.find_version("lean")
    from mlflow_domino.config import Secrets

    said: list[str] = []
    assert plane.build(version, Secrets(), said.append) == version.artifact
    assert not [line for line in said if line.startswith("building ")]


def test_git_repositories_are_in_the_image_without_their_history(deployment: Deployment, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "half.py").write_text("def of(x):\n    return x / 2\n")
    git(tools, "init", "-q", "-b", "main")
    commit = commit_all(tools)
    code = "import os\nfrom lib.tools import half\ndef predict(x):\n    return [half.of(x), '.git' in os.listdir('lib/tools')]\n"
    project = deployment.project(tmp_path / "p", code)
    view = deployment.create("attached", project, git_repos=f"lib/tools=file://{tools}@main")
    assert deployment.call(view, {"data": {"x": 3}}).json()["result"] == [1.5, False]
    source = documents.version(view.current)["source"]
    assert source["repositories"] == [{"folder": "lib/tools", "uri": f"git+file://{tools}@main", "commit": commit}]
    (tools / "half.py").write_text("def of(x):\n    return 0\n")
    commit_all(tools)
    again = deployment.update("attached", **{"env.OTHER": "1"})
    assert deployment.call(again, {"data": {"x": 3}}).json()["result"] == [1.5, False]
    fresh = deployment.update("attached", project)
    assert deployment.call(fresh, {"data": {"x": 3}}).json()["result"][0] == 0


def test_no_secret_is_in_an_image(deployment: Deployment, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    make_wheel(packages, "brought", "1.0")
    with Index(packages, user="ada:s3cr3t-index") as index:
        deployment.create(
            "discreet", deployment.project(tmp_path / "p", "import brought\n" + ECHO, VALUE=1),
            environment="brought==1.0", extra_index_url=index.url("ada:s3cr3t-index"),
            **{"env.KEY": "s3cr3t-variable"},
        )  # fmt: skip
    made = deployment.controller.find_version("discreet").artifact
    assert made is not None
    whole = subprocess.run(["docker", "save", made.environment], capture_output=True, check=True).stdout
    history = ["docker", "history", "--no-trunc", made.environment]
    whole += subprocess.run(history, capture_output=True, check=True).stdout
    for secret in ("s3cr3t-index", "s3cr3t-variable", deployment.token, str(deployment.home.root)):
        assert secret.encode() not in whole, secret


def test_a_refused_build_leaves_its_log_with_the_version(deployment: Deployment, image: Made, tmp_path: Path) -> None:
    own = image("log", f"FROM {BASE}\nUSER 1000")
    with pytest.raises(DominoError):
        deployment.create("logged", deployment.project(tmp_path / "p", ECHO, VALUE=1), environment=own)
    version = deployment.controller.records.versions(deployment.controller.endpoint("logged").endpoint.id)[0]
    assert "12574" in version.reason


def test_prune_removes_packages_that_no_version_is_built_on(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("kept", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    deployment.create("dropped", deployment.project(tmp_path / "2", ECHO, VALUE=1), environment="six==1.16.0")
    with_both = {item.name for item in prune.plan(deployment.controller, older_than_s=0) if item.kind == "image"}
    deployment.controller.delete("dropped")
    free = [item for item in prune.plan(deployment.controller, older_than_s=0) if item.kind == "image"]
    (added,) = {item.name for item in free} - with_both
    prune.carry_out(deployment.controller, [item for item in free if item.name == added], print)
    assert added not in {item.name for item in prune.plan(deployment.controller, older_than_s=0)}
    assert deployment.controller.endpoint("kept").status.value == "Running"


def test_packages_that_anything_else_is_built_on_are_none_that_nobody_needs(
    deployment: Deployment, engine: Engine, image: Made
) -> None:
    image("lower", "FROM scratch\nCOPY file /file", file=secrets.token_hex(8))
    lower, upper = f"mlflow-domino/packages:{secrets.token_hex(8)}", "localhost:1/any/mlflow-domino-gateway:1"
    engine.tag(image.names[0], lower)
    image.names.append(lower)
    engine.remove_image(image.names[0])
    own = image("upper", f"FROM {lower}\nCOPY file /file2", file="x")
    engine.tag(own, upper)
    image.names.append(upper)
    plane = deployment.controller.plane

    def unused() -> set[str]:
        return {name for name, _size in plane.leftovers(time.time() + 60)}

    assert lower not in unused()
    for name in (own, upper):
        engine.remove_image(name)
    assert lower in unused()


def test_an_image_of_a_version_that_no_record_knows_goes_with_its_folder(
    deployment: Deployment, engine: Engine, image: Made
) -> None:
    left = image("left", "FROM scratch\nCOPY file /file", file="x")
    folder = deployment.home.version("f" * 24)
    folder.mkdir(parents=True)
    (folder / "images.json").write_text(json.dumps([left]))
    items = [i for i in prune.plan(deployment.controller, older_than_s=0) if i.path == folder]
    assert [item.kind for item in items] == ["folder"]
    prune.carry_out(deployment.controller, items, print)
    assert not folder.exists()
    assert engine.image(left) is None
