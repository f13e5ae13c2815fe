"""Read the images of a request: from data URIs, uploads and, if allowed, the network.

A remote image is fetched from public addresses only, and each redirect is checked again. The connection goes
to the address that was checked, so that a host name whose address changes cannot reach the local network.
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
from edgevlm.server.messages import ImageReference, Message, RefusalPart, TextPart

MAX_REDIRECTS = 3

MIN_CHARACTERS_FOR_THREAD = 2**18
"""Length from which a data URI is decoded in a thread, so that other requests do not wait."""


def is_public(address: str) -> bool:
    """Return True for an IP address of the public internet: not private, local, reserved or multicast."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_global and not parsed.is_multicast


class ImageReader:
    """Converts the messages of a request to messages of `VLM.stream_generate`, with their images.

    Args:
        limits: the limits of the server.
        files: uploaded files.
        allow_address: True for IP addresses that images may be fetched from; None: fetch no images.
    """

    def __init__(
        self, limits: Limits, files: FileStore, allow_address: Callable[[str], bool] | None
    ) -> None:
        self._limits = limits
        self._files = files
        self._allow_address = allow_address

    async def read_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Convert the messages of a request; read their images, and fetch them if necessary.

        Raises:
            RequestError: an image cannot be read or fetched, or there are too many images or pixels.
        """
        count = sum(
            not isinstance(part, TextPart | RefusalPart)
            for message in messages
            for part in message.parts
        )
        if count > self._limits.images:
            raise RequestError(
                400,
                f"the conversation has {count} images; the limit is {self._limits.images}",
                code="too_many_pictures",
                parameter="messages",
            )
        pixels = 0
        converted: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            parts: list[dict[str, Any]] = []
            for part_index, part in enumerate(message.parts):
                if isinstance(part, TextPart | RefusalPart):
                    parts.append({"type": "text", "text": part.text})
                    continue
                location = f"messages.{index}.content.{part_index}.{part.source.field}"
                try:
                    data, size = await self._read(part.source)
                except RequestError as error:
                    raise error.at(location) from error
                pixels += size
                if pixels > self._limits.request_pixels:
                    raise RequestError(
                        400,
                        f"{location}: the images of the conversation have more than "
                        f"{self._limits.request_pixels} pixels together; make them smaller first",
                        code="too_many_pixels",
                        parameter=location,
                    )
                parts.append({"type": "image", "image": data, "detail": part.source.detail})
            role = "system" if message.role == "developer" else message.role
            converted.append({"role": role, "content": parts})
            if message.tool_calls:
                converted[-1]["tool_calls"] = [
                    {
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in (one.function for one in message.tool_calls)
                ]
        return converted

    async def _read(self, source: ImageReference) -> tuple[bytes, int]:
        """Return the bytes of an image file, and the number of its pixels."""
        if source.file_id is not None:
            data = self._files.get(source.file_id).data
            return data, self.count_pixels(data)
        url = source.url or ""
        if is_data_uri(url):
            if len(url) < MIN_CHARACTERS_FOR_THREAD:
                return self._decode(url)
            return await asyncio.to_thread(self._decode, url)
        if url[:8].lower().startswith(("http://", "https://")):
            data = await self._fetch(url)
            return data, self.count_pixels(data)
        raise RequestError(
            400,
            f"the url of an image must be a data URI, is {url[:40]!r}",
            code="invalid_image_url",
        )

    def _decode(self, uri: str) -> tuple[bytes, int]:
        try:
            data = decode_data_uri(uri)
        except ImageError as error:
            raise RequestError(400, str(error), code="invalid_image_url") from error
        return data, self.count_pixels(data)

    def count_pixels(self, data: bytes) -> int:
        """Return the number of pixels of an image file. No pixel is decoded.

        Raises:
            RequestError: the file is not an image, or has too many pixels.
        """
        try:
            width, height = read_image_size(data)
        except EdgeVLMError as error:
            raise RequestError(400, str(error), code="invalid_image") from error
        if width * height > self._limits.pixels:
            raise RequestError(
                400,
                f"the image is {width} x {height} pixels, more than the {self._limits.pixels} "
                f"that are allowed; make it smaller first",
                code="image_too_large",
            )
        return width * height

    async def _fetch(self, url: str) -> bytes:
        if self._allow_address is None:
            raise RequestError(
                400,
                "this server fetches no images; send a data URI (or start the server with "
                "--allow-remote-images)",
                code="remote_images_not_allowed",
            )
        try:
            return await asyncio.wait_for(self._download(url), self._limits.fetch_seconds)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise RequestError(
                400, f"{url[:200]} did not arrive within {self._limits.fetch_seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise RequestError(400, f"{url[:200]} cannot be fetched: {error}") from error

    async def _download(self, url: str) -> bytes:
        async with httpx.AsyncClient(trust_env=False, timeout=self._limits.fetch_seconds) as client:
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream("GET", **await self._pin_address(url)) as response:
                    if response.is_redirect:
                        url = urljoin(url, response.headers["location"])
                        continue
                    if response.status_code != httpx.codes.OK:
                        raise ValueError(f"status {response.status_code}")
                    return await self._read_body(response)
        raise ValueError(f"more than {MAX_REDIRECTS} redirects")

    async def _read_body(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for block in response.aiter_bytes():
            data += block
            if len(data) > self._limits.body_bytes:
                raise ValueError(f"more than {self._limits.body_bytes} bytes")
        return bytes(data)

    async def _pin_address(self, url: str) -> dict[str, Any]:
        """Check the addresses of a host. Return arguments of a request that goes to one of them."""
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("not an http(s) address")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        allow = self._allow_address
        if allow is None or not addresses or not all(map(allow, addresses)):
            raise ValueError(f"{host} has the address {', '.join(addresses)}, which is not public")
        return {
            "url": httpx.URL(url).copy_with(host=addresses[0]),
            "headers": {"Host": parts.netloc.rpartition("@")[2]},
            "extensions": {"sni_hostname": host},
        }
