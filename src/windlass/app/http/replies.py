"""JSON answers and the one shape of every error: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from windlass.core.errors import (
    AdapterError,
    AdapterNotFound,
    Cancelled,
    ContextLengthError,
    DeadlineError,
    EngineBug,
    ModelError,
    NumericsError,
    PoolExhausted,
    QueueFull,
    WindlassError,
)

log = logging.getLogger("windlass.http")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    409: "workspace_locked",
    413: "body_too_large",
    429: "queue_full",
}


# The first that fits; what is not here has the status of its class.
_KINDS: tuple[tuple[type[WindlassError], int, str], ...] = (
    (Cancelled, 499, "cancelled"),
    (AdapterNotFound, 404, "adapter_not_found"),
    (AdapterError, 400, "adapter_invalid"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (DeadlineError, 503, "deadline_unreachable"),
    (NumericsError, 500, "model_numerics"),
    (ModelError, 503, "model_unavailable"),
    (PoolExhausted, 503, "memory_exhausted"),
    (EngineBug, 500, "internal_error"),
)


class ApiError(WindlassError):
    """An error with everything the HTTP answer needs.

    Args:
        status: HTTP status.
        what, hint: As in `WindlassError`.
        param: The field that is wrong, in dotted form.
        code: A short stable word that programs can test.
        headers: Extra headers of the answer.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(what, hint=hint)
        self.http_status = status
        self.param = param
        self.code = code
        self.headers = headers or {}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON object of an error."""
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": param,
            "code": code or _CODES.get(status),
        }
    }


def error_of(error: WindlassError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers that tell a client about `error`."""
    if isinstance(error, ApiError):
        body = error_body(error.http_status, str(error), param=error.param, code=error.code)
        return error.http_status, body, error.headers
    if isinstance(error, QueueFull):
        return 429, error_body(429, str(error)), {"retry-after": str(error.retry_after)}
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return status, error_body(status, str(error), code=code), {}
    return error.http_status, error_body(error.http_status, str(error)), {}


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` leave in the one shape."""
    app.add_exception_handler(WindlassError, _windlass_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def plain(record: Any) -> Any:
    """A record (dataclasses, tuples, paths inside) as what JSON knows."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): plain(value) for key, value in record.items()}
    if isinstance(record, list | tuple | set | frozenset):
        return [plain(value) for value in record]
    if record is None or isinstance(record, str | int | float | bool):
        return record
    return str(record)


def _windlass_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, WindlassError)
    status, body, headers = error_of(error)
    if status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse(body, status, headers)


def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return JSONResponse(error_body(400, "the body is not valid JSON", code="invalid_json"), 400)
    param = ".".join(place) or None
    # The message of the check, never the value: it may be long, secret, or not JSON (NaN).
    message = f"{param}: {first['msg']}" if param else f"the body must be a JSON object: {first['msg']}"
    return JSONResponse(error_body(400, message, param=param, code="invalid_value"), 400)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.method} {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}"
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)
