"""What joining costs a caller who is alone: one connection, joining on and off, in rounds that take turns.

python -m tests.benchmarks.latency [--model iris|trees|network] [--rounds 7] [--seconds 4]
"""

from __future__ import annotations

import argparse
import statistics

from tests.benchmarks.measure import compare, scratch
from tests.benchmarks.models import MODELS
from tests.benchmarks.peers import add_joining, joining
from tests.benchmarks.servers import domino


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    add_joining(parser)
    options = parser.parse_args()
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        plain, _ = ours.deploy("plain", model, workers=options.workers)
        joined, _ = ours.deploy("joined", model, workers=options.workers, **joining(options))
        sides = {"joining off": plain, "joining on": joined}
        results = compare(sides, connections=1, rounds=options.rounds, seconds=options.seconds)
    medians = {side: [m.outcome.median_ms for m in results.rounds[side]] for side in sides}
    ratios = [on / off for off, on in zip(medians["joining off"], medians["joining on"], strict=True)]
    print(results.table("joining off"))
    print(f"median latency, off: {statistics.median(medians['joining off']):.3f} ms")
    print(f"median latency, on:  {statistics.median(medians['joining on']):.3f} ms")
    print(f"ratio, the median of {len(ratios)} rounds: {statistics.median(ratios):.3f}")
    raise SystemExit(1 if results.all_failed else 0)


if __name__ == "__main__":
    main()
