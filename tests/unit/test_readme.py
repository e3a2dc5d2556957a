from __future__ import annotations

from pathlib import Path

from mlflow_domino.config import describe

README = Path(__file__).resolve().parents[2] / "README.md"


def table() -> str:
    """The table of settings as the README shows it; print it with `python -m tests.unit.test_readme`."""
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    rows += [f"| `{key}` | {kind} | {default or ' '} | {help_} |" for key, kind, default, help_ in describe()]
    return "\n".join(rows)


def test_the_readme_lists_every_setting_as_the_table_has_it() -> None:
    assert table() in README.read_text("utf-8")


def test_the_readme_has_no_gaps() -> None:
    assert "@" + "TABLE@" not in README.read_text("utf-8")
    assert "@" + "SPEED@" not in README.read_text("utf-8")
    assert "@" + "QUICKSTART@" not in README.read_text("utf-8")


if __name__ == "__main__":
    print(table())
