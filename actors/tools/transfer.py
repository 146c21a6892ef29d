"""Reading what others send, within bounds."""

import aiohttp


async def read_capped(response: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
    """The whole body, counted after decompression; None where it is larger. Leaving the response then closes its
    connection, so that the rest is not read.
    """
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > bytes_max:
            return None
        parts.append(part)
    return b"".join(parts)


def retry_after_s(response: aiohttp.ClientResponse, max_s: float = 60.0) -> float | None:
    """What the header asks for, in seconds; a date, or nonsense, counts as nothing."""
    text = response.headers.get("retry-after", "")
    return min(float(text), max_s) if text.isascii() and text.isdigit() and len(text) < 10 else None
