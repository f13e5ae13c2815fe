"""Errors in the form that OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

from edgevlm.errors import DeadlineError, EdgeVLMError, InputError, MissingDependencyError


class RequestError(Exception):
    """An error that is sent to the client.

    Args:
        status: the HTTP status.
        message: the text for people.
        code: the name of the error for programs.
        parameter: the name of the wrong field.
        headers: further headers of the response.
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

    def at(self, location: str) -> RequestError:
        """Return the same error for a location in the request, such as ``messages.0.content``."""
        return RequestError(
            self.status,
            f"{location}: {self}",
            code=self.body["error"]["code"],
            parameter=location,
            headers=self.headers,
        )


def error_body(
    status: int, message: str, code: str | None = None, parameter: str | None = None
) -> dict[str, Any]:
    """Return the JSON of an error: ``{"error": {"message", "type", "param", "code"}}``."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def failure_body(error: Exception) -> dict[str, Any]:
    """Return the JSON for an unexpected error. Details are only in the log of the server."""
    return error_body(500, f"the server failed: {type(error).__name__}; its log has the details")


def to_request_error(error: EdgeVLMError, parameter: str | None = None) -> RequestError:
    """Convert an error of edgevlm to one for the client.

    Args:
        error: the error.
        parameter: the name of the wrong field.
    """
    if isinstance(error, InputError):
        return RequestError(400, str(error), code=type(error).__name__, parameter=parameter)
    if isinstance(error, MissingDependencyError):
        return RequestError(501, str(error), code="not_installed")
    if isinstance(error, DeadlineError):
        # OpenAI's clients repeat a request after a status from 500, unless this header says no.
        headers = {"x-should-retry": "false"}
        return RequestError(504, str(error), code=type(error).__name__, headers=headers)
    return RequestError(500, str(error), code=type(error).__name__)
