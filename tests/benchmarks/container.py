"""The harness's speed in a container beside that on the local data plane: same model, settings and Python version.

    python -m tests.benchmarks.container [--model iris|trees|network] [--connections 16] [--rounds 7] [--seconds 4]

The replicas themselves are compared, without a gateway: the local one on its socket, the one in a container on the
container's own address, and by the published port of the loopback, through which Docker's gateway reaches it and
where Docker's own proxy copies every byte. The sides take turns; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.home import Home
from tests.benchmarks.generator import Target
from tests.benchmarks.measure import Results, compare, scratch
from tests.benchmarks.models import MODELS, Model
from tests.benchmarks.peers import add_joining, joining
from tests.benchmarks.servers import Side, domino, family
from tests.conftest import free_port

_LOCAL, _CONTAINER, _PUBLISHED = "local", "container", "container, published port"
_WANTED = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    add_joining(parser)
    options = parser.parse_args()
    worst = float("inf")
    with scratch() as folder, domino(folder) as ours:
        model = MODELS[options.model](folder)
        for kind, settings in (("plain", {}), ("joined", joining(options))):
            settings = {"workers": options.workers, **settings}
            local, _ = ours.deploy(kind, model, **settings)
            with _contained(folder, model, settings) as sides:
                print(f"\n{options.model}, {kind}, {options.connections} connections, {options.workers} workers")
                rounds = {"connections": options.connections, "rounds": options.rounds, "seconds": options.seconds}
                results = compare({_LOCAL: local, **sides}, **rounds)
            print(f"\n{results.table(_LOCAL)}")
            for side in sides:
                print(f"{side}: {_ratio(results, side):.3f} of the local rate, the median of {options.rounds} rounds")
            worst = min(worst, _ratio(results, _CONTAINER))
            ours.controller.delete(kind)
    print(f"\nat least {worst:.3f} of the local rate in a container ({_WANTED} wanted)")
    sys.exit(0 if worst >= _WANTED else 1)


def _ratio(results: Results, side: str) -> float:
    pairs = zip(results.rounds[side], results.rounds[_LOCAL], strict=True)
    return statistics.median(one.outcome.rate / other.outcome.rate for one, other in pairs)


@contextlib.contextmanager
def _contained(folder: Path, model: Model, settings: dict[str, object]) -> Iterator[dict[str, Side]]:
    """Run the model in a container; give it on its own address, and on its published port."""
    home = Home(folder / "docker")
    home.root.mkdir(exist_ok=True)
    home.config.write_text(f"[data_planes.docker]\nport = {free_port()}\n")
    controller = Controller.open("domino:/docker", home=home, say=lambda line: print(f"  {line}", file=sys.stderr))
    plane = controller.plane
    assert isinstance(plane, DockerDataPlane)
    try:
        _view, token = controller.create("contained", str(model.path), settings)
        (listed,) = plane.containers()
        seen = plane.engine.container(listed["Id"])
        assert seen is not None
        ((binding,),) = seen["NetworkSettings"]["Ports"].values()
        address = next(iter(seen["NetworkSettings"]["Networks"].values()))["IPAddress"]
        target = Target((address, 8080), "/model", _basic(token), closes=True)
        published = dataclasses.replace(target, address=(binding["HostIp"], int(binding["HostPort"])))
        right = b'"result":[%d]' % model.answer
        side = Side(target, model.domino(), right, lambda: family(seen["State"]["Pid"]))
        proxied = lambda: [*family(seen["State"]["Pid"]), *_proxies(binding["HostPort"])]  # noqa: E731
        yield {_CONTAINER: side, _PUBLISHED: dataclasses.replace(side, target=published, processes=proxied)}
    finally:
        controller.delete("contained")
        controller.down()


def _basic(token: str) -> dict[str, str]:
    import base64

    return {"Authorization": f"Basic {base64.b64encode(f'{token}:{token}'.encode()).decode()}"}


def _proxies(port: str) -> list[psutil.Process]:
    """Return Docker's processes that copy what goes to a published port."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or ()
        if process.info["name"] == "docker-proxy" and port in words:
            found.append(process)
    return found


if __name__ == "__main__":
    main()
