"""Files and batches: what comes in comes out, once, also after a crash."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from windlass.app.http.batches import BatchStore, read_lines
from windlass.app.http.file_store import FileStore
from windlass.app.http.keys import hash_key
from windlass.app.http.limits import Limits
from windlass.app.http.tenants import LOCAL, Tenant

MODEL = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    content = {"model": MODEL, "messages": [{"role": "user", "content": f"hello {custom_id}"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": content}


def upload(client: Any, lines: list[Any], **fields: Any) -> Any:
    content = "\n".join(json.dumps(entry) for entry in lines).encode()
    return client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch", **fields})


def start(client: Any, lines: list[Any], endpoint: str = CHAT) -> dict[str, Any]:
    file_id = upload(client, lines).json()["id"]
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": {"for": "test"}}
    reply = client.post("/v1/batches", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def finished(client: Any, batch_id: str) -> dict[str, Any]:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        batch = client.get(f"/v1/batches/{batch_id}").json()
        if batch["status"] in ("completed", "failed", "cancelled"):
            return dict(batch)
        time.sleep(0.02)
    raise AssertionError(f"the batch is still {batch['status']}")


def results(client: Any, file_id: str) -> dict[str, Any]:
    lines = client.get(f"/v1/files/{file_id}/content").text.splitlines()
    return {entry["custom_id"]: entry["response"] for entry in map(json.loads, lines)}


def test_a_file_comes_back_as_it_was(server: Any) -> None:
    with server.client() as client:
        stored = upload(client, [line("a")]).json()
        assert (stored["object"], stored["purpose"], stored["filename"]) == ("file", "batch", "in.jsonl")
        assert client.get(f"/v1/files/{stored['id']}").json() == stored
        assert client.get(f"/v1/files/{stored['id']}/content").json() == line("a")
        assert stored in client.get("/v1/files").json()["data"]
        assert client.delete(f"/v1/files/{stored['id']}").json()["deleted"]
        assert client.get(f"/v1/files/{stored['id']}").status_code == 404


@pytest.mark.parametrize("file_id", ["file-" + "0" * 24, "..%2Fkeys", "x", "file-" + "0" * 23 + "g"])
def test_files_that_are_not_there(server: Any, file_id: str) -> None:
    with server.client() as client:
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            assert client.get(path).status_code == 404
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        assert client.post("/v1/batches", json=body).status_code == 404


def test_every_line_is_answered_and_bad_ones_go_to_the_error_file(server: Any) -> None:
    with server.client() as client:
        batch = start(client, [line("a"), line("b", model="none"), line("c", max_tokens=2)])
        done = finished(client, batch["id"])
        assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert done["metadata"] == {"for": "test"} and done["completed_at"] >= done["created_at"]
        good, bad = results(client, done["output_file_id"]), results(client, done["error_file_id"])
        texts = {name: answer["body"]["choices"][0]["message"]["content"] for name, answer in good.items()}
        assert texts == {"a": "one two three four", "c": "one two"}
        assert bad["b"]["status_code"] == 404 and bad["b"]["body"]["error"]["code"] == "model_not_found"
        assert done["id"] in [entry["id"] for entry in client.get("/v1/batches").json()["data"]]


def test_embeddings_in_a_batch(server: Any) -> None:
    body = {"model": "all-minilm-l6-v2", "input": ["a", "b"]}
    with server.client() as client:
        batch = start(client, [{"custom_id": "e", "body": body}], "/v1/embeddings")
        done = finished(client, batch["id"])
        assert len(results(client, done["output_file_id"])["e"]["body"]["data"]) == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "holds no request"),
        (b"{", "not JSON"),
        (b"[1]", "a JSON object"),
        (b"[" * 5000, "recursion|not JSON"),
        (b'{"custom_id": "a"}', "body must be"),
        (b'{"body": {}}', "custom_id"),
        (b'{"custom_id": "a", "body": {"stream": true}}', "stream"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "url is"),
        (b'{"custom_id": "a", "method": "GET", "body": {}}', "method"),
        (b'{"custom_id": "a", "body": {}}\n{"custom_id": "a", "body": {}}', "another line"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_bad_lines_are_named(content: bytes, what: str) -> None:
    _, problems = read_lines(content, CHAT)
    assert len(problems) == 1
    assert re.search(what, problems[0]["message"])


def test_a_batch_with_bad_lines_fails_as_a_whole(server: Any) -> None:
    with server.client() as client:
        done = finished(client, start(client, [line("a"), line("a")])["id"])
    assert done["status"] == "failed"
    assert done["errors"]["data"][0]["line"] == 2
    assert server.pipeline.model.calls == []


def test_people_go_first_and_a_cancelled_batch_keeps_its_answers(pipeline: Any, serve: Any) -> None:
    with serve(pipeline) as server, server.client() as client:
        gate = pipeline.model.gate = threading.Semaphore(4)  # one whole answer, then everything waits
        batch = start(client, [line(name) for name in "abc"])
        assert client.get(f"/v1/files/{batch['input_file_id']}").status_code == 200
        assert client.delete(f"/v1/files/{batch['input_file_id']}").status_code == 409
        while len(pipeline.model.calls) < 2:
            time.sleep(0.01)
        cancelled = client.post(f"/v1/batches/{batch['id']}/cancel").json()
        assert cancelled["status"] == "cancelling"
        gate.release(4)
        done = finished(client, batch["id"])
        assert done["status"] == "cancelled"
        assert set(results(client, done["output_file_id"])) == {"a", "b"}
        assert client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 409
        assert client.delete(f"/v1/files/{batch['input_file_id']}").status_code == 200


def test_a_batch_goes_on_where_a_crash_left_it(pipeline: Any, serve: Any) -> None:
    runs = pipeline.folder / "runs"
    files, batches = FileStore(runs / "files"), BatchStore(runs / "batches")
    lines = [line(name) for name in "abc"]
    content = b"\n".join(json.dumps(entry).encode() for entry in lines)
    file = files.add(LOCAL.name, "in.jsonl", "batch", content)
    batch = batches.new(LOCAL.name, CHAT, file.id, "24h", {})
    batches.save(batch.at("in_progress"))
    kept = {"id": "x", "custom_id": "a", "response": {"status_code": 200, "body": {"kept": True}}, "error": None}
    batches.answers(batch).write_bytes(json.dumps(kept).encode() + b'\n{"custom_id": "b", "resp')
    with serve(pipeline) as server, server.client() as client:
        done = finished(client, batch.id)
        found = results(client, done["output_file_id"])
    assert set(found) == {"a", "b", "c"} and found["a"]["body"] == {"kept": True}
    asked = [call["messages"][0]["content"] for call in pipeline.model.calls]
    assert asked == ["hello b", "hello c"]
    assert not batches.answers(batch).exists()


def test_tenants_do_not_see_each_others_files_and_batches(pipeline: Any, serve: Any) -> None:
    tenants = [Tenant(name, (hash_key(f"wl-{name}"),)) for name in ("anna", "ben")]
    with serve(pipeline, tenants=tenants) as server:
        anna, ben = (server.client(headers={"authorization": f"Bearer wl-{name}"}) for name in ("anna", "ben"))
        with anna, ben:
            batch = start(anna, [line("a")])
            done = finished(anna, batch["id"])
            for path in (
                f"/v1/files/{batch['input_file_id']}",
                f"/v1/files/{done['output_file_id']}/content",
                f"/v1/batches/{batch['id']}",
            ):
                assert anna.get(path).status_code == 200
                assert ben.get(path).status_code == 404
            assert ben.delete(f"/v1/files/{batch['input_file_id']}").status_code == 404
            assert ben.post(f"/v1/batches/{batch['id']}/cancel").status_code == 404
            assert ben.get("/v1/files").json()["data"] == ben.get("/v1/batches").json()["data"] == []


def test_a_tenant_may_keep_so_much(pipeline: Any, serve: Any) -> None:
    with serve(pipeline) as server, server.client() as client:
        server.services.files.most_bytes = 1000
        assert upload(client, [line("a")]).status_code == 200
        reply = upload(client, [line("b" * 500), line("c" * 500)])
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "files_full")


def test_an_upload_may_be_longer_than_other_bodies(pipeline: Any, serve: Any) -> None:
    with serve(pipeline, limits=Limits(body_bytes=500, upload_bytes=3000)) as server, server.client() as client:
        assert upload(client, [line("a" * 400)]).status_code == 200
        assert upload(client, [line("a" * 4000)]).status_code == 413
        assert client.post(CHAT, json=line("a" * 500)["body"]).status_code == 413
        assert upload(client, [line("a")], purpose="fine-tune").json()["error"]["param"] == "purpose"


def test_two_servers_of_one_folder_do_not_share_a_batch(tmp_path: Path) -> None:
    first, second = BatchStore(tmp_path / "batches"), BatchStore(tmp_path / "batches")
    assert first.lock() and not second.lock()
    first.close()
    assert second.lock()
    second.close()
