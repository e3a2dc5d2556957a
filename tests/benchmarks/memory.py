"""What a second worker costs in memory: the proportional set size of replicas with one worker and with two.

python -m tests.benchmarks.memory [--model iris|trees|network|forest] [--settings KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import contextlib

import psutil

from tests.benchmarks.generator import load
from tests.benchmarks.measure import scratch
from tests.benchmarks.models import MODELS
from tests.benchmarks.servers import Side, domino


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--settings", nargs="+", metavar="KEY=VALUE", default=[], help="settings of both endpoints")
    options = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in options.settings)
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        # One after the other: pages of files that both endpoints map would count half.
        totals = []
        for workers in (1, 2):
            name = f"workers-{workers}"
            side, _ = ours.deploy(name, model, workers=workers, **settings)
            load(side.target, side.body, holds=side.holds, connections=8, seconds=3)
            totals.append(pss(side))
            print(f"{workers} worker(s): {totals[-1] / 2**20:7.1f} MiB", flush=True)
            ours.controller.delete(name)
    print(f"a second worker costs {(totals[1] - totals[0]) / totals[0]:.2f} of the first")


def pss(side: Side) -> int:
    """Return the proportional set size of a side's processes: what is shared counts once."""
    total = 0
    for process in side.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
