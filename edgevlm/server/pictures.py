"""Pictures of a request as the bytes of their files: from data URIs, uploads and, if allowed, the network.

A remote picture is fetched from public addresses only, each redirection checked anew, and the connection
goes to the very address that was checked, so that a name which changes its mind reaches nothing inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from edgevlm.data_uri import decode_data_uri
from edgevlm.errors import EdgeVLMError, ImageError
from edgevlm.images import stored_image_size
from edgevlm.server.errors import RequestError
from edgevlm.server.files import FileStore
from edgevlm.server.limits import Limits
from edgevlm.server.messages import Message, RefusalPart, Source, TextPart

REDIRECTIONS = 3


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: no private, local or reserved one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


class PictureReader:
    """Turns a request's messages into those of `VLM.generate`.

    Args:
        allowed: which IP addresses a remote picture may come from; None refuses remote pictures.
    """

    def __init__(
        self, limits: Limits, files: FileStore, allowed: Callable[[str], bool] | None
    ) -> None:
        self._limits = limits
        self._files = files
        self._allowed = allowed

    async def messages(self, given: Sequence[Message]) -> list[dict[str, Any]]:
        """Raises RequestError for a picture that cannot be had or is too large."""
        count = sum(
            not isinstance(part, TextPart | RefusalPart)
            for message in given
            for part in message.parts
        )
        if count > self._limits.pictures:
            raise RequestError(
                400,
                f"the conversation has {count} pictures, at most {self._limits.pictures} are accepted",
                code="too_many_pictures",
                parameter="messages",
            )
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": await self._content(message, f"messages.{index}.content"),
            }
            for index, message in enumerate(given)
        ]

    async def _content(self, message: Message, place: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for index, part in enumerate(message.parts):
            if isinstance(part, TextPart | RefusalPart):
                parts.append({"type": "text", "text": part.text})
                continue
            try:
                data = await self._data(part.source)
            except RequestError as error:
                raise error.at(f"{place}.{index}.{part.source.field}") from error
            parts.append({"type": "image", "image": data, "detail": part.source.detail})
        return parts

    async def _data(self, source: Source) -> bytes:
        if source.file_id is not None:
            return self._files.get(source.file_id).data
        return await self._read(source.url or "")

    async def _read(self, url: str) -> bytes:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            data = _decode(url)
        elif scheme in ("http", "https"):
            data = await self._fetch(url)
        else:
            raise RequestError(
                400,
                f"a picture's url must be a data URI, is {url[:40]!r}",
                code="invalid_image_url",
            )
        self.check(data)
        return data

    def check(self, data: bytes) -> None:
        """Raises RequestError for what is no image or has too many pixels; decodes none of them."""
        try:
            width, height = stored_image_size(data)
        except EdgeVLMError as error:
            raise RequestError(400, str(error), code="invalid_image") from error
        if width * height > self._limits.pixels:
            raise RequestError(
                400,
                f"the picture is {width} x {height} pixels, more than the {self._limits.pixels} "
                f"that are accepted; make it smaller first",
                code="image_too_large",
            )

    async def _fetch(self, url: str) -> bytes:
        if self._allowed is None:
            raise RequestError(
                400,
                "this server fetches no pictures; send a data URI (or start it with "
                "--allow-remote-images)",
                code="remote_images_not_allowed",
            )
        try:
            return await asyncio.wait_for(self._follow(url), self._limits.fetch_seconds)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise RequestError(
                400, f"{url[:200]} did not arrive within {self._limits.fetch_seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise RequestError(400, f"{url[:200]} cannot be fetched: {error}") from error

    async def _follow(self, url: str) -> bytes:
        async with httpx.AsyncClient(trust_env=False, timeout=self._limits.fetch_seconds) as client:
            for _ in range(REDIRECTIONS + 1):
                async with client.stream("GET", **await self._pinned(url)) as response:
                    if response.is_redirect:
                        url = urljoin(url, response.headers["location"])
                        continue
                    if response.status_code != httpx.codes.OK:
                        raise ValueError(f"status {response.status_code}")
                    return await self._body(response)
        raise ValueError(f"more than {REDIRECTIONS} redirections")

    async def _body(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > self._limits.body_bytes:
                raise ValueError(f"more than {self._limits.body_bytes} bytes")
        return bytes(data)

    async def _pinned(self, url: str) -> dict[str, Any]:
        """Arguments of a request that goes to an address which was checked."""
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("no http(s) address")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if self._allowed is None or not addresses or not all(map(self._allowed, addresses)):
            raise ValueError(f"{host} is at {', '.join(addresses)}, which is not public")
        return {
            "url": httpx.URL(url).copy_with(host=addresses[0]),
            "headers": {"Host": parts.netloc.rpartition("@")[2]},
            "extensions": {"sni_hostname": host},
        }


def _decode(uri: str) -> bytes:
    try:
        return decode_data_uri(uri)
    except ImageError as error:
        raise RequestError(400, str(error), code="invalid_image_url") from error
