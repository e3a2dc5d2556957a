"""A second dispatcher of a gateway, whose clock tests move: ``python -m tests.clocked INVENTORY OFFSET``.

The clock is the dispatcher's own parameter, as the machine's is nobody's to move; the file OFFSET holds by how many
milliseconds it is wrong. In SQLite the second one waits until the first has ended, and then has the queue. In PostgreSQL
both work, and this one takes over what the other has not shown to be alive for three seconds, not thirty.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import subprocess
import sys
from pathlib import Path

from mlflow_domino.gateway import dispatcher
from mlflow_domino.gateway.inventory import InventoryFile, read_inventory, write_inventory
from mlflow_domino.home import Home, write_text
from mlflow_domino.queue.prediction import now_ms

__all__ = ["Clocked"]

_IMPATIENT_S = 3.0
_SECOND, _HOUR, _DAY = 1000, 3_600_000, 86_400_000
_OFFSETS_MS = (0, _SECOND, -_SECOND, _HOUR, -_HOUR, _DAY, -_DAY)


class Clocked:
    """The process, and its clock.

    Parameters
    ----------
    home : Home
        Of a local data plane whose asynchronous endpoints stay as they are.
    """

    def __init__(self, home: Home) -> None:
        self._file = home.run / "clocked.json"
        self._offset = home.run / "clocked-offset"
        self._log = home.run / "clocked.log"
        self._process: subprocess.Popen[bytes] | None = None
        inventory = read_inventory(home.run / "gateway.json")
        assert inventory.queue is not None
        own = dataclasses.replace(inventory.queue, wake=str(home.run / "s" / "clocked"))
        write_inventory(self._file, dataclasses.replace(inventory, queue=own))

    def move(self, chosen: random.Random) -> None:
        """Move the clock, of a process that is started where there is none."""
        self._set(chosen.choice(_OFFSETS_MS))

    def _set(self, offset_ms: int) -> None:
        write_text(self._offset, str(offset_ms))
        if self._process is None or self._process.poll() is not None:
            argv = [sys.executable, "-m", __name__, str(self._file), str(self._offset)]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=Path(__file__).parents[1])

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Clocked:
        self._set(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(inventory: str, offset: str) -> None:
    dispatcher.LEASE_S, dispatcher._BEAT_S = _IMPATIENT_S, _IMPATIENT_S / 6
    wrong_ms = 0

    def clock() -> int:
        nonlocal wrong_ms
        with contextlib.suppress(OSError, ValueError):
            wrong_ms = int(Path(offset).read_text())
        return now_ms() + wrong_ms

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    asyncio.run(dispatcher.Dispatcher(InventoryFile(Path(inventory)), say=say, clock=clock).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
