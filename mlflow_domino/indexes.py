"""Where packages come from: the caller's indexes, the model's, and what uv and pip are told on this machine.

uv reads its own configuration but not pip's, which is where most machines name their mirror: pip's is translated,
unless uv has been told itself. Everything goes to uv through its environment, never through arguments, which any
user of the machine can read.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.config import Secrets, Settings
from mlflow_domino.errors import InvalidInput
from mlflow_domino.requirements import Requirements, references

__all__ = ["Indexes"]

# uv's settings that say where packages come from and how they are fetched, not what is resolved.
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TMPDIR|XDG_\w+|NETRC|SSH_AUTH_SOCK|GIT_SSH\w*|GIT_SSL_\w+|SSL_CERT_\w+|"
    r"REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(?:https?|all|no)_proxy|(?:HTTPS?|ALL|NO)_PROXY|"
    r"CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|PKG_CONFIG_PATH|CUDA_HOME|"
    r"UV_(?:CACHE_DIR|CONFIG_FILE|NO_CONFIG|NATIVE_TLS|SYSTEM_CERTS|INSECURE_HOST|OFFLINE|KEYRING_PROVIDER|LINK_MODE|"
    r"HTTP_\w+|REQUEST_TIMEOUT|CONCURRENT_\w+|DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|"
    r"INDEX_STRATEGY|TORCH_BACKEND|EXCLUDE_NEWER|PYTHON_INSTALL_\w+|PYTHON_DOWNLOADS\w*)"
)
_UV_INDEXES = re.compile(r"UV_(?:DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX)")
_REFERENCE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_URL_USER = re.compile(r"(?<=://)[^/\s@]+@")


@dataclass(frozen=True)
class Indexes:
    """Everything that uv gets in its environment.

    Attributes
    ----------
    variables : tuple of (str, str)
        uv's whole environment.
    passwords : tuple of str
        What must never be seen, as it stands in URLs and decoded.
    """

    variables: tuple[tuple[str, str], ...]
    passwords: tuple[str, ...]

    @classmethod
    def find(
        cls,
        settings: Settings,
        secrets: Secrets,
        requirements: Requirements,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Indexes:
        """Put together what the caller, the model's files and this machine say; the first of them wins.

        Raises
        ------
        InvalidInput
            When a line refers to a variable that is not set.
        """
        environment = os.environ if environment is None else environment
        values = _referenced(requirements, settings, secrets, environment)
        pip = _pip(environment)
        passed = {name: value for name, value in environment.items() if _PASSED.fullmatch(name) and value}

        default = _expand(secrets.index_url or requirements.index_url, values)
        extra = [_expand(url, values) for url in (*secrets.extra_index_url, *requirements.extra_index_url)]
        links = [_expand(link, values) for link in (*settings.find_links, *requirements.find_links)]
        if not _uv_is_told(environment):
            default = default or pip.get("index-url", "")
            extra += pip.get("extra-index-url", "").split()
            links += pip.get("find-links", "").split()
        if default:
            passed.pop("UV_INDEX_URL", None)
            passed["UV_DEFAULT_INDEX"] = default
        _prepend(passed, "UV_EXTRA_INDEX_URL", extra, " ")
        _prepend(passed, "UV_FIND_LINKS", [_absolute(link) for link in links], ",")
        _prepend(passed, "UV_INSECURE_HOST", [*requirements.trusted_hosts, *pip.get("trusted-host", "").split()], " ")
        if requirements.no_index or pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            passed["UV_NO_INDEX"] = "1"
        if settings.offline:
            passed["UV_OFFLINE"] = "1"
        # requirements.txt is written for pip, which takes the best file of all indexes. uv stops at the first index
        # that has the package at all, were it only for another Python; who wants that sets UV_INDEX_STRATEGY.
        passed.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
        _pass_certificates(passed, pip, environment)
        passwords = _passwords([*passed.values()]) | _decoded(requirements.credentials.values())
        passwords |= {value for name, value in values.items() if len(value) >= 6}
        passed |= values | {name: _expand(value, values) for name, value in requirements.credentials.items()}
        return cls(tuple(sorted(passed.items())), tuple(sorted(passwords, key=len, reverse=True)))

    def redact(self, text: str) -> str:
        for password in self.passwords:
            text = text.replace(password, "****")
        return text

    def refusing(self, package: str) -> list[str]:
        """Return the hosts of indexes that refuse us for a package, which uv reports as a package that is not there."""
        import requests  # 0.1 s, and only after a failure

        variables = dict(self.variables)
        urls = " ".join(variables.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL")).split()
        refused = []
        for url in urls:
            parts = urllib.parse.urlsplit(url)
            user, _, host = parts.netloc.rpartition("@")
            name, _, password = user.partition(":")
            address = urllib.parse.urlunsplit(parts._replace(netloc=host)).rstrip("/") + f"/{package}/"
            with contextlib.suppress(requests.RequestException, OSError):
                answer = requests.get(
                    address,
                    auth=(urllib.parse.unquote(name), urllib.parse.unquote(password)) if user else None,
                    verify=variables.get("SSL_CERT_FILE") or True,
                    timeout=5,
                )
                refused += [host] if answer.status_code in (401, 403) else []
        return refused

    def key(self) -> str:
        """Return a digest of what decides a resolution: the indexes, without users and passwords."""
        deciding = [
            (name, _URL_USER.sub("", value))
            for name, value in self.variables
            if _UV_INDEXES.fullmatch(name)
            or name in ("UV_INDEX_STRATEGY", "UV_TORCH_BACKEND", "UV_EXCLUDE_NEWER", "UV_CONFIG_FILE", "UV_NO_CONFIG")
        ]
        return hashlib.sha256(repr(deciding).encode("utf-8", "surrogateescape")).hexdigest()


def _referenced(
    requirements: Requirements, settings: Settings, secrets: Secrets, environment: Mapping[str, str]
) -> dict[str, str]:
    urls = (secrets.index_url, *secrets.extra_index_url, *settings.find_links)
    values = {}
    for name in dict.fromkeys((*references(requirements), *_REFERENCE.findall(" ".join(urls)))):
        value = secrets.variables.get(name, environment.get(name))
        if value is None:
            asking = next((item for item in requirements.items if f"${{{name}}}" in item.text), None)
            where = f"{asking.where}: " if asking else ""
            raise InvalidInput(f"{where}${{{name}}} is not set; set it with -C env.{name}=… or in the shell.")
        values[name] = value
    return values


def _expand(text: str, values: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: values.get(match[1], match[0]), text)


def _prepend(passed: dict[str, str], name: str, first: Iterable[str], separator: str) -> None:
    both = [*first, *passed.get(name, "").split(separator)]
    joined = separator.join(dict.fromkeys(item for item in both if item))
    if joined:
        passed[name] = joined


def _absolute(link: str) -> str:
    return link if "://" in link else str(Path(link).expanduser().absolute())


def _decoded(users: Iterable[str]) -> set[str]:
    found = set()
    for user in users:
        for part in {user, user.partition(":")[2] or user}:
            found |= {part, urllib.parse.unquote(part)}
    return {part for part in found if len(part) >= 3 and not part.startswith("${")}


def _passwords(values: Iterable[str]) -> set[str]:
    return _decoded(match[0][:-1] for value in values for match in _URL_USER.finditer(value))


def _uv_is_told(environment: Mapping[str, str]) -> bool:
    """Whether uv's own environment or configuration names an index, so that pip's is none of its business."""
    if any(_UV_INDEXES.fullmatch(name) and value for name, value in environment.items()):
        return True
    home = Path(environment.get("HOME") or Path.home())
    files = [Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml", Path("/etc/uv/uv.toml")]
    if environment.get("UV_CONFIG_FILE"):
        files = [Path(environment["UV_CONFIG_FILE"])]
    names = re.compile(r"^\s*(\[\[(pip\.)?index\]\]|(pip\.)?(index|(extra-)?index-url|find-links|no-index)\s*=)", re.M)
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if names.search(file.read_text("utf-8")):
                return True
    return False


def _pip(environment: Mapping[str, str]) -> dict[str, str]:
    """Return pip's own settings of this machine: its files, later ones win, then its variables."""
    home = Path(environment.get("HOME") or Path.home())
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    named = environment.get("PIP_CONFIG_FILE", "")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip" / "pip.conf", user]
    files += [Path(sys.prefix) / "pip.conf", *([Path(named)] if named else [])]
    found: dict[str, str] = {}
    for file in files if named != os.devnull else ():
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):
            parser.read_string(file.read_text("utf-8"))
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            found[name[len("PIP_") :].lower().replace("_", "-")] = value
    return found


def _pass_certificates(passed: dict[str, str], pip: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Give uv the certificates that pip, requests and curl are told; it reads SSL_CERT_FILE only."""
    told = (pip.get("cert"), environment.get("REQUESTS_CA_BUNDLE"), environment.get("CURL_CA_BUNDLE"))
    file = next((file for file in told if file and Path(file).is_file()), None)
    if file and not passed.get("SSL_CERT_FILE"):
        passed["SSL_CERT_FILE"] = file
    if pip.get("default-timeout", pip.get("timeout")):
        passed.setdefault("UV_HTTP_TIMEOUT", pip.get("default-timeout", pip.get("timeout", "")))
