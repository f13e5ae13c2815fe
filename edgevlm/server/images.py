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

from edgevlm.errors import EdgeVLMError, ImageError
from edgevlm.inputs.data_uri import decode_data_uri, is_data_uri
from edgevlm.inputs.images import read_image_size
from edgevlm.server.errors import RequestError
from edgevlm.server.files import FileStore
from edgevlm.server.limits import Limits
from edgevlm.server.messages import Message, RefusalPart, Source, TextPart

REDIRECTIONS = 3

LARGE_URI = 2**18
"""Characters from which a data URI is decoded in a thread, so that nobody else waits for it."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: no private, local or reserved one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


class ImageReader:
    """Turns a request's messages into those of `VLM.stream_generate`.

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
        pixels = 0
        messages: list[dict[str, Any]] = []
        for index, message in enumerate(given):
            parts: list[dict[str, Any]] = []
            for at, part in enumerate(message.parts):
                if isinstance(part, TextPart | RefusalPart):
                    parts.append({"type": "text", "text": part.text})
                    continue
                place = f"messages.{index}.content.{at}.{part.source.field}"
                try:
                    data, size = await self._image(part.source)
                except RequestError as error:
                    raise error.at(place) from error
                pixels += size
                if pixels > self._limits.request_pixels:
                    raise RequestError(
                        400,
                        f"{place}: the conversation's pictures have more than the "
                        f"{self._limits.request_pixels} pixels together that are accepted; make them "
                        f"smaller first",
                        code="too_many_pixels",
                        parameter=place,
                    )
                parts.append({"type": "image", "image": data, "detail": part.source.detail})
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": parts})
        return messages

    async def _image(self, source: Source) -> tuple[bytes, int]:
        """The bytes of a file, and how many pixels its image has."""
        if source.file_id is not None:
            data = self._files.get(source.file_id).data
            return data, self.check(data)
        url = source.url or ""
        if is_data_uri(url):
            if len(url) < LARGE_URI:
                return self._decode(url)
            return await asyncio.to_thread(self._decode, url)
        if url[:8].lower().startswith(("http://", "https://")):
            data = await self._fetch(url)
            return data, self.check(data)
        raise RequestError(
            400,
            f"a picture's url must be a data URI, is {url[:40]!r}",
            code="invalid_image_url",
        )

    def _decode(self, uri: str) -> tuple[bytes, int]:
        try:
            data = decode_data_uri(uri)
        except ImageError as error:
            raise RequestError(400, str(error), code="invalid_image_url") from error
        return data, self.check(data)

    def check(self, data: bytes) -> int:
        """How many pixels an image has; none of them is decoded.

        Raises:
            RequestError: no image, or too many pixels.
        """
        try:
            width, height = read_image_size(data)
        except EdgeVLMError as error:
            raise RequestError(400, str(error), code="invalid_image") from error
        if width * height > self._limits.pixels:
            raise RequestError(
                400,
                f"the picture is {width} x {height} pixels, more than the {self._limits.pixels} "
                f"that are accepted; make it smaller first",
                code="image_too_large",
            )
        return width * height

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
