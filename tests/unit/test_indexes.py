from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_domino.config import Secrets, Settings
from mlflow_domino.errors import InvalidInput
from mlflow_domino.indexes import Indexes
from mlflow_domino.requirements import Requirement, Requirements


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which neither pip nor uv was told anything."""
    return {"HOME": str(tmp_path), "PATH": "/bin", "PIP_CONFIG_FILE": "/dev/null"}


def given(
    machine: dict[str, str],
    *,
    settings: Settings = Settings(),
    secrets: Secrets = Secrets(),
    asked: Requirements = Requirements(),
) -> tuple[dict[str, str], Indexes]:
    indexes = Indexes.find(settings, secrets, asked, environment=machine)
    return dict(indexes.variables), indexes


def test_nothing_of_the_shell_but_what_uv_needs_is_passed(machine: dict[str, str]) -> None:
    machine |= {
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": "/x",
        "UV_PYTHON": "/x",
        "UV_CONSTRAINT": "x",
        "VIRTUAL_ENV": "/x",
    }
    machine |= {"HTTPS_PROXY": "http://proxy", "UV_CACHE_DIR": "/cache"}
    variables, _ = given(machine)
    assert set(variables) == {"HOME", "PATH", "HTTPS_PROXY", "UV_CACHE_DIR", "UV_INDEX_STRATEGY"}


def test_the_callers_index_wins_over_the_files_and_the_machines(machine: dict[str, str]) -> None:
    machine["PIP_INDEX_URL"] = "https://pip/simple"
    asked = Requirements(index_url="https://file/simple", extra_index_url=("https://more/simple",))
    assert given(machine)[0]["UV_DEFAULT_INDEX"] == "https://pip/simple"
    assert given(machine, asked=asked)[0]["UV_DEFAULT_INDEX"] == "https://file/simple"
    variables, _ = given(
        machine,
        asked=asked,
        secrets=Secrets(index_url="https://mine/simple", extra_index_url=("https://also/simple",)),
        settings=Settings(find_links=("/wheels",)),
    )
    assert variables["UV_DEFAULT_INDEX"] == "https://mine/simple"
    assert variables["UV_EXTRA_INDEX_URL"] == "https://also/simple https://more/simple"
    assert variables["UV_FIND_LINKS"] == "/wheels"


def test_pips_files_are_read_where_uv_was_told_nothing(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror/simple\ntrusted-host = mirror\nextra_index_url =\n  https://a/simple\n"
        "  https://b/simple\n[install]\nfind-links = /wheels\n"
    )
    machine["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    variables, _ = given(machine)
    assert variables["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert "https://a/simple https://b/simple" in variables["UV_EXTRA_INDEX_URL"]
    assert "/wheels" in variables["UV_FIND_LINKS"].split(",")
    assert "mirror" in variables["UV_INSECURE_HOST"]


@pytest.mark.parametrize("told", ["variable", "file"])
def test_pips_indexes_are_left_alone_where_uv_has_its_own(machine: dict[str, str], tmp_path: Path, told: str) -> None:
    machine["PIP_INDEX_URL"] = "https://pip/simple"
    if told == "variable":
        machine["UV_DEFAULT_INDEX"] = "https://uv/simple"
    else:
        (tmp_path / ".config" / "uv").mkdir(parents=True)
        (tmp_path / ".config" / "uv" / "uv.toml").write_text('[[index]]\nurl = "https://uv/simple"\ndefault = true\n')
    assert given(machine)[0].get("UV_DEFAULT_INDEX") == ("https://uv/simple" if told == "variable" else None)


def test_certificates_that_pip_or_requests_are_told_reach_uv(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE"):
        assert given(machine | {name: str(tmp_path / "ca.pem")})[0]["SSL_CERT_FILE"] == str(tmp_path / "ca.pem")
    kept = given(machine | {"PIP_CERT": str(tmp_path / "ca.pem"), "SSL_CERT_FILE": "/own.pem"})[0]
    assert kept["SSL_CERT_FILE"] == "/own.pem"


def test_offline_and_no_index_reach_uv(machine: dict[str, str]) -> None:
    variables, _ = given(machine, settings=Settings(offline=True), asked=Requirements(no_index=True))
    assert (variables["UV_OFFLINE"], variables["UV_NO_INDEX"]) == ("1", "1")


def test_passwords_are_redacted_as_written_and_decoded(machine: dict[str, str]) -> None:
    secrets = Secrets(
        index_url="https://me:open%20sesame@mine/simple", extra_index_url=("https://token-abc@two/simple",)
    )
    _, indexes = given(machine, secrets=secrets)
    said = indexes.redact("open%20sesame, open sesame, https://token-abc@two/simple")
    assert "sesame" not in said
    assert "token-abc" not in said


def test_references_are_filled_in_from_the_endpoints_variables_then_the_shell(machine: dict[str, str]) -> None:
    asked = Requirements(index_url="https://${A}:${B}@host/simple")
    variables, indexes = given(machine | {"A": "shell", "B": "shell-b"}, asked=asked, secrets=Secrets({"A": "mine"}))
    assert variables["UV_DEFAULT_INDEX"] == "https://mine:shell-b@host/simple"
    assert "shell-b" not in indexes.redact("shell-b")


def test_a_reference_to_nothing_is_refused_with_its_line(machine: dict[str, str]) -> None:
    asked = Requirements(items=(Requirement("one", "one @ https://${TOKEN}@host/one.tar.gz", "requirements.txt:3"),))
    with pytest.raises(InvalidInput, match=r"requirements\.txt:3: \$\{TOKEN\} is not set"):
        given(machine, asked=asked)


def test_the_key_depends_on_indexes_but_not_on_passwords(machine: dict[str, str]) -> None:
    keys = {
        name: given(machine, secrets=Secrets(index_url=url))[1].key()
        for name, url in {
            "one": "https://me:old@host/simple",
            "rotated": "https://me:new@host/simple",
            "other": "https://me:old@elsewhere/simple",
        }.items()
    }
    assert keys["one"] == keys["rotated"] != keys["other"]
