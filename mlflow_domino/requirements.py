"""What a model or a project needs installed: read as pip reads it, with the file and the line of everything.

An MLflow model says it in ``requirements.txt`` (with ``-r`` and ``-c`` files beside it); where that is missing, in
``python_env.yaml`` or in the pip section of ``conda.yaml``. A project says it in the setting ``environment``; its own
``requirements.txt`` is never read. Credentials in URLs are taken out and replaced by ``${NAME}``, which uv fills in
from its environment: what is written to disk, shown or hashed never holds them.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.utils import canonicalize_name

from mlflow_domino.errors import InvalidInput

__all__ = [
    "MODEL_FOLDER",
    "ModelFacts",
    "Requirement",
    "Requirements",
    "listed",
    "of_model",
    "read_facts",
    "references",
]

#: Variable that stands for the model's folder in lines about files inside the model.
MODEL_FOLDER = "DOMINO_MODEL_FOLDER"
_REFERENCE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_IGNORED = {"prefer_binary": "--prefer-binary", "use_features": "--use-feature", "require_hashes": "--require-hashes"}


@dataclass(frozen=True)
class Requirement:
    """One line that asks for a package, or constrains one.

    Attributes
    ----------
    name : str
        Normalised; empty where only building it tells.
    text : str
        What uv is given, without hashes and credentials.
    where : str
        File and line, such as ``requirements.txt:7``.
    hashes : tuple of str
        As in ``--hash=sha256:…``; only these files are accepted then.
    """

    name: str
    text: str
    where: str
    hashes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Requirements:
    """All that a model or a project asks for.

    Attributes
    ----------
    items, constraints : tuple of Requirement
    index_url : str
        The last ``--index-url``, empty where there is none; like the other URLs it may hold a password.
    build_options : tuple of str
        ``--no-binary`` and ``--only-binary`` lines.
    credentials : mapping of str to str
        What was taken out of URLs, by the name of the variable that stands for it.
    contents : tuple of (str, str)
        Files and folders inside the model that are installed, with their SHA-256.
    notes : tuple of str
        What is done otherwise than the files say.
    """

    items: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    index_url: str = ""
    extra_index_url: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    prerelease: bool = False
    build_options: tuple[str, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict)
    contents: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def named(self, name: str) -> Requirement | None:
        return next((item for item in self.items if item.name == name), None)

    def with_items(self, added: Iterable[Requirement]) -> Requirements:
        return replace(self, items=(*self.items, *added))


@dataclass(frozen=True)
class ModelFacts:
    """What the files of an MLflow model say about running it; empty where they do not say."""

    python_version: str = ""
    mlflow_version: str = ""
    loader_module: str = ""
    flavors: tuple[str, ...] = ()


def read_facts(folder: Path) -> ModelFacts:
    """Read the MLmodel file, which must be there, and for the Python version the environment files beside it."""
    if not (folder / "MLmodel").is_file():
        raise InvalidInput(f"{folder} holds no MLflow model: there is no MLmodel file in it.")
    mlmodel = _mapping(folder / "MLmodel")
    flavors = mlmodel.get("flavors")
    flavors = flavors if isinstance(flavors, dict) else {}
    pyfunc = flavors.get("python_function")
    pyfunc = pyfunc if isinstance(pyfunc, dict) else {}
    version = pyfunc.get("python_version") or _mapping(folder / "python_env.yaml").get("python") or ""
    if not version:
        conda = [entry for _, entry in _entries(folder / "conda.yaml", "dependencies") if isinstance(entry, str)]
        version = next((entry.split("=")[-1] for entry in conda if re.match(r"python\s*=", entry)), "")
    return ModelFacts(
        python_version=str(version).strip(),
        mlflow_version=str(mlmodel.get("mlflow_version") or ""),
        loader_module=str(pyfunc.get("loader_module") or ""),
        flavors=tuple(sorted(map(str, flavors))),
    )


def of_model(folder: Path) -> Requirements:
    """Read what the model in a folder needs.

    Raises
    ------
    InvalidInput
        With file and line, for a line that pip would not accept, or a file that is not there.
    """
    reader = _Reader(folder)
    if (folder / "requirements.txt").is_file():
        reader.read(folder / "requirements.txt", "requirements.txt")
    elif (folder / "python_env.yaml").is_file():
        reader.entries(_entries(folder / "python_env.yaml", "dependencies"), "python_env.yaml")
    elif (folder / "conda.yaml").is_file():
        reader.conda(folder / "conda.yaml")
    else:
        reader.notes.append("the model names no requirements; only what MLflow needs to load it is installed")
    # MLflow puts the build tools into the environment too, and older packages import pkg_resources when they run,
    # which setuptools 81 is the first not to have.
    for line, entry in _entries(folder / "python_env.yaml", "build_dependencies"):
        if isinstance(entry, str) and re.match(r"setuptools\b", entry) and not reader.has("setuptools"):
            reader.entries([(line, "setuptools<81" if entry.strip() == "setuptools" else entry)], "python_env.yaml")
    return reader.result()


def listed(lines: Iterable[str]) -> Requirements:
    """Read the requirements of the setting ``environment``: no files, no options, no passwords."""
    reader = _Reader(None)
    for number, line in enumerate(lines, start=1):
        where = f"environment[{number}]"
        if line.lstrip().startswith("-"):
            raise InvalidInput(f"{where}: {line!r} is an option; name packages here, one in each item.")
        reader.entries([(0, line)], where)
    if reader.credentials:
        raise InvalidInput(
            "environment: a URL holds a user or a password; write ${NAME} in its place and set it with -C env.NAME=…"
        )
    return reader.result()


def references(requirements: Requirements) -> tuple[str, ...]:
    """Return the names of the variables that lines and URLs refer to as ``${NAME}``, apart from our own."""
    texts = [item.text for item in (*requirements.items, *requirements.constraints)]
    texts += [requirements.index_url, *requirements.extra_index_url, *requirements.find_links]
    texts += requirements.credentials.values()
    found = {name for text in texts for name in _REFERENCE.findall(text)}
    return tuple(sorted(found - set(requirements.credentials) - {MODEL_FOLDER}))


class _Reader:
    """Collects lines, files within files, and options, in the order in which pip would see them."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.items: list[Requirement] = []
        self.constraints: list[Requirement] = []
        self.credentials: dict[str, str] = {}
        self.contents: dict[str, str] = {}
        self.notes: list[str] = []
        self.options: dict[str, Any] = {}
        self.lists: dict[str, list[str]] = {}
        self.open_files: list[Path] = []

    def has(self, name: str) -> bool:
        return any(item.name == name for item in self.items)

    def result(self) -> Requirements:
        return Requirements(
            items=tuple(self.items),
            constraints=tuple(self.constraints),
            index_url=self.options.get("index_url", ""),
            extra_index_url=tuple(self.lists.get("extra_index_urls", ())),
            find_links=tuple(self.lists.get("find_links", ())),
            trusted_hosts=tuple(self.lists.get("trusted_hosts", ())),
            no_index=bool(self.options.get("no_index")),
            prerelease=bool(self.options.get("pre")),
            build_options=tuple(self.lists.get("build_options", ())),
            credentials=self.credentials,
            contents=tuple(sorted(self.contents.items())),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def read(self, path: Path, name: str, *, into: list[Requirement] | None = None) -> None:
        self.open_files.append(path.resolve())
        self.file(path, lambda line: f"{name}:{line}", path.parent, self.items if into is None else into)
        self.open_files.pop()

    def entries(self, entries: Iterable[tuple[int, Any]], name: str) -> None:
        for line, entry in entries:
            where = f"{name}:{line}" if line else name
            if not isinstance(entry, str):
                raise InvalidInput(f"{where}: a requirement is wanted, not {entry!r}.")
            self.entry(entry, where)

    def entry(self, text: str, where: str) -> None:
        # The parser's own way to read a string fails with a NameError (32.0.1).
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
            file.write(text)
            file.flush()
            self.file(Path(file.name), lambda _: where, self.folder or Path(), self.items)

    def conda(self, path: Path) -> None:
        for line, entry in _entries(path, "dependencies"):
            if isinstance(entry, dict):
                self.entries(entry["pip"], path.name)
            elif not re.match(r"(python|pip)\b", str(entry)):
                self.notes.append(f"{path.name}:{line}: {entry} is a conda package and is not installed")

    def file(self, path: Path, where: Callable[[int], str], base: Path, into: list[Requirement]) -> None:
        from pip_requirements_parser import RequirementsFile  # 0.1 s, and most verbs never read requirements

        try:
            parsed = RequirementsFile.from_file(str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{where(1)}: the file cannot be read: {error}.") from error
        lines = [*parsed.invalid_lines, *parsed.options, *parsed.requirements]
        for entry in sorted(lines, key=lambda entry: entry.requirement_line.line_number):
            at = where(entry.requirement_line.line_number)
            if hasattr(entry, "error_message"):
                raise InvalidInput(f"{at}: {_first_line(entry)}")
            if hasattr(entry, "options"):
                self.option(entry.options, at, base, into)
            else:
                self.requirement(entry, at, into)

    def option(self, options: Mapping[str, Any], at: str, base: Path, into: list[Requirement]) -> None:
        for key, value in options.items():
            if key in ("requirements", "constraints"):
                for name in value:
                    self.nested(name, at, base, self.constraints if key == "constraints" else into)
            elif key in ("no_binary", "only_binary"):
                flag = "--" + key.replace("_", "-")
                self.lists.setdefault("build_options", []).extend(
                    f"{flag} {name}" for name in ",".join(value).split(",")
                )
            elif key in _IGNORED:
                if key != "require_hashes":  # every lock has hashes
                    self.notes.append(f"{at}: {_IGNORED[key]} means nothing here")
            elif key == "find_links":
                found = [link if "://" in link else str((base / link).resolve()) for link in value]
                self.lists.setdefault(key, []).extend(found)
            elif isinstance(value, list):
                self.lists.setdefault(key, []).extend(value)
            elif key in ("index_url", "no_index", "pre"):
                self.options[key] = value
            else:
                raise InvalidInput(f"{at}: the option {key} is not supported.")

    def nested(self, name: str, at: str, base: Path, into: list[Requirement]) -> None:
        path = base / name
        if self.folder is None or "://" in name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidInput(f"{at}: {name} is not inside the model; log the model with its requirements resolved.")
        if not path.is_file():
            raise InvalidInput(f"{at}: {name}: no such file in the model.")
        if path.resolve() in self.open_files:
            raise InvalidInput(f"{at}: {name} includes itself.")
        self.read(path, os.path.relpath(path, self.folder), into=into)

    def requirement(self, entry: Any, at: str, into: list[Requirement]) -> None:
        name = canonicalize_name(entry.name) if entry.name else ""
        marker = f" ; {entry.marker}" if entry.marker else ""
        if entry.link is None:
            text = str(entry.req)
            try:
                Parsed(text)
            except InvalidRequirement as error:
                raise InvalidInput(f"{at}: {str(error).splitlines()[0]}") from None
        elif entry.link.scheme in ("http", "https") or entry.link.is_vcs:
            text = self.hidden(re.sub(r"#egg=[^&]*&?", "#", entry.link.url).rstrip("#"))
        else:
            text = self.local(entry.link.url, at)
            name = name or _project_name(text)
        if entry.link is not None and name and not text.startswith(f"${{{MODEL_FOLDER}}}"):
            extras = f"[{','.join(sorted(entry.extras))}]" if entry.extras else ""
            text = f"{name}{extras} @ {text}"
        if entry.is_editable:
            self.notes.append(f"{at}: installed as a copy, not editable, since replicas share the environment")
        hashes = tuple(sorted(entry.hash_options or ()))
        into.append(Requirement(name, text + marker, at, hashes))

    def hidden(self, url: str) -> str:
        """Take the user and the password out of a URL, unless a variable stands there already."""
        parts = urllib.parse.urlsplit(url)
        user, at_sign, host = parts.netloc.rpartition("@")
        secret = user.partition(":")[2] or user
        if not at_sign or _REFERENCE.search(secret) or (parts.scheme.endswith("ssh") and ":" not in user):
            return url
        bare = urllib.parse.urlunsplit(parts._replace(netloc=host))
        name = "DOMINO_URL_" + hashlib.sha256(bare.encode()).hexdigest()[:12].upper()
        self.credentials[name] = user
        return urllib.parse.urlunsplit(parts._replace(netloc=f"${{{name}}}@{host}"))

    def local(self, url: str, at: str) -> str:
        """Return the line for a wheel or a folder inside the model, whatever folder the model is in."""
        path = url[len("file:") :].replace("//localhost/", "/", 1) if url.startswith("file:") else url
        path = urllib.parse.unquote(re.sub("^//+", "/", path)) if url.startswith("file:") else path
        if self.folder is None:
            raise InvalidInput(f"{at}: {path} is a file of this machine; put it into a folder that find_links names.")
        full = (self.folder / path).resolve()
        if not full.exists() or not full.is_relative_to(self.folder.resolve()):
            raise InvalidInput(f"{at}: {path}: no such file in the model; log the model with this file inside.")
        inside = full.relative_to(self.folder.resolve()).as_posix()
        self.contents[inside] = _content_digest(full)
        return f"${{{MODEL_FOLDER}}}/{inside}"


def _first_line(entry: Any) -> str:
    message = str(entry.error_message).splitlines()[0]
    message = re.sub(r"^pip_requirements_parser: error: |^Invalid requirement: : ", "", message)
    return f"{entry.requirement_line.line.strip()!r}: {message.rstrip('.')}."


def _project_name(text: str) -> str:
    """Return the package that a wheel's file name says; a folder's is only known when it is built."""
    match = re.search(r"/([A-Za-z0-9][A-Za-z0-9_.]*)-[^/]+\.whl$", text)
    return canonicalize_name(match[1]) if match else ""


def _content_digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(os.fsencode(file.relative_to(path.parent)) + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _load(path: Path, how: Callable[[str], Any]) -> Any:
    try:
        return how(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path.name} cannot be read as YAML: {error}") from error


def _mapping(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded = _load(path, lambda text: yaml.load(text, Loader=loader))  # noqa: S506 - both are safe loaders
    return loaded if isinstance(loaded, dict) else {}


def _entries(path: Path, key: str) -> list[tuple[int, Any]]:
    """Return (line, entry) of a YAML list; conda's pip section as ``{"pip": [(line, entry), …]}``."""
    root = _load(path, yaml.compose)
    if not isinstance(root, yaml.MappingNode):
        return []
    found = [value for name, value in root.value if name.value == key]
    if not found or not isinstance(found[0], yaml.SequenceNode):
        return []
    entries: list[tuple[int, Any]] = []
    for node in found[0].value:
        if isinstance(node, yaml.MappingNode):
            pip = [value for name, value in node.value if name.value == "pip" and isinstance(value, yaml.SequenceNode)]
            inner = [(item.start_mark.line + 1, item.value) for value in pip for item in value.value]
            entries.append((node.start_mark.line + 1, {"pip": inner}))
        else:
            entries.append((node.start_mark.line + 1, node.value))
    return entries
