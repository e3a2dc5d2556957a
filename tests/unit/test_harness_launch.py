"""How a replica is started, and what its watchdog decides."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.config import Config, Source
from harness.launch import backlog, cores, thread_counts, uwsgi_arguments
from harness.sharing import share
from harness.slots import Phase, Slots, State
from harness.tracker import Tracker
from harness.watchdog import Watchdog, alive

HARNESS = Path(__file__).parents[2] / "harness"


def config(folder: Path, **options: object) -> Config:
    return Config(source=Source("File", "/p"), replica_dir=str(folder), **options)  # type: ignore[arg-type]


def test_uwsgis_arguments_hold_nothing_that_it_would_expand(tmp_path: Path) -> None:
    odd = config(
        tmp_path, endpoint_name="%h $(id) @(exec://id)", socket="/tmp/%h", working_dir="$(id)", workers=3, threads=2,
        is_async=True, seldon_python="/$(id)/%h/@(exec://id)",
    )  # fmt: skip
    arguments = uwsgi_arguments(odd, [5], shared=False)
    assert not any(re.search(r"%|\$\(|@", argument) for argument in arguments)
    assert {"--processes=3", "--threads=2", "--http-socket=fd://5", "--buffer-size=65535"} <= set(arguments)


def test_each_worker_gets_its_share_of_the_cores(tmp_path: Path) -> None:
    counts = thread_counts(share(config(tmp_path, workers=3), 8), {"MKL_NUM_THREADS": "5"})
    assert counts["OMP_NUM_THREADS"] == "2"
    assert "MKL_NUM_THREADS" not in counts
    assert share(config(tmp_path, workers=20), 8) == 1
    assert share(config(tmp_path, workers=2, preload="always"), 8) == 1


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_a_containers_quota_of_cores_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], wanted: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("harness.launch._GROUPS", str(tmp_path))
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    assert cores() == wanted


def test_the_backlog_is_what_the_kernel_allows(tmp_path: Path) -> None:
    assert backlog(config(tmp_path, workers=2, threads=3, max_queue=4)) == 10
    assert backlog(config(tmp_path, max_queue=10**9)) == int(Path("/proc/sys/net/core/somaxconn").read_text())


def test_the_harness_imports_nothing_of_ours_and_little_of_others() -> None:
    allowed = {"flask", "werkzeug", "prometheus_client", "six", "uwsgi", "pyuwsgi", "_mlflow_domino_harness"}
    for path in HARNESS.glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # the top of the module: functions may import what a model brings
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name}: {name}"


def test_the_harness_parses_as_python_3_8() -> None:
    for path in HARNESS.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.fixture
def child() -> object:
    """A process that stands for a worker."""
    process = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(1, lambda *_: None); print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def watched(
    folder: Path, child: subprocess.Popen[bytes], *, threads: int = 2, **options: object
) -> tuple[Watchdog, Slots]:
    Slots.create(str(folder / "slots"), workers=1, threads=threads)
    slots = Slots(str(folder / "slots"))
    slots.enter(1, child.pid)
    slots.set_state(1, State.READY)
    slots.phase = Phase.READY
    return Watchdog(config(folder, threads=threads, **options), os.getppid()), slots


def look_until_killed(watchdog: Watchdog, slots: Slots, child: subprocess.Popen[bytes], within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        watchdog.look()
        slots.beat(1)
        if not alive(child.pid):
            return True
        time.sleep(0.01)
    return False


def test_a_worker_with_only_overdue_requests_is_killed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watchdog, slots = watched(tmp_path, child)
    slots.take(1, 0, "A" * 16, time.monotonic() - 1)
    assert look_until_killed(watchdog, slots, child, 3)
    assert child.wait() == -signal.SIGKILL
    watchdog.look()
    assert slots.count_in_flight() == 0  # they are gone with it


def test_a_worker_is_not_killed_while_others_are_at_work_in_it(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watchdog, slots = watched(tmp_path, child)
    slots.take(1, 0, "A" * 16, time.monotonic() - 1)
    slots.take(1, 1, "B" * 16, time.monotonic() + 60)
    assert not look_until_killed(watchdog, slots, child, 0.8)
    slots.free(1, 1)
    assert look_until_killed(watchdog, slots, child, 3)


def test_after_the_drain_it_is_killed_all_the_same(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watchdog, slots = watched(tmp_path, child, drain_s=0.5)
    slots.take(1, 0, "A" * 16, time.monotonic() - 1)
    slots.take(1, 1, "B" * 16, time.monotonic() + 60)
    started = time.monotonic()
    assert look_until_killed(watchdog, slots, child, 3)
    assert time.monotonic() - started > 0.5


def test_a_request_in_time_is_left_alone(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watchdog, slots = watched(tmp_path, child)
    slots.take(1, 0, "A" * 16, time.monotonic() + 60)
    assert not look_until_killed(watchdog, slots, child, 0.5)
    assert not slots.worker(1).retiring


def test_a_start_that_is_told_to_end_has_not_failed(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    _, slots = watched(tmp_path, child)
    slots.set_state(1, State.LOADING)
    slots.phase = Phase.STARTING
    watchdog = Watchdog(config(tmp_path), child.pid)
    watchdog.pass_on(signal.SIGTERM)
    assert child.wait() == -signal.SIGKILL
    watchdog.look()
    assert slots.phase is Phase.STARTING


def test_the_gateways_deadline_counts_where_it_is_the_earlier_one() -> None:
    tracker = Tracker(60)
    in_five = {"HTTP_X_DOMINO_DEADLINE_MS": str(int((time.time() + 5) * 1000))}
    assert tracker.begin(in_five).deadline == pytest.approx(time.monotonic() + 5, abs=0.1)
    for told in ({}, {"HTTP_X_DOMINO_DEADLINE_MS": "99999999999999"}, {"HTTP_X_DOMINO_DEADLINE_MS": "x"}):
        assert tracker.begin(told).deadline == pytest.approx(time.monotonic() + 60, abs=0.1)


def test_a_ticket_has_one_answer() -> None:
    ticket = Tracker(60).begin({})
    assert ticket.claim()
    assert not ticket.claim()
