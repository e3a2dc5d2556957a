from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_domino.config import Secrets, Settings, describe, parse, settings_from_json, settings_to_json
from mlflow_domino.errors import InvalidInput


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"replica": "2"}, "did you mean 'replicas'"),
        ({"zzzzqqq": "2"}, "unknown key 'zzzzqqq'"),
        ({"replicas": "two"}, "replicas=two: a whole number from 1 to 32"),
        ({"replicas": "33"}, "from 1 to 32"),
        ({"replicas": "1.5"}, "a whole number"),
        ({"replicas": True}, "a whole number"),
        ({"request_timeout_s": "60s"}, "without a unit"),
        ({"request_timeout_s": "nan"}, "a number from"),
        ({"max_body": "10 parsecs"}, "a size is wanted"),
        ({"strict_schema": "yes"}, "true or false"),
        ({"routing_mode": "canary"}, "one of basic, advanced"),
        ({"file": "../other/model.py"}, "a path inside the project"),
        ({"file": "/etc/passwd"}, "a path inside the project"),
        ({"function": "os.system"}, "a Python name"),
        ({"username": "../root"}, "letters, digits"),
        ({"env.1A": "x"}, "a name starts with a letter"),
        ({"env.PATH": "x"}, "reserved"),
        ({"env.LD_PRELOAD": "x"}, "reserved"),
        ({"env": "A=B"}, "a JSON object"),
        ({"index_url": "ftp://x"}, "index_url"),
        ({"config": "settings.yaml"}, "@ and the path"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_wanted(config: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(config)
    assert message in str(caught.value)


@pytest.mark.parametrize("secret", ["hunter2-hunter2", "\0", "x" * 70000])
def test_a_refused_variable_never_shows_its_value(secret: str) -> None:
    for config in ({"env.1": secret}, {"env": {"A": secret + "\0"}}, {"env": secret}):
        with pytest.raises(InvalidInput) as caught:
            parse(config)
        assert secret not in str(caught.value)


def test_strings_of_the_command_line_mean_the_same_as_values_of_python() -> None:
    assert parse({"replicas": "2", "strict_schema": "FALSE", "max_body": "1Mi", "exclude_files": "a, b"}) == parse(
        {"replicas": 2, "strict_schema": False, "max_body": 1 << 20, "exclude_files": ["a", "b"]}
    )


def test_the_camel_case_of_dominos_api_is_accepted() -> None:
    settings, secrets = parse({"keepVersions": "3", "environmentVariables": [{"key": "A", "value": "b"}]})
    assert settings.keep_versions == 3
    assert secrets.variables == {"A": "b"}


def test_the_health_check_of_dominos_api_is_accepted() -> None:
    check = {"initialDelaySeconds": 20, "periodSeconds": "5", "timeoutSeconds": 2, "failureThreshold": 9}
    expected = Settings(
        initial_delay_s=20, health_period_s=5, health_timeout_s=2, failure_threshold=9,
        request_timeout_s=90.0, strict_node_anti_affinity=True, hardware_tier="small",
    )  # fmt: skip
    others = {"overrideRequestTimeoutSecs": 90, "strictNodeAntiAffinity": True, "hardwareTierId": "small"}
    assert parse({"healthCheck": check, **others})[0] == expected
    assert parse({"healthCheck": json.dumps(check), **others})[0] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10s", "healthCheck: a JSON object is wanted"),
        ({"period": 1}, "unknown key 'period'"),
        ({"periodSeconds": 0}, "health_period_s=0: a whole number from 1"),
    ],
)
def test_a_wrong_health_check_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse({"healthCheck": value})
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["100%", "$(HOME)", "@(exec://touch x)", "two\nlines", "'\"`", "ключ=值", ""])
def test_a_variables_value_is_data_whatever_it_looks_like(value: str) -> None:
    assert parse({"env.A": value})[1].variables == {"A": value}


def test_one_variable_is_set_beside_the_others_and_all_are_replaced_at_once() -> None:
    before = Secrets(variables={"A": "1", "B": "2"})
    assert parse({"env.B": "3"}, base_secrets=before)[1].variables == {"A": "1", "B": "3"}
    assert parse({"env": {"C": "4"}}, base_secrets=before)[1].variables == {"C": "4"}


def test_a_file_of_settings_yields_to_keys_beside_it(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("replicas: 3\nworkers: 2\nenv: {A: b}\n")
    settings, secrets = parse({"config": f"@{tmp_path}/s.yaml", "workers": "4"})
    assert (settings.replicas, settings.workers, secrets.variables) == (3, 4, {"A": "b"})


def test_what_is_not_set_stays_as_it_was() -> None:
    base = Settings(replicas=4, description="x")
    assert parse({"workers": 2}, base=base)[0] == Settings(replicas=4, description="x", workers=2)


def test_settings_survive_their_record() -> None:
    settings = Settings(exclude_files=("a",), environment=("pandas==2.2.3",), replicas=2)
    assert settings_from_json(settings_to_json(settings)) == settings


def test_every_key_has_a_type_and_a_line_of_help() -> None:
    rows = describe()
    assert {"replicas", "env", "config", "request_timeout_s"} <= {row[0] for row in rows}
    assert all(kind and kind != "None" and help_ for _key, kind, _default, help_ in rows)


def test_a_password_in_a_url_is_refused_where_it_would_be_shown() -> None:
    with pytest.raises(InvalidInput, match=r"find_links=https://host/x: write \$\{NAME\}") as refused:
        parse({"find_links": "https://user:hunter2@host/x"})
    assert "hunter2" not in str(refused.value)
    assert parse({"find_links": "https://${WHO}@host/x,/wheels"})[0].find_links == ("https://${WHO}@host/x", "/wheels")


def test_secrets_are_not_shown_where_their_record_is() -> None:
    _, secrets = parse({"env.KEY": "hunter2", "index_url": "https://u:hunter2@host/x"})
    assert secrets.index_url
    assert "hunter2" not in repr(secrets)
