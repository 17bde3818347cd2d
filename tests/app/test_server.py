"""Addresses, keys, and the life of a server."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from windlass.app.http.keys import KeyFile, hash_key, matching_hash
from windlass.app.http.server import listen
from windlass.core.errors import UsageError
from windlass.core.settings import ServerSettings


def test_a_port_in_use_is_named_with_its_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} is in use.*--port"):
            listen("127.0.0.1", port)


def test_the_default_port_moves_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("windlass.app.http.server.ServerSettings", lambda: ServerSettings(port=port))
        listener, notices = listen("127.0.0.1", port)
        with listener:
            taken = listener.getsockname()[1]
        assert port < taken <= port + 10
        assert str(port) in notices[0] and str(taken) in notices[0]


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "999.1.1.1"])
def test_addresses_that_are_not_ours(host: str) -> None:
    with pytest.raises(UsageError, match="address"):
        listen(host, 0)


def test_keys_are_kept_as_hashes_for_the_owner_alone(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    assert keys.tenants() == ()
    first, second = keys.add(), keys.add()
    content = (tmp_path / "keys.toml").read_text()
    assert first not in content and second not in content
    (owner,) = keys.tenants()
    assert owner.hashes == (hash_key(first), hash_key(second)) and owner.admin
    assert matching_hash(second, owner.hashes) == hash_key(second)
    assert matching_hash(second + "x", owner.hashes) is None
    assert stat.S_IMODE(os.stat(tmp_path / "keys.toml").st_mode) == 0o600


@pytest.mark.parametrize("content", ["sha256 = 5", "sha256 = ['xyz']", "sha256 = [1]", "not toml", "sha256 = ['ab']"])
def test_a_damaged_key_file_never_opens_the_door(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match="damaged"):
        KeyFile(path).tenants()


_PROGRAM = """
    import sys, pathlib, importlib.util
    spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
    fakes = importlib.util.module_from_spec(spec); sys.modules["fakes"] = fakes; spec.loader.exec_module(fakes)
    from windlass.app.http.server import serve
    pipeline = fakes.ScriptedPipeline(pathlib.Path(sys.argv[2]))
    def ready(started):
        print(started.port, started.new_key or "-", started, flush=True)
    serve(pipeline, sys.argv[3], 0, page=False, on_ready=ready)
    print("ended", flush=True)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_whole_life_from_start_to_sigterm(tmp_path: Path, host: str) -> None:
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(conftest), str(tmp_path), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, key, url = process.stdout.readline().split()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
                assert client.get("/health").status_code == 200
                if host == "0.0.0.0":
                    assert key.startswith("wl-")
                    assert client.get("/v1/models").status_code == 401
                    assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
                else:
                    assert key == "-"
                    assert url == f"http://localhost:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stdout.read().strip() == "ended"
        assert process.wait(20) == 0
