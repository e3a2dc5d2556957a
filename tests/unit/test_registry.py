"""MLflow's models as a source, from a real registry in SQLite."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlflow_domino import source
from mlflow_domino.config import Settings
from mlflow_domino.errors import InvalidInput, NotFound, Unavailable, Unsupported
from mlflow_domino.models import RegistrySource

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and what it imports warn about themselves


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> SimpleNamespace:
    """A registry with the model iris: versions 1 to 3, the alias champion on 2, version 1 in Production."""
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Constant(PythonModel):
        def __init__(self, value: int) -> None:
            self.value = value

        def predict(self, context, model_input, params=None):
            return self.value

    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root}/mlflow.db"
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("test", artifact_location=f"file://{root}/artifacts")
    client = mlflow.MlflowClient()
    with warnings.catch_warnings(), mlflow.start_run(experiment_id=experiment) as run:
        warnings.simplefilter("ignore")
        models = [
            mlflow.pyfunc.log_model(
                name=f"model-{number}",
                python_model=Constant(number),
                pip_requirements=["cloudpickle"],
                registered_model_name="iris",
            )
            for number in (1, 2, 3)
        ]
        twins = [
            mlflow.pyfunc.log_model(name="twin", python_model=Constant(number), pip_requirements=["cloudpickle"])
            for number in (4, 5)
        ]
        mlflow.log_text("x", "notes/readme.txt")
    client.set_registered_model_alias("iris", "champion", "2")
    client.transition_model_version_stage("iris", "1", "Production")
    client.create_registered_model("hollow")
    mlflow.set_tracking_uri(None)  # back to what the environment says; it clears that, too
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before
    return SimpleNamespace(
        uri=uri, root=root, run=run.info.run_id, ids=[model.model_id for model in models], newer=twins[1].model_id
    )


@pytest.fixture
def fetch(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    destination = tmp_path / "version"
    lines: list[str] = []

    def run(uri) -> RegistrySource:
        fetched = source.fetch(str(uri), Settings(), destination, lines.append)
        assert isinstance(fetched, RegistrySource)
        return fetched

    run.destination, run.lines = destination, lines
    return run


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors:\n  python_function: {loader_module: mlflow.sklearn}\n  sklearn: {}\n")


def tree_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("uri", "version"),
    [
        ("models:/iris/1", "1"),
        ("models:/iris/3", "3"),
        ("models:/iris@champion", "2"),
        ("models:/iris/latest", "3"),
        ("models:/iris/Latest", "3"),
        ("models:/iris/Production", "1"),
        ("models:/iris/production", "1"),
    ],
)
def test_a_registered_model_is_resolved_to_its_version(fetch, uri, version):
    fetched = fetch(uri)
    assert (fetched.kind, fetched.name, fetched.version) == ("Registry", "iris", version)
    assert (fetched.uri, fetched.resolved_uri) == (uri, f"models:/iris/{version}")
    assert fetched.flavor == "python_function"
    assert (fetch.destination / "model/MLmodel").is_file()
    assert sorted(path.name for path in fetch.destination.iterdir()) == ["model"]


def test_an_alias_that_moves_later_changes_nothing(fetch, store):
    import mlflow

    first = fetch("models:/iris@champion")
    before = tree_digest(fetch.destination / "model")
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("iris", "champion", "3")
    try:
        assert tree_digest(fetch.destination / "model") == before
        second = fetch("models:/iris@champion")
    finally:
        client.set_registered_model_alias("iris", "champion", "2")
    assert (first.version, second.version) == ("2", "3")
    assert first.digest != second.digest


def test_a_logged_model_is_found_by_its_id(fetch, store):
    fetched = fetch(f"models:/{store.ids[0]}")
    assert (fetched.name, fetched.version) == (None, None)
    assert fetched.resolved_uri == f"models:/{store.ids[0]}"


def test_a_model_of_a_run_is_found(fetch, store):
    fetched = fetch(f"runs:/{store.run}/model-2")
    assert (fetched.uri, fetched.resolved_uri) == (f"runs:/{store.run}/model-2", f"models:/{store.ids[1]}")
    assert (fetch.destination / "model/MLmodel").is_file()


def test_of_two_models_with_one_name_in_a_run_the_newer_is_meant(fetch, store):
    assert fetch(f"runs:/{store.run}/twin").resolved_uri == f"models:/{store.newer}"


def test_a_model_among_a_runs_own_artifacts_is_found(fetch, store, tmp_path):
    import mlflow

    write_model(tmp_path / "saved")
    mlflow.MlflowClient().log_artifacts(store.run, str(tmp_path / "saved"), "by-hand/model")
    assert fetch(f"runs:/{store.run}/by-hand/model").resolved_uri == f"runs:/{store.run}/by-hand/model"


def test_a_model_in_another_artifact_store_is_found(fetch, store, tmp_path):
    import mlflow

    where = Path(mlflow.artifacts.download_artifacts(f"models:/{store.ids[0]}"))
    assert fetch(where).resolved_uri == str(where)
    assert fetch(f"file://{where}").resolved_uri == str(where)
    assert fetch(where).digest == fetch(f"file://{where}").digest


def test_the_copy_is_read_only_and_made_the_same_way_each_time(fetch):
    first = fetch("models:/iris/1")
    mode = (fetch.destination / "model/MLmodel").stat().st_mode
    assert stat.S_IMODE(mode) == 0o444
    assert fetch("models:/iris/1").digest == first.digest


def test_the_flavor_that_was_logged_is_kept(fetch, tmp_path):
    write_model(tmp_path / "saved")
    assert fetch(tmp_path / "saved").flavor == "sklearn"


def test_a_version_is_copied_again_with_its_identity(fetch, tmp_path):
    first = fetch("models:/iris@champion")
    assert source.again(fetch.destination, first, Settings(replicas=2), tmp_path / "next") == first
    assert (tmp_path / "next/model/MLmodel").is_file()
    source.remove(fetch.destination)
    with pytest.raises(NotFound, match="is gone; name the model"):
        source.again(fetch.destination, first, Settings(), tmp_path / "third")


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/irsi/1", r"there is no registered model 'irsi' in sqlite:.*: did you mean 'iris'\?"),
        ("models:/zzz@champion", r"there is no registered model 'zzz' .*there are: hollow, iris"),
        ("models:/iris/9", r"the model iris has no version 9; its versions are: 1, 2, 3\."),
        ("models:/iris/99999999999999999999", "the model iris has no version"),
        ("models:/iris@gone", r"the model iris has no alias 'gone'; its aliases are: champion \(version 2\)"),
        ("models:/iris/Staging", r"the model iris has no version in stage 'Staging'; its versions are: 1, 2, 3"),
        ("models:/hollow/latest", "the model hollow has no version yet"),
        ("models:/hollow@a", "the model hollow has no alias 'a'; its aliases are: none"),
        ("models:/m-" + "0" * 32, "there is no logged model m-000"),
        ("models:/o'brien/1", 'there is no registered model "o\'brien"'),
        ("runs:/" + "0" * 32 + "/model", "there is no run 000.* in sqlite:"),
    ],
)
def test_what_is_not_there_is_named_beside_what_is(fetch, uri, message):
    with pytest.raises(NotFound, match=message):
        fetch(uri)
    assert list(fetch.destination.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "models:/iris",
        "models:iris/1",
        "models://iris/1",
        "models:/",
        "models:/iris/",
        "models:/a/1/b",
        "models:/@x",
        "models:/x@",
    ],
)
def test_what_is_no_uri_of_a_model_shows_the_forms(fetch, uri):
    with pytest.raises(InvalidInput, match=r"write models:/NAME/VERSION, models:/NAME@ALIAS"):
        fetch(uri)


def test_a_run_without_such_an_artifact_names_what_it_has(fetch, store):
    with pytest.raises(NotFound, match=r"has no artifact 'modle'\. It has: .*model-1, model-2, model-3, notes, twin"):
        fetch(f"runs:/{store.run}/modle")
    with pytest.raises(InvalidInput, match=r"names no model in the run: .* It has: .*model-1"):
        fetch(f"runs:/{store.run}")
    with pytest.raises(InvalidInput, match=r"write runs:/RUN_ID/NAME"):
        fetch("runs:/")


def test_an_artifact_that_is_no_model_is_refused(fetch, store):
    with pytest.raises(NotFound, match=r"holds no MLmodel file, but readme\.txt"):
        fetch(f"runs:/{store.run}/notes")


def test_an_artifact_that_is_a_file_is_refused(fetch, store):
    with pytest.raises(InvalidInput, match="is a file; name the folder of a model"):
        fetch(f"runs:/{store.run}/notes/readme.txt")


def test_a_version_whose_files_are_gone_is_refused(fetch, store):
    import mlflow

    where = store.root / "artifacts" / "models" / store.ids[2]
    where.rename(where.with_suffix(".away"))
    try:
        with pytest.raises((NotFound, Unavailable), match="models:/iris/3"):
            fetch("models:/iris/3")
    finally:
        where.with_suffix(".away").rename(where)
    assert mlflow.artifacts.list_artifacts(f"models:/{store.ids[2]}")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("flavors: {crate: {}}", Unsupported, "has only the flavor crate"),
        ("flavors: [", InvalidInput, "cannot be read"),
        ("", InvalidInput, "names no flavor"),
        ("[1]", InvalidInput, "names no flavor"),
        ("flavors: x", InvalidInput, "names no flavor"),
    ],
)
def test_an_mlmodel_file_that_cannot_be_served_is_refused(fetch, tmp_path, content, error, message):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/MLmodel").write_text(content)
    with pytest.raises(error, match=message):
        fetch(tmp_path / "saved")


def test_naming_the_file_instead_of_its_folder_says_so(fetch, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/MLmodel").touch()
    with pytest.raises(NotFound, match=r"is the description of a model; name its folder"):
        fetch(tmp_path / "saved/MLmodel")


def test_a_link_out_of_a_models_folder_is_refused(fetch, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/MLmodel").write_text("flavors: {python_function: {}}")
    (tmp_path / "saved/weights").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInput, match="weights is a link that leaves"):
        fetch(tmp_path / "saved")


def test_a_registry_that_does_not_answer_is_named_without_its_password(fetch, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match=r"iris.*\(http://127\.0\.0\.1:9\)") as caught:
        fetch("models:/iris/1")
    assert "hunter2" not in str(caught.value)


def test_a_registry_whose_database_is_damaged_is_refused(fetch, store, tmp_path, monkeypatch):
    shutil.copy(store.root / "mlflow.db", tmp_path / "damaged.db")
    with sqlite3.connect(tmp_path / "damaged.db") as database:
        database.execute("DROP TABLE registered_models")
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/damaged.db")
    with pytest.raises(Unavailable, match="the registered model 'iris' cannot be read"):
        fetch("models:/iris/1")


def test_an_unknown_scheme_is_refused(fetch):
    with pytest.raises(Unavailable, match=r"nonsense://bucket/model cannot be downloaded"):
        fetch("nonsense://me:hunter2@bucket/model")
