"""Envoy as one object: its command line, its files, and whether it has accepted them.

Every file is written beside and renamed; the change has happened when Envoy shows its version. What Envoy refuses is
put back at once: it is harmless until Envoy's next start, but would then leave every endpoint unreachable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_domino.errors import GatewayFailed, InvalidInput
from mlflow_domino.gateway import envoy
from mlflow_domino.gateway.admin import Admin
from mlflow_domino.gateway.certificate import renew
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.program import find_program
from mlflow_domino.gateway.routes import Cluster, Move, RouteTable, moves, stand_ins
from mlflow_domino.home import read_json, write_json, write_text

__all__ = ["Envoy"]

_FIRST_POLL_S = 0.001
_LAST_POLL_S = 0.05
_LISTENERS = "listener_manager.lds"
_CLUSTERS = "cluster_manager.cds"
_ROUTES = f"http.gateway.rds.{envoy.ROUTES}"
_LOG_TAIL = 1 << 14
#: How Envoy's own words begin when it refuses a file.
_REFUSAL = "update rejected: "
_REASON_S = 1.0


class Envoy:
    """The Envoy of one gateway; the process itself is started and kept by a supervisor.

    Parameters
    ----------
    entry : Entry
        Where it listens, and where its files are.
    log : Path
        The file to which it writes.

    Notes
    -----
    The methods that write must not run twice at once: callers hold a lock of theirs.
    """

    def __init__(self, entry: Entry, *, log: Path) -> None:
        self.entry = entry
        self.admin = Admin(entry.admin_socket)
        self._log = log
        self._state_file = entry.folder / "table.json"

    def argv(self, *, concurrency: int | None = None) -> list[str]:
        """Return the command line.

        Parameters
        ----------
        concurrency : int or None
            Worker threads; None: one for every two processors, at most four, since the models want the others.
        """
        threads = concurrency or min(4, max(1, len(os.sched_getaffinity(0)) // 2))
        return [
            str(find_program()),
            "--config-path", str(self.entry.bootstrap_file),
            # A misspelt field would be ignored, and a second Envoy on this machine would end itself.
            "--reject-unknown-dynamic-fields", "--disable-hot-restart",
            "--concurrency", str(threads),
            "--log-level", "warning",
            "--log-path", str(self._log),
            # The log says why a configuration is refused; by default it is written every ten seconds.
            "--file-flush-interval-msec", "100",
        ]  # fmt: skip

    def prepare(self, table: RouteTable, *, chain: Path | None = None, key: Path | None = None) -> None:
        """Write every file, for an Envoy that does not run yet.

        Parameters
        ----------
        table : RouteTable
            What it routes from its first request on.
        chain, key : Path or None
            Certificate chain and private key in PEM, where the entry speaks TLS.

        Raises
        ------
        InvalidInput
            As `renew_certificate`.
        """
        entry = self.entry
        if entry.tls:
            if chain is None or key is None:
                raise InvalidInput("TLS needs both tls_certificate and tls_key.")
            self.renew_certificate(chain, key)
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in self.render(table).items():
            write_text(entry.folder / name, content)
        self._save(_State(table))

    def render(self, table: RouteTable) -> dict[str, str]:
        """Return what `prepare` writes, by path in the entry's folder, but for the certificate."""
        entry = self.entry
        files = {
            entry.bootstrap_file: json.dumps(envoy.bootstrap(entry), indent=1, sort_keys=True) + "\n",
            entry.listener_file: _render(0, [envoy.listener(entry)])[1],
            entry.clusters_file: _render(table.generation, _State(table).rendered_clusters())[1],
            entry.routes_file: _render(table.generation, [envoy.routes(table)])[1],
        }
        return {str(path.relative_to(entry.folder)): content for path, content in files.items()}

    def renew_certificate(self, chain: Path, key: Path) -> bool:
        """Have Envoy use what two PEM files hold now; false when it does already.

        Raises
        ------
        InvalidInput
            They cannot be read, or do not belong together; what was in use stays.
        """
        return renew(self.entry.certificate_file, chain, key)

    def listening(self) -> tuple[str, int, bool] | None:
        """Return host, port, and whether TLS is spoken, as written when Envoy was last started; None before that."""
        document = read_json(self.entry.listener_file)
        if document is None:
            return None
        (told,) = document["resources"]
        at = told["address"]["socket_address"]
        tls = any("transport_socket" in chain for chain in told["filter_chains"])
        return str(at["address"]), int(at["port_value"]), tls

    def published(self) -> RouteTable:
        """Return the table that was published last, an empty one before the first."""
        return self._state().table

    def publish(self, table: RouteTable, *, timeout_s: float = 10.0) -> None:
        """Route as `table` says; return when Envoy has accepted it.

        Clusters that `table` lacks stay until `retire`: requests may still be at their replicas.

        Raises
        ------
        GatewayFailed
            Envoy does not answer, or refuses the configuration, with its own reason. Nothing has changed then.
        """
        deadline = time.monotonic() + timeout_s
        before = self._state()
        after = before.followed_by(table, now_ms=int(time.time() * 1000))
        with _restored_on_failure(self.entry.clusters_file):
            self._apply(_CLUSTERS, self.entry.clusters_file, table.generation, after.rendered_clusters(), deadline)
            self._await_clusters([c for c in table.clusters if c not in before.table.clusters], deadline)
            self._apply(_ROUTES, self.entry.routes_file, table.generation, [envoy.routes(table)], deadline)
        self._save(after)

    def retire(self, table: RouteTable, *, timeout_s: float = 10.0) -> None:
        """Forget the clusters that `table`, which is published, lacks: their replicas have nothing left to do.

        Raises
        ------
        GatewayFailed
            As `publish`.
        """
        after = _State(table, (), self._state().moves)
        deadline = time.monotonic() + timeout_s
        self._apply(_CLUSTERS, self.entry.clusters_file, table.generation, after.rendered_clusters(), deadline)
        self._save(after)

    def accepted(self) -> int | None:
        """Return the generation of the routes that Envoy uses now, None while it has none or does not answer."""
        with contextlib.suppress(GatewayFailed):
            version = str(self._told(_ROUTES).get("version_text", ""))
            return int(version.partition("-")[0]) if version else None
        return None

    def active(self, cluster: str) -> int:
        """Return how many requests are at a version's replicas, or wait to be sent there.

        Raises
        ------
        GatewayFailed
            Envoy does not answer.
        """
        pattern = rf"^cluster\.{re.escape(cluster)}\.upstream_rq_(active|pending_active)$"
        return sum(int(value) for value in self.admin.statistics(pattern).values())

    def load(self) -> tuple[int, int]:
        """Return how many requests Envoy has in hand, and how many connections callers have to it.

        Raises
        ------
        GatewayFailed
            Envoy does not answer.
        """
        found = self.admin.statistics(r"^http\.gateway\.downstream_(rq|cx)_active$")
        requests, connections = (int(found.get(f"http.gateway.downstream_{kind}_active", 0)) for kind in ("rq", "cx"))
        return requests, connections

    def dismiss(self) -> None:
        """Have Envoy close each caller's connection with its next answer, so that callers connect elsewhere.

        Raises
        ------
        GatewayFailed
            Envoy does not answer.
        """
        self.admin.get("/healthcheck/fail", method="POST")

    def ready(self) -> bool:
        """Whether Envoy listens, with routes that it has accepted."""
        with contextlib.suppress(GatewayFailed):
            found = self.admin.statistics(r"^listener_manager\.total_listeners_active$|^server\.state$")
            return found == {"listener_manager.total_listeners_active": 1, "server.state": 0}
        return False

    def await_ready(self, *, timeout_s: float = 10.0) -> None:
        """Wait until Envoy listens.

        Raises
        ------
        GatewayFailed
            It cannot, or does not in time; with its own reason, such as that the port is taken.
        """
        log_size = _size(self._log)
        for _ in _polls(time.monotonic() + timeout_s):
            if self.ready():
                return
            with contextlib.suppress(GatewayFailed):
                if _refusals(self._told(_LISTENERS)):
                    break
        where = f"{self.entry.host}:{self.entry.port}"
        raise GatewayFailed(f"The gateway does not listen on {where}.", log_tail=self._reason(log_size))

    def _apply(
        self, scope: str, path: Path, generation: int, resources: Sequence[Mapping[str, Any]], deadline: float
    ) -> None:
        """Replace a file and wait until Envoy has accepted it; put the old one back where it does not."""
        version, content = _render(generation, resources)
        log_size = _size(self._log)
        with _restored_on_failure(path):
            refused = self._refused(scope)
            if _read(path) != content:
                write_text(path, content)
            for _ in _polls(deadline):
                with contextlib.suppress(GatewayFailed):
                    told = self._told(scope)
                    if told.get("version_text") == version:
                        return
                    if _refusals(told) > refused:
                        break
                    refused = min(refused, _refusals(told))  # an Envoy that has just begun counts from 0
            else:
                raise GatewayFailed("The gateway did not take its new routes in time.", log_tail=_tail(self._log))
            raise GatewayFailed("The gateway refused its new routes.", log_tail=self._reason(log_size))

    def _await_clusters(self, new: Sequence[Cluster], deadline: float) -> None:
        """Wait until Envoy would send requests to clusters: it resolves names and checks health before it does."""
        checked = "|".join(c.name for c in new if c.health_check)
        pattern = rf"^cluster_manager\.warming_clusters$|^cluster\.({checked or '-'})\.membership_healthy$"
        for _ in _polls(deadline):
            with contextlib.suppress(GatewayFailed):
                found = self.admin.statistics(pattern)
                warming = found.pop("cluster_manager.warming_clusters", 1)
                if not warming and len(found) == sum(c.health_check for c in new) and all(found.values()):
                    return
        raise GatewayFailed("The gateway finds no healthy replica of the new version.", log_tail=_tail(self._log))

    def _reason(self, log_size: int) -> str:
        """Return what Envoy says about a refusal, which it writes a little later; else the end of its log."""
        for _ in _polls(time.monotonic() + _REASON_S):
            new = _tail(self._log, log_size)
            if _REFUSAL in new:
                lines = new.partition(_REFUSAL)[2].splitlines()
                return "\n".join(lines if len(lines) < 4 else [lines[0], "…", lines[-1]])  # the resource lies between
        return _tail(self._log)

    def _refused(self, scope: str) -> int:
        with contextlib.suppress(GatewayFailed):
            return _refusals(self._told(scope))
        return 0

    def _told(self, scope: str) -> dict[str, Any]:
        pattern = rf"^{re.escape(scope)}\.(version_text|update_rejected|update_failure)$"
        return {name[len(scope) + 1 :]: value for name, value in self.admin.statistics(pattern).items()}

    def _state(self) -> _State:
        document = read_json(self._state_file)
        return _State.from_json(document) if document else _State(RouteTable())

    def _save(self, state: _State) -> None:
        write_json(self._state_file, asdict(state))


@dataclass(frozen=True)
class _State:
    """What was published, and what of earlier tables must still be there."""

    table: RouteTable
    leaving: tuple[Cluster, ...] = ()
    moves: tuple[Move, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> _State:
        leaving = tuple(Cluster(**{**c, "addresses": tuple(c["addresses"])}) for c in document["leaving"])
        return cls(RouteTable.from_json(document["table"]), leaving, tuple(Move(**m) for m in document["moves"]))

    def followed_by(self, table: RouteTable, *, now_ms: int) -> _State:
        names = {c.name for c in table.clusters}
        leaving = {c.name: c for c in (*self.leaving, *self.table.clusters) if c.name not in names}
        known = moves(self.table, table, self.moves, now_ms=now_ms, keep_ms=envoy.UPLOAD_LIMIT_S * 1000)
        return _State(table, tuple(leaving.values()), known)

    def rendered_clusters(self) -> list[dict[str, Any]]:
        present = (*self.table.clusters, *self.leaving)
        return envoy.clusters((*present, *stand_ins(present, self.moves)))


def _render(generation: int, resources: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the version and the content of a file: the same resources in the same generation are the same version."""
    digest = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()
    version = f"{generation}-{digest[:16]}"
    return version, json.dumps(envoy.discovery(version, resources), indent=1, sort_keys=True) + "\n"


@contextlib.contextmanager
def _restored_on_failure(path: Path) -> Iterator[None]:
    before = _read(path)
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        elif _read(path) != before:
            write_text(path, before)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _refusals(told: Mapping[str, Any]) -> int:
    return int(told.get("update_rejected", 0)) + int(told.get("update_failure", 0))


def _polls(deadline: float) -> Iterator[None]:
    """Yield at once, and then at growing distances, until the deadline is over."""
    pause = _FIRST_POLL_S
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(_LAST_POLL_S, pause * 1.5)
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(log: Path, start: int = 0) -> str:
    """Return the last lines of a log, none from before the byte `start`."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _LOG_TAIL))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
