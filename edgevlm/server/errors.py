"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Any

from edgevlm.errors import EdgeVLMError, InputError, MissingDependencyError


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: HTTP.
        code: for programs.
        parameter: the field that is wrong, if it is one.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = error_body(status, message, code, parameter)

    def at(self, place: str) -> RequestError:
        """The same, said of a place in the request."""
        return RequestError(
            self.status,
            f"{place}: {self}",
            code=self.body["error"]["code"],
            parameter=place,
            headers=self.headers,
        )


def error_body(
    status: int, message: str, code: str | None = None, parameter: str | None = None
) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``"""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def failure_body(error: Exception) -> dict[str, Any]:
    """What a client is told of an error that nobody foresaw; the log has the rest."""
    return error_body(500, f"the server failed: {type(error).__name__}")


def refusal(error: EdgeVLMError, parameter: str | None = None) -> RequestError:
    """What a client is told of an error that edgevlm raised on purpose.

    Args:
        parameter: the field that is wrong, if it is one.
    """
    if isinstance(error, InputError):
        return RequestError(400, str(error), code=type(error).__name__, parameter=parameter)
    if isinstance(error, MissingDependencyError):
        return RequestError(501, str(error), code="not_installed")
    return RequestError(500, str(error), code=type(error).__name__)
