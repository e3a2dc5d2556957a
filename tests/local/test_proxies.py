"""Packages through a company's proxy and with its own certificates, by real uv."""

from __future__ import annotations

import datetime
import os
import re
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mlflow_domino.config import parse
from mlflow_domino.environment import Built, Environments
from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.home import Home
from tests.packages import Index, make_harness

#: A name that nobody but the proxy knows.
HOST = "packages.company.invalid"


@dataclass(frozen=True)
class Authority:
    """A company's own certificate, and what it vouches for: HOST's, with its key."""

    certificate: Path
    host: tuple[Path, Path]

    @classmethod
    def make(cls, folder: Path) -> Authority:
        keys = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        company = _signed("Company", keys[0], keys[0], x509.BasicConstraints(ca=True, path_length=0))
        host = _signed(HOST, keys[1], keys[0], x509.SubjectAlternativeName([x509.DNSName(HOST)]))
        plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
        files = {
            "company.pem": company.public_bytes(serialization.Encoding.PEM),
            "host.pem": host.public_bytes(serialization.Encoding.PEM),
            "host.key": keys[1].private_bytes(serialization.Encoding.PEM, form, plain),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return cls(folder / "company.pem", (folder / "host.pem", folder / "host.key"))


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Company")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=True)
        .sign(by, hashes.SHA256())
    )


class Proxy(socketserver.ThreadingTCPServer):
    """Lets callers through to one place, whatever name they ask for, and remembers what they said."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Tunnel)

    @property
    def url(self) -> str:
        return f"http://ada:s3cr3t-proxy@127.0.0.1:{self.server_address[1]}"


class _Tunnel(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        lines = [line for line in iter(self.rfile.readline, b"\r\n") if line]
        self.server.asked.append(b"".join(lines).decode())
        with socket.create_connection(("127.0.0.1", self.server.port)) as other:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            pairs = {self.connection: other, other: self.connection}
            while True:
                for ready in select.select(list(pairs), (), ())[0]:
                    try:
                        data = ready.recv(65536)
                        pairs[ready].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return


@pytest.fixture
def company(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@pytest.fixture
def index(tmp_path: Path, company: Authority) -> Iterator[Index]:
    with Index(make_harness(tmp_path / "wheels"), tls=company.host) as index:
        yield index


@pytest.fixture
def proxy(index: Index) -> Iterator[Proxy]:
    with Proxy(index.port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


class Company:
    """A home on a machine that reaches packages by a proxy only."""

    def __init__(self, folder: Path) -> None:
        self.environments = Environments(Home(folder / "home"))
        self.log: list[str] = []

    def build(self) -> Built:
        settings, secrets = parse({"index_url": f"https://{HOST}/simple"})
        return self.environments.build(None, settings, secrets, self.log.append)


@pytest.fixture
def machine(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Company:
    told = re.compile(r"(PIP|UV)_\w+|(?i:\w+_proxy)|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE")
    for name in filter(told.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return Company(tmp_path)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"])
def test_packages_come_by_the_proxy_with_the_companys_certificate(
    machine: Company, proxy: Proxy, company: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(company.certificate))
    built = machine.build()
    assert (built.python.parent.parent / "domino.json").is_file()
    assert proxy.asked
    assert all(asked.startswith(f"CONNECT {HOST}:443 ") for asked in proxy.asked)
    assert all("proxy-authorization: basic" in asked.lower() for asked in proxy.asked)
    said = "\n".join(machine.log)
    assert "s3cr3t-proxy" not in said + built.lock_text


def test_a_certificate_that_nobody_vouches_for_is_named(machine: Company) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        machine.build()
    assert re.search(r"(?i)certificate|UnknownIssuer", str(caught.value))
    assert "s3cr3t-proxy" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    machine: Company, company: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company.certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:s3cr3t-proxy@127.0.0.1:1")
    with pytest.raises(EnvironmentFailed) as caught:
        machine.build()
    assert HOST in str(caught.value)
    assert "s3cr3t-proxy" not in str(caught.value) + "\n".join(machine.log)
