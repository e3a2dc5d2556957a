"""Calls of webhooks whose receivers are up to something."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.gateway import webhook
from mlflow_domino.gateway.webhook import tell
from mlflow_domino.queue.prediction import Delivery
from tests.certificates import certificate


@contextlib.contextmanager
def dripping(tls: tuple[Path, Path] | None) -> Iterator[int]:
    """Yield the port of a receiver that takes a call, and answers a byte at a time for as long as it is listened to."""
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*tls)
                connection = context.wrap_socket(connection, server_side=True)
            connection.sendall(b"HTTP/1.1")
            while not ended.wait(0.02):
                connection.sendall(b"x")
            connection.close()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=listen)
        accepting.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_never_comes_to_an_end_is_given_up(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = certificate(tmp_path, "receiver")
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    monkeypatch.setattr(webhook, "_WHOLE_S", 0.5)
    with dripping((chain, key) if scheme == "https" else None) as port:
        delivery = Delivery("d", "p", "a" * 24, f"{scheme}://127.0.0.1:{port}/", "", 1, 0, {"status": "succeeded"})
        told = tell(delivery, private=True)
    assert told.again
    assert told.reason.startswith("it could not be called: ")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fd00::1", "fe80::1%eth0",
        "fec0::1", "ff02::1", "::10.0.0.1", "::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1",
    ],
)  # fmt: skip
def test_an_address_that_leads_into_this_network_is_private_however_it_is_written(address: str) -> None:
    assert not webhook.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2600::1", "64:ff9b::8.8.8.8"])
def test_an_address_of_the_internetis_public(address: str) -> None:
    assert webhook.is_public(address)
