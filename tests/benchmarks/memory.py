"""What a second worker costs in memory: the proportional set size of replicas with one worker and with two.

    python -m tests.benchmarks.memory [--model iris|trees|network] [--settings KEY=VALUE ...]

Two workers are measured twice, each with a model of its own and with one that they share. Native libraries have one
thread in all of them: else the only worker would have more than each of two, and their buffers. Failed when a second
worker that shares costs more than a quarter of the first one.
"""

from __future__ import annotations

import argparse
import contextlib

import psutil

from tests.benchmarks.generator import load
from tests.benchmarks.measure import scratch
from tests.benchmarks.models import MODELS
from tests.benchmarks.servers import Side, domino

_LIMIT = 0.25
_SIDES = {
    "one worker": {"workers": 1, "preload": "never"},
    "two, each its own": {"workers": 2, "preload": "never"},
    "two that share": {"workers": 2},
}
_ONE_THREAD = {f"env.{name}": "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
               "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS",
               "POLARS_MAX_THREADS")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--settings", nargs="+", metavar="KEY=VALUE", default=[], help="settings of all endpoints")
    options = parser.parse_args()
    settings = {**_ONE_THREAD, **dict(pair.split("=", 1) for pair in options.settings)}
    totals: dict[str, int] = {}
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        # One after the other: pages of files that several endpoints map would count in part.
        for number, (name, own) in enumerate(_SIDES.items()):
            side, _ = ours.deploy(f"side-{number}", model, **{**settings, **own})
            load(side.target, side.body, holds=side.holds, connections=8, seconds=3)
            totals[name] = pss(side)
            print(f"{name:18} {totals[name] / 2**20:7.1f} MiB", flush=True)
            ours.controller.delete(f"side-{number}")
    first, apart, shared = totals.values()
    print(
        f"a second worker costs {(apart - first) / first:.2f} of the first, {(shared - first) / first:.2f} where they share"
    )
    raise SystemExit(int(shared - first > _LIMIT * first))


def pss(side: Side) -> int:
    """Return the proportional set size of a side's processes: what is shared counts once."""
    total = 0
    for process in side.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
