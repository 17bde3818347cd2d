"""Who may use what, and how much of it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.app.http.admission import Admission
from windlass.app.http.keys import KeyFile, hash_key
from windlass.app.http.tenants import Tenant, tenant_from
from windlass.core.errors import NotFound, UsageError

MODEL = "smollm2-135m-instruct"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}
OWNER, ANNA, BEN = "wl-owner", "wl-anna", "wl-ben"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def shared(pipeline: Any, serve: Any) -> Any:
    tenants = [
        Tenant(hashes=(hash_key(OWNER),), admin=True),
        Tenant("anna", (hash_key(ANNA),), requests_per_minute=3, models=("windlass", MODEL)),
        Tenant("ben", (hash_key(BEN),), max_concurrency=1, tokens_per_minute=10, models=(MODEL,)),
    ]
    with serve(pipeline, tenants=tenants) as server:
        yield server


def test_requests_a_minute(shared: Any) -> None:
    with shared.client(headers=bearer(ANNA)) as client:
        left = [client.get("/v1/models").headers["x-ratelimit-remaining-requests"] for _ in range(3)]
        refused = client.get("/v1/models")
    assert left == ["2", "1", "0"]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    with shared.client(headers=bearer(OWNER)) as client:
        assert client.get("/v1/models").status_code == 200


def test_tokens_a_minute_are_paid_afterwards(shared: Any) -> None:
    with shared.client(headers=bearer(BEN)) as client:
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200  # 4 + 4 of 10
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200  # overdrawn by 6
        refused = client.post("/v1/chat/completions", json=HELLO)
    assert refused.status_code == 429 and "tokens" in refused.json()["error"]["message"]
    assert 30 < int(refused.headers["retry-after"]) <= 60


def test_requests_at_one_time(shared: Any) -> None:
    gate = shared.pipeline.model.gate = threading.Semaphore(0)
    with shared.client(headers=bearer(BEN)) as client:
        with client.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as first:
            assert first.status_code == 200
            second = client.get("/v1/models")
            for _ in range(8):
                gate.release()
            first.read()
        assert second.status_code == 429 and second.json()["error"]["code"] == "too_many_at_once"
        assert client.get("/v1/models").status_code == 200


def test_models_that_are_not_a_tenants_are_not_there(shared: Any) -> None:
    with shared.client(headers=bearer(BEN)) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
        for path, body in (
            ("/v1/chat/completions", {**HELLO, "model": "windlass"}),
            ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": "a"}),
        ):
            reply = client.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        for path in ("/api/search?q=quay", "/api/overview", "/api/source/7?start=0&end=4", "/", "/search"):
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_permitted")


def test_metrics_are_the_owners(shared: Any) -> None:
    with shared.client() as client:
        assert client.get("/metrics", headers=bearer(ANNA)).status_code == 403
        assert client.get("/metrics", headers=bearer(OWNER)).status_code == 200


def test_a_request_is_cancelled_by_its_id_and_by_its_tenant_only(shared: Any) -> None:
    shared.pipeline.model.gate = threading.Semaphore(1)
    with shared.client(headers=bearer(OWNER)) as client:
        with client.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as reply:
            path = f"/v1/requests/{reply.headers['x-request-id']}"
            assert httpx.delete(shared.url + path, headers=bearer(ANNA), trust_env=False).status_code == 404
            assert httpx.delete(shared.url + path, headers=bearer(OWNER), trust_env=False).json()["cancelled"]
            rest = reply.read()
        assert b'"code":"cancelled"' in rest
        assert shared.until_idle()
        assert client.delete(path).status_code == 404
    assert shared.services._calls == {}


def test_a_key_file_with_tenants_is_written_and_read_back(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    anna = keys.add("anna", requests_per_minute=60, models=["windlass", 'a "quoted" name'])
    owner = keys.add()
    again = keys.add("anna")
    found = {tenant.name: tenant for tenant in keys.tenants()}
    assert list(found) == ["default", "anna"]
    assert found["default"].hashes == (hash_key(owner),) and found["default"].admin
    assert found["anna"].hashes == (hash_key(anna), hash_key(again)) and not found["anna"].admin
    assert (found["anna"].requests_per_minute, found["anna"].tokens_per_minute) == (60, None)
    assert found["anna"].models == ("windlass", 'a "quoted" name')
    keys.remove("anna")
    assert [tenant.name for tenant in keys.tenants()] == ["default"]
    with pytest.raises(NotFound, match=r"anna.*default"):
        keys.remove("anna")
    with pytest.raises(UsageError, match="keys and bounds already"):
        keys.add("default", requests_per_minute=1)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"name": "Anna"}, "name is 'Anna'"),
        ({}, "name is None"),
        ({"name": "a", "weight": 0}, "weight of a is 0"),
        ({"name": "a", "weight": True}, "weight"),
        ({"name": "a", "requests_per_minute": 0}, "requests_per_minute of a is 0"),
        ({"name": "a", "max_concurrency": 1.5}, "max_concurrency"),
        ({"name": "a", "models": "windlass"}, "models of a"),
        ({"name": "a", "sha256": ["ab"]}, "64 hex digits"),
        ({"name": "a", "request_per_minute": 5}, "unknown fields: request_per_minute"),
    ],
)
def test_tenants_that_make_no_sense(entry: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        tenant_from(entry)


@pytest.mark.parametrize(
    "content",
    [
        f'sha256 = ["{"ab" * 32}"]\n[[tenant]]\nname = "a"\nsha256 = ["{"ab" * 32}"]',
        f'[[tenant]]\nname = "a"\nsha256 = []\n[[tenant]]\nname = "a"\nsha256 = ["{"ab" * 32}"]',
        f'[[tenant]]\nname = "default"\nsha256 = ["{"ab" * 32}"]',
        'tenants = [{name = "a"}]',
        "tenant = 3",
    ],
)
def test_ambiguous_key_files_open_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"keys\.toml is damaged"):
        KeyFile(path).tenants()


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40)), max_size=60))
def test_no_window_of_a_minute_gets_more_than_its_bounds(steps: list[tuple[float, int]]) -> None:
    """Whatever arrives when: within any minute at most twice the bucket is let in (a full one, and what flows in)."""
    now = 0.0
    admission = Admission(lambda: now)
    tenant = Tenant("anna", requests_per_minute=5, tokens_per_minute=50)
    admitted: list[tuple[float, int]] = []
    for pause, tokens in steps:
        now += pause
        refusal = admission.enter(tenant)
        if refusal is not None:
            assert 1 <= refusal.retry_after <= 60
            continue
        admission.leave(tenant)
        admission.charge(tenant, tokens)
        admitted.append((now, tokens))
    for start, _ in admitted:
        window = [tokens for at, tokens in admitted if start <= at < start + 60]
        assert len(window) <= 10
        # What overdraws is one request's tokens.
        assert sum(window) <= 100 + max(window)


def test_waiting_as_long_as_told_is_enough() -> None:
    now = 0.0
    admission = Admission(lambda: now)
    tenant = Tenant("anna", requests_per_minute=7, tokens_per_minute=100)
    for tokens in itertools.islice(itertools.cycle([0, 90, 30]), 40):
        refusal = admission.enter(tenant)
        if refusal is not None:
            now += refusal.retry_after
            assert admission.enter(tenant) is None
        admission.leave(tenant)
        admission.charge(tenant, tokens)
