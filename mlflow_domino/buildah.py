"""Images without a container engine: the program buildah, which needs no service, no root and no privileges.

It keeps images where it and Podman keep the caller's own, on an overlay where the kernel lets it and as plain copies
where not. Programs run in a chroot, with this machine's network; what we build copies, and runs next to nothing.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from mlflow_domino.builder import Builder, Image, Log, moment, not_pulled, refused, unpack, whole_name
from mlflow_domino.errors import DominoError, EnvironmentFailed, Failed, NotFound, Unavailable
from mlflow_domino.holder import dead, holder

__all__ = ["Buildah"]

#: For what takes a moment, unless somebody else holds buildah's store.
_RUN_S = 300
_BUILD_S = 3600
_TAIL_LINES = 40
#: When an image was built: its own times are all 0, so that the same content gives the same layers.
_BUILT = "mlflow-domino.built"
#: Begins the name of a working container; whose it is follows.
_OURS = "mlflow-domino-"
_UNKNOWN = ("image not known", "tag not known", "no such image")
# Runs as the root of a rootless user's own world where that is needed to look into an image.
_ARCHIVE = """
import os, sys, tarfile
root = os.path.realpath(sys.argv[1])
folder = os.path.realpath(root + "/" + sys.argv[2])
if not (folder + "/").startswith(root + "/") or not os.path.isdir(folder):
    sys.exit("no such folder")
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    tar.add(folder, arcname=".")
"""


class Buildah(Builder):
    """Builds images with the program `buildah` on the PATH."""

    def check(self) -> str:
        said = self._said("version", "--json")
        with tempfile.TemporaryFile() as output:
            warned = self._run([_program(), "images", "--quiet"], output)  # opens the store, where most go wrong
        if "no subuid ranges found" in warned:
            user = getpass.getuser()
            raise Unavailable(
                f"buildah cannot unpack images for {user}, who has no range of ids in /etc/subuid: `usermod "
                f"--add-subuids 100000-165535 --add-subgids 100000-165535 {user}` gives one."
            )
        return f"buildah {json.loads(said).get('version', '')}".strip()

    # ---- images ------------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> Image | None:
        for name in _names(reference):
            with contextlib.suppress(NotFound):
                return self._inspect(name)
        return None

    def images(self, repository: str) -> list[Image]:
        wanted = [f"{name}:" for name in _names(repository)] if repository else [""]
        listed = json.loads(self._said("images", "--json", "--no-trunc") or "[]")
        found = {
            entry["id"]: tuple(map(_short, entry["names"]))
            for entry in listed or ()
            if any(name.startswith(start) for name in entry.get("names") or () for start in wanted)
        }
        return [self._inspect(identity, names) for identity, names in found.items()]

    def pull(self, reference: str, log: Log) -> Image:
        found = self.image(reference)
        if found is not None:
            return found
        log(f"pulling {reference} …")
        name = _names(reference)[0]
        try:
            self._follow(["pull", *_security(name), f"docker://{name}"], log, f"pull {reference}")
        except Failed as error:
            raise not_pulled(reference, error.message, login="buildah login") from error
        return self._there(reference, "pulled")

    def build(self, context: IO[bytes], tag: str, *, arguments: Mapping[str, str], log: Log) -> Image:
        options = ["--isolation", "chroot", "--format", "docker", "--layers=false", "--pull-never"]
        options += ["--http-proxy=false", "--timestamp", "0", "--label", f"{_BUILT}={int(time.time())}"]
        for name, value in arguments.items():
            options += ["--build-arg", f"{name}={value}"]
        try:
            self._follow(["build", *options, "--tag", _names(tag)[0], "-"], log, f"build {tag}", given=context)
        except Failed as error:
            raise EnvironmentFailed(f"build {tag} failed: {error.message}", log_tail=error.log_tail) from error
        return self._there(tag, "built")

    def run(self, image: str, command: Sequence[str]) -> str:
        with self._container(image) as made:
            try:
                return self._said("run", "--isolation", "chroot", made, "--", *command)
            except Failed as error:
                raise Failed(f"{command[0]} in {image}: {error.message}", log_tail=error.log_tail) from error

    def extract(self, image: str, path: str, into: Path) -> None:
        with self._container(image) as made, tempfile.TemporaryFile() as archive:
            argv = [sys.executable, "-I", "-S", "-c", _ARCHIVE]
            try:
                if os.geteuid() == 0:
                    self._run([*argv, self._said("mount", made).strip(), path], archive)
                else:
                    script = 'exec "$@" "$root" "$folder"'
                    unshare = [_program(), "unshare", "--mount", f"root={made}", "/bin/sh", "-c", script, "sh", *argv]
                    self._run(unshare, archive, {"folder": path})
            except Failed as error:
                raise NotFound(f"{image} has no folder {path}: {error.message}") from error
            archive.seek(0)
            unpack(archive, into)

    def tag(self, image: str, reference: str) -> None:
        self._said("tag", self._known(image), _names(reference)[0])

    def push(self, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        name = _names(reference)[0]
        with tempfile.NamedTemporaryFile("r") as digest, _credentials(name, user) as credentials:
            options = [*_security(name), *credentials, "--format", "v2s2", "--digestfile", digest.name]
            try:
                self._follow(["push", *options, self._known(reference), f"docker://{name}"], log, f"push {reference}")
            except Failed as error:
                raise refused(reference, error.message, login="buildah login", log_tail=error.log_tail) from error
            return Path(digest.name).read_text().strip()

    def remove_image(self, reference: str) -> None:
        with contextlib.suppress(NotFound):
            self._said("rmi", self._known(reference))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _known(self, reference: str) -> str:
        """Return the name under which buildah has an image, or the name itself."""
        for name in _names(reference):
            with contextlib.suppress(NotFound):
                self._inspect(name)
                return name
        return reference

    def _there(self, reference: str, verb: str) -> Image:
        found = self.image(reference)
        if found is None:
            raise EnvironmentFailed(f"The image {reference} was {verb}, and is not there; look at `buildah images`.")
        return found

    def _inspect(self, name: str, names: tuple[str, ...] = ()) -> Image:
        document = json.loads(self._said("inspect", "--type", "image", name))
        config = json.loads(document["Config"])
        labels = (config.get("config") or {}).get("Labels") or {}
        layers = json.loads(document.get("Manifest") or "{}").get("layers") or ()
        return Image(
            f"sha256:{document['FromImageID'].removeprefix('sha256:')}",
            names or tuple(map(_short, filter(None, [document.get("FromImage")]))),
            tuple((config.get("rootfs") or {}).get("diff_ids") or ()),
            sum(int(layer.get("size", 0)) for layer in layers),
            float(labels[_BUILT]) if _BUILT in labels else moment(str(config.get("created", ""))),
        )

    @contextlib.contextmanager
    def _container(self, image: str) -> Iterator[str]:
        """Make a working container, and remove it, with those that killed commands left."""
        for left in json.loads(self._said("containers", "--json") or "[]") or ():
            name = str(left.get("containername", ""))
            if name.startswith(_OURS) and dead(name.removeprefix(_OURS)):
                with contextlib.suppress(DominoError):  # another command is about to remove it, too
                    self._said("rm", name)
        made = self._said("from", "--pull-never", "--name", f"{_OURS}{holder()}", self._known(image)).strip()
        try:
            yield made
        finally:
            self._said("rm", made)

    def _said(self, *arguments: str) -> str:
        with tempfile.TemporaryFile() as output:
            self._run([_program(), *arguments], output)
            output.seek(0)
            return output.read().decode("utf-8", "replace")

    def _run(self, argv: Sequence[str], output: IO[bytes], variables: Mapping[str, str] | None = None) -> str:
        """Run a program; return what it said on its standard error."""
        try:
            finished = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, timeout=_RUN_S,
                env={**_environment(), **(variables or {})}, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{argv[0]} {argv[1]} did not end within {_RUN_S} s.") from error
        told = finished.stderr.decode("utf-8", "replace")
        if finished.returncode:
            said = _essence(told)
            if any(word in said for word in _UNKNOWN):
                raise NotFound(said)
            raise Failed(said, log_tail="\n".join(told.splitlines()[-_TAIL_LINES:]))
        return told

    def _follow(self, arguments: Sequence[str], log: Log, what: str, given: IO[bytes] | None = None) -> None:
        from mlflow_domino.resolver import run  # here: most verbs build nothing, and start sooner without

        finished = run(
            [_program(), *arguments], environment=_environment(), cwd=Path("/"), log=log, deadline_s=_BUILD_S,
            given=given,
        )  # fmt: skip
        if finished.code is None:
            raise Failed(f"{what} did not end within {_BUILD_S} s", log_tail=finished.tail)
        if finished.code:
            raise Failed(_essence(finished.tail), log_tail=finished.tail)


def _program() -> str:
    found = shutil.which("buildah")
    if found is None:
        raise Unavailable("The program buildah is not installed (apt install buildah, dnf install buildah).")
    return found


def _environment() -> dict[str, str]:
    """Return the caller's own, in which credentials, certificates, proxies and stores are named."""
    return {**os.environ, "LC_ALL": "C"}


def _names(reference: str) -> tuple[str, ...]:
    """Return the whole names that a name may mean, first the one that Docker gives it."""
    whole = whole_name(reference)
    if whole == reference:
        return (reference,)
    return (whole, f"localhost/{reference}")  # what was built here under a short name, with buildah or Podman


def _short(name: str) -> str:
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/").removeprefix("localhost/")


def _security(name: str) -> list[str]:
    """Return the option for a registry of this very machine, which may do without TLS as with Docker."""
    host = name.partition("/")[0].rpartition(":")[0] or name.partition("/")[0]
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    return ["--tls-verify=false"] if loopback else []


@contextlib.contextmanager
def _credentials(name: str, user: tuple[str, str] | None) -> Iterator[list[str]]:
    """Yield the options that let buildah read user and password; arguments could be read by anybody."""
    if user is None:
        yield []
        return
    words = base64.b64encode(f"{user[0]}:{user[1]}".encode()).decode()
    document = {"auths": {name.partition("/")[0]: {"auth": words}}}
    with tempfile.NamedTemporaryFile("w", prefix=".credential.", suffix=".json") as file:  # mode 0600
        json.dump(document, file)
        file.flush()
        yield ["--authfile", file.name]


def _essence(said: str) -> str:
    """Return buildah's last error in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((at for at in reversed(range(len(lines))) if lines[at].startswith("Error: ")), len(lines) - 1)
    text = " ".join(lines[max(0, last) :]).removeprefix("Error: ")
    return text.removeprefix("1 error occurred: * ").rstrip(".") or "it said nothing"
