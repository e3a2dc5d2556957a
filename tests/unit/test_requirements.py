from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_domino.errors import InvalidInput
from mlflow_domino.requirements import MODEL_FOLDER, Requirements, listed, of_model, read_facts, references
from tests.packages import make_wheel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "MLmodel").write_text(
        "mlflow_version: 3.1.0\n"
        "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n    python_version: 3.12.1\n  sklearn: {}\n"
    )
    return tmp_path


def read(model: Path, text: str) -> Requirements:
    (model / "requirements.txt").write_text(text)
    return of_model(model)


def texts(requirements: Requirements) -> list[str]:
    return [item.text for item in requirements.items]


def test_lines_keep_markers_extras_and_where_they_stand(model: Path) -> None:
    asked = read(model, '# pins\nmlflow==3.1.0\n\nFlask[async]>=2 ; python_version < "3.13"  # web\nnumpy')
    assert texts(asked) == ["mlflow==3.1.0", 'Flask[async]>=2 ; python_version < "3.13"', "numpy"]
    assert [item.where for item in asked.items] == ["requirements.txt:2", "requirements.txt:4", "requirements.txt:5"]
    assert [item.name for item in asked.items] == ["mlflow", "flask", "numpy"]


def test_hashes_over_several_lines_belong_to_their_package(model: Path) -> None:
    asked = read(model, "--require-hashes\nsix==1.0 \\\n  --hash=sha256:bb \\\n  --hash=sha256:aa\n")
    assert asked.items[0].hashes == ("sha256:aa", "sha256:bb")
    assert asked.notes == ()


def test_included_files_and_constraints_are_followed(model: Path) -> None:
    (model / "more").mkdir()
    (model / "more" / "base.txt").write_text("-c limits.txt\nsix\n")
    (model / "more" / "limits.txt").write_text("\nnumpy<2\n")
    asked = read(model, "-r more/base.txt\nnumpy")
    assert [str(item) for item in asked.items] == ["more/base.txt:2: six", "requirements.txt:2: numpy"]
    assert [str(item) for item in asked.constraints] == ["more/limits.txt:2: numpy<2"]


def test_options_about_indexes_and_builds_are_kept(model: Path) -> None:
    asked = read(
        model,
        "--index-url https://me:pass@one/simple\n--extra-index-url=https://two/simple\n-f wheels\n--no-index\n--pre\n"
        "--trusted-host one\n--no-binary :all:\n--only-binary numpy,pandas\n--prefer-binary\n",
    )
    assert asked.index_url == "https://me:pass@one/simple"
    assert asked.extra_index_url == ("https://two/simple",)
    assert asked.find_links == (str(model / "wheels"),)
    assert (asked.no_index, asked.prerelease, asked.trusted_hosts) == (True, True, ("one",))
    assert asked.build_options == ("--no-binary :all:", "--only-binary numpy", "--only-binary pandas")
    assert asked.notes == ("requirements.txt:9: --prefer-binary means nothing here",)


def test_wheels_and_folders_of_the_model_are_named_without_its_path(model: Path) -> None:
    make_wheel(model / "wheels", "domino_one", "1.0")
    (model / "code" / "two").mkdir(parents=True)
    (model / "code" / "two" / "pyproject.toml").write_text("")
    asked = read(model, "./wheels/domino_one-1.0-py3-none-any.whl\n-e code/two\n")
    assert texts(asked) == [
        f"${{{MODEL_FOLDER}}}/wheels/domino_one-1.0-py3-none-any.whl",
        f"${{{MODEL_FOLDER}}}/code/two",
    ]
    assert asked.items[0].name == "domino-one"
    assert [path for path, _ in asked.contents] == ["code/two", "wheels/domino_one-1.0-py3-none-any.whl"]
    assert "not editable" in asked.notes[0]
    assert "requirements.txt:2" in asked.notes[0]


def test_a_changed_folder_of_the_model_changes_its_digest(model: Path) -> None:
    (model / "code").mkdir()
    (model / "code" / "setup.py").write_text("1")
    before = read(model, "./code").contents
    (model / "code" / "setup.py").write_text("2")
    assert read(model, "./code").contents != before


def test_passwords_in_urls_are_taken_out(model: Path) -> None:
    asked = read(
        model, "one @ https://me:sesame@host/one-1.0.tar.gz\ngit+https://ghp_x@host/two@main#egg=two&subdirectory=s\n"
    )
    assert "sesame" not in str(asked.items)
    assert "ghp_x" not in str(asked.items)
    assert sorted(asked.credentials.values()) == ["ghp_x", "me:sesame"]
    assert texts(asked)[1].startswith("two @ git+https://${DOMINO_URL_")
    assert texts(asked)[1].endswith("@host/two@main#subdirectory=s")
    assert references(asked) == ()


def test_variables_in_lines_and_urls_are_found(model: Path) -> None:
    asked = read(model, "--index-url https://${INDEX_USER}@host/simple\none @ https://me:${TOKEN}@host/one.tar.gz\n")
    assert references(asked) == ("INDEX_USER", "TOKEN")
    assert asked.credentials == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numpy=1.0", "requirements.txt:2: 'numpy=1.0': "),
        ("two words", "requirements.txt:2: 'two words': "),
        ("--bogus 3", "requirements.txt:2: '--bogus 3': no such option: --bogus."),
        ("six --no-binary", "requirements.txt:2: "),
        ("-r missing.txt", "requirements.txt:2: missing.txt: no such file in the model."),
        ("-c https://host/limits.txt", "requirements.txt:2: https://host/limits.txt is not inside the model"),
        ("-r ../outside.txt", "requirements.txt:2: ../outside.txt is not inside the model"),
        ("-r requirements.txt", "requirements.txt:2: requirements.txt includes itself."),
        ("./wheels/gone-1.0-py3-none-any.whl", "requirements.txt:2: ./wheels/gone-1.0-py3-none-any.whl: no such file"),
        ("/elsewhere/gone-1.0-py3-none-any.whl", "requirements.txt:2: /elsewhere/gone-1.0-py3-none-any.whl: no such"),
    ],
)
def test_a_wrong_line_is_named_with_its_file(model: Path, line: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(model, f"six\n{line}\n")
    assert str(caught.value).startswith(message)


def test_bytes_that_are_no_text_are_refused_not_raised(model: Path) -> None:
    (model / "requirements.txt").write_bytes(b"six\n\xff\xfe\x00\n")
    with pytest.raises(InvalidInput, match=r"requirements\.txt"):
        of_model(model)


def test_without_requirements_txt_the_environment_files_are_read(model: Path) -> None:
    (model / "conda.yaml").write_text(
        "dependencies:\n- python=3.10.2\n- libgomp=1\n- pip<=23\n- pip:\n  - six==1.16.0\n  - numpy\n"
    )
    asked = of_model(model)
    assert [str(item) for item in asked.items] == ["conda.yaml:6: six==1.16.0", "conda.yaml:7: numpy"]
    assert asked.notes == ("conda.yaml:3: libgomp=1 is a conda package and is not installed",)
    (model / "python_env.yaml").write_text("python: 3.11.2\ndependencies:\n- six\n")
    assert [str(item) for item in of_model(model).items] == ["python_env.yaml:3: six"]


def test_a_model_without_any_requirements_is_read_and_noted(model: Path) -> None:
    asked = of_model(model)
    assert asked.items == ()
    assert asked.notes == ("the model names no requirements; only what MLflow needs to load it is installed",)


@pytest.mark.parametrize(
    ("pinned", "read_as"), [("setuptools==65.5.0", "setuptools==65.5.0"), ("setuptools", "setuptools<81")]
)
def test_setuptools_of_the_build_tools_is_kept_for_pkg_resources(model: Path, pinned: str, read_as: str) -> None:
    (model / "python_env.yaml").write_text(f"build_dependencies:\n- pip==23\n- {pinned}\n- wheel\n")
    assert texts(read(model, "six")) == ["six", read_as]


def test_facts_come_from_mlmodel_then_from_the_environment_files(model: Path) -> None:
    facts = read_facts(model)
    assert (facts.python_version, facts.mlflow_version, facts.loader_module) == ("3.12.1", "3.1.0", "mlflow.sklearn")
    assert facts.flavors == ("python_function", "sklearn")
    (model / "MLmodel").write_text("flavors: {}\n")
    (model / "conda.yaml").write_text("dependencies:\n- python=3.10.2\n")
    assert read_facts(model).python_version == "3.10.2"
    (model / "python_env.yaml").write_text("python: 3.11.2\n")
    assert read_facts(model).python_version == "3.11.2"


def test_an_mlmodel_that_is_no_yaml_is_refused(model: Path) -> None:
    (model / "MLmodel").write_text("a: [")
    with pytest.raises(InvalidInput, match="MLmodel cannot be read as YAML"):
        read_facts(model)


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "", "flavors: 3\n", "flavors:\n  python_function: x\n"])
def test_an_mlmodel_of_another_shape_says_nothing(model: Path, content: str) -> None:
    (model / "MLmodel").write_text(content)
    assert read_facts(model).mlflow_version == ""


def test_a_folder_without_mlmodel_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no MLmodel file"):
        read_facts(tmp_path)


def test_the_setting_environment_is_read_item_by_item() -> None:
    assert [str(item) for item in listed(["pandas==2.2.3", "six"]).items] == [
        "environment[1]: pandas==2.2.3",
        "environment[2]: six",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-r requirements.txt", "environment[1]: '-r requirements.txt' is an option"),
        ("./here-1.0-py3-none-any.whl", "environment[1]: ./here-1.0-py3-none-any.whl is a file of this machine"),
        ("one @ https://me:sesame@host/one.tar.gz", "environment: a URL holds a user or a password"),
        ("numpy=1", "environment[1]: 'numpy=1'"),
    ],
)
def test_the_setting_environment_takes_packages_only(line: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        listed([line])
    assert str(caught.value).startswith(message)
    assert "sesame" not in str(caught.value)
