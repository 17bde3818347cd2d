"""Adapters of the language model while the server runs: `/v1/adapters`, for administrators."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints

from windlass.app.http.replies import ApiError
from windlass.app.http.services import Services, services_of
from windlass.serving.adapters import AdapterInfo, AdapterStore

router = APIRouter(prefix="/v1/adapters")

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class AdapterRequest(BaseModel):
    """`POST /v1/adapters`: a folder on the server's disk, and whose adapter it is (empty: everybody's)."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: ShortText
    path: ShortText
    tenant: str = ""


@router.get("")
async def list_adapters(request: Request, tenant: str = "") -> JSONResponse:
    """The adapters that a tenant may use."""
    services = services_of(request)
    store = await services.call(_store, services)
    return JSONResponse({"object": "list", "data": [_record(info) for info in store.list(tenant=tenant)]})


@router.post("")
async def add_adapter(request: Request, body: AdapterRequest) -> JSONResponse:
    """Load an adapter, or have a name stand for another one from now on; requests under way keep theirs."""
    services = services_of(request)
    if body.tenant and body.tenant not in services.tenants:
        raise ApiError(400, f"no tenant {body.tenant[:80]!r}", param="tenant", code="invalid_value")
    store = await services.call(_store, services)
    info = await services.call(store.register, body.name, Path(body.path), tenant=body.tenant)
    return JSONResponse(_record(info))


@router.delete("/{name}")
async def remove_adapter(request: Request, name: str, tenant: str = "") -> JSONResponse:
    """Forget an adapter; requests under way keep it."""
    services = services_of(request)
    store = await services.call(_store, services)
    if not store.remove(name, tenant=tenant):
        raise ApiError(404, f"no adapter {name[:80]!r}", hint="GET /v1/adapters lists them", code="adapter_not_found")
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


def _store(services: Services) -> AdapterStore:
    engine = services.engine()
    adapters = engine.engine.engine.adapters if engine is not None else None
    if adapters is None:
        raise ApiError(400, "this server's model takes no adapters", code="feature_unavailable")
    return adapters.store


def _record(info: AdapterInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "adapter", **asdict(info)}
