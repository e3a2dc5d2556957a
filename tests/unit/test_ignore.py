"""What `.modelignore` and `exclude_files` leave out."""

from __future__ import annotations

import pytest

from mlflow_domino.errors import InvalidInput
from mlflow_domino.ignore import Ignore


def ignore(tmp_path, text="", exclude_files=()):
    (tmp_path / ".modelignore").write_bytes(text.encode())
    return Ignore.read(tmp_path, exclude_files)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("notes.txt", "notes.txt", True),
        ("notes.txt", "deep/down/notes.txt", True),
        ("notes.txt", "notes.txt.py", None),
        ("data", "data/", True),
        ("data", "data/raw/x.csv", True),
        ("data/", "data/x.csv", True),
        ("data/", "data", None),
        ("*.csv", "deep/x.csv", True),
        ("train_[0-9]?.py", "train_1a.py", True),
        ("[!m]*.py", "a.py", True),
        ("[!m]*.py", "model.py", None),
        ("data/*.csv", "data/x.csv", True),
        ("data/*.csv", "other/data/x.csv", None),
        ("/x.csv", "deep/x.csv", None),
        ("./x.csv", "x.csv", True),
        ("./data/", "data/", True),
        ("**/cache/", "a/b/cache/", True),
        ("# x.csv", "x.csv", None),
        ("\\#x", "#x", True),
        ("naïve ünïcode.csv", "naïve ünïcode.csv", True),
    ],
)
def test_a_pattern_fits_names_folders_and_shell_patterns(tmp_path, pattern, path, expected):
    assert ignore(tmp_path, pattern).decide(path) is expected
    assert ignore(tmp_path, "", [pattern]).decide(path) is expected


def test_the_last_pattern_that_fits_decides(tmp_path):
    rules = ignore(tmp_path, "*.csv\n!small.csv\n")
    assert rules.decide("big.csv") is True
    assert rules.decide("small.csv") is False
    assert rules.takes_back


def test_the_setting_comes_after_the_file(tmp_path):
    assert ignore(tmp_path, "!small.csv\n", ["*.csv"]).decide("small.csv") is True


def test_windows_line_ends_a_byte_order_mark_and_empty_lines_change_nothing(tmp_path):
    rules = ignore(tmp_path, "\ufeff*.csv\r\n\r\n   \r\n*.log\r\n")
    assert rules.decide("x.csv") is True
    assert rules.decide("x.log") is True


def test_the_reason_names_the_line_and_the_pattern(tmp_path):
    rules = ignore(tmp_path, "# large files\n\n*.csv\n", ["*.bin"])
    assert rules.reason("x.csv") == "line 3 of .modelignore ('*.csv')"
    assert rules.reason("x.bin") == "exclude_files ('*.bin')"
    assert rules.reason("x.py") == ""


def test_what_is_no_pattern_is_refused_with_its_line(tmp_path):
    with pytest.raises(InvalidInput, match=r"line 2 of \.modelignore: '!' is not a pattern"):
        ignore(tmp_path, "*.csv\n!\n")


def test_without_the_file_nothing_is_left_out(tmp_path):
    assert Ignore.read(tmp_path).decide("anything") is None


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / ".modelignore").mkdir()
    with pytest.raises(InvalidInput, match=r"\.modelignore cannot be read: Is a directory"):
        Ignore.read(tmp_path)
