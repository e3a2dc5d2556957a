"""A replica whose launcher is process 1, as in a container that was started without an init."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.replica import Replica, poll

ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


class FirstReplica(Replica):
    """Starts its launcher as process 1 of a namespace of its own."""

    def start(self) -> None:
        real = self._python
        wrapper = self.folder / "alone"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(ALONE)} {real} "$@"\n')
        wrapper.chmod(0o755)
        self._python = str(wrapper)
        super().start()

    def end(self, number: int = signal.SIGKILL, within: float = 10) -> None:
        super().end(number, within)  # of `unshare`: process 1 goes with it, and all others with that

    @property
    def first(self) -> psutil.Process:
        """Process 1, which `unshare` waits for."""
        assert self.process is not None
        return poll(lambda: psutil.Process(self.process.pid).children())[0]  # type: ignore[union-attr, no-any-return]


@contextlib.contextmanager
def first(project: str, **settings: Any) -> Iterator[FirstReplica]:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody may make a namespace of processes here")
    with FirstReplica(project, **settings) as replica:
        yield replica


def test_a_replica_whose_model_is_broken_ends_though_it_is_process_1() -> None:
    with first("raises_while_loading") as replica:
        assert replica.process is not None
        assert replica.process.wait(20) == 128 + signal.SIGKILL
        assert replica.status["state"] == "failed"
        assert "no weights here" in replica.status["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_hands_signals_on(number: int) -> None:
    with first("adds") as replica:
        poll(lambda: replica.status.get("state") == "ready")
        assert replica.call(a=1, b=2)
        replica.first.send_signal(number)
        assert replica.process is not None
        replica.process.wait(10)
