"""Reading and following logs, and taking secrets out of them."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import stat
import subprocess
import sys
import time

import pytest

from mlflow_domino import logs
from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.shortening import logs_beside
from tests.conftest import eventually


def ms(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)
    return int(moment.timestamp() * 1000)


LOG = """\
*** starting uWSGI ***
2026-11-23T01:02:03.456Z loading
2026-11-23T01:12:03.456Z failed
Traceback (most recent call last):
  ValueError: no
2026-11-23T01:22:03.456Z the end
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "replica-0.log"
    path.write_text(LOG)
    return path


# ---- lengths of time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("2w", 1209600),
        (" 5m ", 300),
    ],
)
def test_a_length_of_time_is_read(text, seconds):
    assert logs.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 m", "10minutes", "5m!", "yesterday", "1e9s"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(InvalidInput, match="such as 90s, 10m, 2h"):
        logs.parse_duration(text)


# ---- the end of a log ----------------------------------------------------------------------------------------------


def test_the_tail_is_the_last_lines(log):
    assert logs.tail(log, 2) == "  ValueError: no\n2026-11-23T01:22:03.456Z the end"
    assert logs.tail(log, 100) == LOG.rstrip("\n")
    assert logs.tail(log, 0) == ""


def test_a_log_that_is_not_there_has_no_tail(tmp_path):
    assert logs.tail(tmp_path / "nowhere.log") == ""


def test_the_tail_reaches_into_the_rotated_part(log):
    log.with_name("replica-0.log.1").write_text("older 1\nolder 2")
    assert logs.tail(log, 7).startswith("older 2\n*** starting")
    assert logs.tail(log, 2).startswith("  ValueError")


def test_the_tail_of_a_huge_log_reads_only_its_end(log):
    log.write_text("x" * 1000 + "\n" + "first\nlast\n")
    assert logs.tail(log, 5, limit=100) == "first\nlast"
    log.write_text("y" * 1000)
    assert logs.tail(log, 5, limit=100) == "y" * 100


def test_a_line_without_an_end_and_bytes_that_are_no_text_are_shown(log):
    log.write_bytes(b"caf\xe9\r\nunfinished")
    assert logs.tail(log) == "caf\ufffd\nunfinished"


def test_other_characters_that_split_lines_do_not(log):
    log.write_text("a\x0bb\u2028c\n")
    assert logs.tail(log, 1) == "a\x0bb\u2028c"


# ---- reading since -------------------------------------------------------------------------------------------------


def test_lines_without_a_time_belong_to_the_one_before(log):
    lines = list(logs.read(log))
    assert [line.text for line in lines] == LOG.splitlines()
    assert [line.time_ms for line in lines] == [
        ms(f"2026-11-23T01:{minute}:03.456") for minute in ("02", "02", "12", "12", "12", "22")
    ]


def test_only_what_was_written_since_is_read(log):
    lines = list(logs.read(log, since_ms=ms("2026-11-23T01:12:00")))
    assert [line.text for line in lines] == LOG.splitlines()[2:]
    assert list(logs.read(log, since_ms=ms("2027-01-01"))) == []


def test_the_rotated_part_is_read_first(log):
    log.with_name("replica-0.log.1").write_text("2026-11-22T00:00:00.000Z older\n")
    assert next(logs.read(log)).text == "2026-11-22T00:00:00.000Z older"


def test_a_log_without_any_time_is_as_old_as_its_file(log):
    log.write_text("plain\n")
    os.utime(log, (1_000_000, 1_000_000))
    assert [line.time_ms for line in logs.read(log)] == [1_000_000_000]
    assert list(logs.read(log, since_ms=1_000_000_001)) == []


def test_what_only_looks_like_a_time_is_none(log):
    log.write_text("2026-13-45T99:00:00.000Z x\n2026-11-23 01:02:03 y\n")
    assert len(list(logs.read(log))) == 2


# ---- secrets -------------------------------------------------------------------------------------------------------


def test_values_of_six_characters_and_more_are_taken_out():
    assert logs.redact("password=hunter2 user=root", ["hunter2", "root"]) == "password=[redacted] user=root"


def test_of_two_values_the_longer_goes_first():
    assert logs.redact("secret-long", ["secret", "secret-long"]) == "[redacted]"


@pytest.mark.parametrize(
    "value", ["line one\nline two", "with \"quotes\" and 'more'", "tab\there\\ back", "päss wörd", "a/b?c=d&e"]
)
def test_a_value_is_found_however_it_was_written(value):
    for text in (value, repr(value), json.dumps(value), f"{value!r}"):
        assert value not in logs.redact(text, [value])
        assert "[redacted]" in logs.redact(text, [value])


def test_a_key_of_several_lines_is_taken_out_line_by_line():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----\n"
    for line in key.splitlines():
        assert logs.redact(f"  {line}", [key]) == "  [redacted]"


def test_secrets_are_taken_out_of_tails_lines_and_what_is_followed(log):
    log.write_text("token hunter2!\n")
    assert logs.tail(log, values=["hunter2!"]) == "token [redacted]"
    assert [line.text for line in logs.read(log, values=["hunter2!"])] == ["token [redacted]"]
    followed = logs.follow(lambda: [log], values=["hunter2!"], wait=lambda: False, since_ms=0)
    assert [line.text for line in followed] == ["token [redacted]"]


# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_log_is_written_with_times_without_secrets_for_its_owner_only(tmp_path):
    path = tmp_path / "new" / "build.log"
    heard: list[str] = []
    for text in ("first\n  second", "token hunter2!", ""):
        with logs.written(path, heard.append, ["hunter2!"]) as log:
            log(text)
    assert heard == ["first\n  second", "token [redacted]", ""]
    lines = path.read_text().splitlines()
    assert [line.partition("Z ")[2] for line in lines] == ["first", "  second", "token [redacted]", ""]
    assert abs(next(logs.read(path)).time_ms - time.time() * 1000) < 60_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# ---- shortening ----------------------------------------------------------------------------------------------------


def test_a_log_that_grew_too_large_is_shortened_while_somebody_writes_to_it(log):
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100 + b"\n")
        assert not logs.shorten(log, 1 << 20)
        assert logs.shorten(log, 50)
        writer.write(b"after\n")
    assert log.read_text() == "after\n"
    rotated = log.with_name(log.name + ".1")
    assert rotated.read_text().endswith("x\n")
    assert stat.S_IMODE(rotated.stat().st_mode) == 0o600
    assert logs.tail(log, 2) == "x" * 100 + "\nafter"
    assert not logs.shorten(log.with_name("none.log"), 50)


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ("gateway.log", ["supervisor.log", "envoy.log", "gateway.log", "dispatcher.log"]),
        (
            "gateway-images.log",
            ["supervisor-images.log", "envoy-images.log", "gateway-images.log", "dispatcher-images.log"],
        ),
        ("test.log", []),
        ("my-gateway.log", []),
        ("pipe:[123]", []),
    ],
)
def test_the_gateway_knows_the_logs_of_the_programs_beside_it_by_its_own(tmp_path, own, names):
    assert [path.name for path in logs_beside(tmp_path / own)] == names


def test_the_gateway_shortens_them_while_it_runs(tmp_path):
    envoy = tmp_path / "envoy.log"
    envoy.write_text("x" * 100)
    program = "from mlflow_domino.gateway.shortening import watch_logs; watch_logs(limit=50, period_s=0.05).join()"
    with (tmp_path / "gateway.log").open("ab") as own:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=own)
    try:
        eventually(lambda: envoy.stat().st_size == 0)
        envoy.write_text("y" * 100)
        eventually(lambda: "y" in (tmp_path / "envoy.log.1").read_text())
    finally:
        process.kill()
        process.wait()


# ---- following -----------------------------------------------------------------------------------------------------


def follow(steps, paths, **options):
    """Follow while each step changes the logs; the texts seen after each."""
    seen: list[list[str]] = [[]]
    remaining = iter(steps)

    def wait() -> bool:
        for step in itertools.islice(remaining, 1):
            step()
            seen.append([])
            return True
        return False

    for line in logs.follow(paths, wait=wait, **options):
        seen[-1].append(line.text)
    return seen


def test_a_secret_that_comes_while_a_log_is_followed_is_taken_out(log):
    secrets = set()

    def write():
        secrets.add("hunter2!")
        log.write_text(log.read_text() + "token hunter2!\n")

    assert follow([write], lambda: [log], values=secrets) == [[], ["token [redacted]"]]


def test_only_new_lines_are_followed(log):
    def write():
        with log.open("a") as file:
            file.write("new 1\nnew 2\n")

    assert follow([write], lambda: [log]) == [[], ["new 1", "new 2"]]


def test_a_line_is_shown_when_it_is_whole(log):
    def append(text):
        with log.open("a") as file:
            file.write(text)

    steps = [lambda: append("ha"), lambda: append("lf\nnext"), lambda: append("\n")]
    assert follow(steps, lambda: [log]) == [[], [], ["half"], ["next"]]


def test_nothing_is_lost_when_a_log_is_rotated(log):
    def rotate():
        with log.open("a") as file:
            file.write("last of the old\n")
        log.rename(log.with_name(log.name + ".1"))
        log.write_text("first of the new\n")

    assert follow([rotate], lambda: [log]) == [[], ["last of the old", "first of the new"]]


def test_a_log_that_is_emptied_is_read_from_its_start(log):
    assert follow([lambda: log.write_text("again\n")], lambda: [log]) == [[], ["again"]]


def test_a_log_that_begins_later_is_read_from_its_start(log, tmp_path):
    other = tmp_path / "replica-1.log"
    steps = [lambda: other.write_text("begun\n")]
    assert follow(steps, lambda: [log, other]) == [[], ["begun"]]
    third = tmp_path / "replica-2.log"
    steps = [lambda: third.write_text("a new replica\n")]
    assert follow(steps, lambda: sorted(tmp_path.glob("replica-*.log"))) == [[], ["a new replica"]]


def test_a_log_that_is_removed_ends_quietly_and_may_come_back(log):
    assert follow([log.unlink, lambda: log.write_text("back\n")], lambda: [log])[-1] == ["back"]


def test_lines_of_several_logs_come_in_the_order_of_their_times(log, tmp_path):
    other = tmp_path / "other.log"
    other.write_text("2026-11-23T01:05:00.000Z between\n")
    texts = follow([], lambda: [log, other], since_ms=0)[0]
    assert texts.index("2026-11-23T01:05:00.000Z between") == 2


def test_what_was_written_since_comes_first(log):
    log.with_name("replica-0.log.1").write_text("2026-11-23T01:00:00.000Z older\n2026-11-23T01:01:00.000Z rotated\n")

    def write():
        with log.open("a") as file:
            file.write("new\n")

    seen = follow([write], lambda: [log], since_ms=ms("2026-11-23T01:00:30"))
    assert seen == [["2026-11-23T01:01:00.000Z rotated", *LOG.splitlines()[1:]], ["new"]]


def test_new_lines_are_followed_though_none_says_when(log):
    log.write_text("old\n")

    def write():
        with log.open("a") as file:
            file.write("new\n")

    assert follow([write], lambda: [log], since_ms=ms("2026-11-23T01:00:30")) == [[], ["new"]]


def test_of_what_is_there_only_the_last_lines_are_wanted(log):
    def write():
        with log.open("a") as file:
            file.write("new 1\nnew 2\n")

    assert follow([write], lambda: [log], since_ms=0, last=1) == [[LOG.splitlines()[-1]], ["new 1", "new 2"]]
    assert follow([write], lambda: [log], since_ms=0, last=0)[0] == []
