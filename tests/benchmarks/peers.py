"""Requests a second beside the peers with their batching on: same model, same workers, one row a request.

    python -m tests.benchmarks.peers [--model iris|trees|network] [--connections 16 64] [--rounds 5] [--seconds 5]

Ours has tokens, schema check and metrics on. Each peer runs in an environment of its own, made by uv in the user's
cache folder, and loads the model with `mlflow.pyfunc`; each runs twice, joining as many requests as a worker has
connections, and as many as there are. The sides take turns; the figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path

from tests.benchmarks.measure import Results, compare, scratch
from tests.benchmarks.models import MODELS, Model
from tests.benchmarks.servers import PEERS, Domino, Side, domino, mlflow_serve

_BASE = "mlflow models serve"
_OURS = ("ours", "ours, gateway", "ours joined", "ours joined, gateway")
_SIDES = [*_OURS, _BASE, *PEERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=_SIDES)
    add_joining(parser)
    options = parser.parse_args()
    failed = 0
    with scratch() as folder, domino(folder) as ours, contextlib.ExitStack() as stack:
        model = MODELS[options.model](folder)
        sides = start(options, model, ours, folder, stack)
        for connections in options.connections:
            print(f"\n{options.model}, {connections} connections, {options.workers} workers", flush=True)
            with contextlib.ExitStack() as peers:
                every = {**sides, **start_peers(options, model, folder, connections, peers)}
                results = compare(every, connections=connections, rounds=options.rounds, seconds=options.seconds)
            print(f"\n{results.table(_BASE)}\n{verdict(results)}", flush=True)
            failed += sum(results.failed(side) for side in results.rounds if side in _OURS)
    sys.exit(1 if failed else 0)


def add_joining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--joining", nargs="+", metavar="KEY=VALUE", default=["max_batch_size=64", "max_batch_delay_ms=2"],
        help="settings of the endpoint that joins requests",
    )  # fmt: skip


def joining(options: argparse.Namespace) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in options.joining)


def start(
    options: argparse.Namespace, model: Model, ours: Domino, folder: Path, stack: contextlib.ExitStack
) -> dict[str, Side]:
    """Start ours and MLflow's own, as far as they are asked for; the stack ends the latter."""
    sides: dict[str, Side] = {}
    for name, settings in (("ours", {}), ("ours joined", joining(options))):
        if {name, f"{name}, gateway"} & set(options.sides):
            both = ours.deploy(name.replace(" ", "-"), model, workers=options.workers, **settings)
            sides |= dict(zip((name, f"{name}, gateway"), both, strict=True))
    if _BASE in options.sides:
        sides[_BASE] = stack.enter_context(mlflow_serve(model, _own(folder, _BASE), options.workers))
    return {name: side for name, side in sides.items() if name in options.sides}


def start_peers(
    options: argparse.Namespace, model: Model, folder: Path, connections: int, stack: contextlib.ExitStack
) -> dict[str, Side]:
    """Start those that join, for so many connections; the stack ends them."""
    sides: dict[str, Side] = {}
    for name, peer in PEERS.items():
        for batch in sorted({max(1, connections // options.workers), connections}) if name in options.sides else ():
            side = f"{name}, batches of {batch}"
            started = stack.enter_context(peer(model, _own(folder, f"{side} {connections}"), options.workers, batch))
            sides[side] = dataclasses.replace(started, restless=True)  # LitServe polls: a quarter of a core for each
    return sides


def _own(folder: Path, name: str) -> Path:
    own = folder / name.replace(" ", "-").replace(",", "")
    own.mkdir()
    return own


def verdict(results: Results) -> str:
    """Return the ratios that matter, in words."""
    lines = []
    peers = [side for side in results.rounds if side not in (*_OURS, _BASE)]
    best = max(peers, key=results.rate, default=None)
    for side in results.rounds:
        if side not in _OURS:
            continue
        for other in filter(None, (_BASE if _BASE in results.rounds else None, best)):
            rate = results.rate(side) / results.rate(other)
            tail = results.p99_ms(side) / results.p99_ms(other)
            lines.append(f"{side}: {rate:.2f} times {other}, p99 {tail:.2f} of its")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
