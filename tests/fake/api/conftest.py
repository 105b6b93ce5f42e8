"""Servers and clients for the tests of the HTTP API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from support.serving import Server, serving


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """One open model called `tiny`."""
    async with serving() as running:
        yield running


@pytest_asyncio.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `server`."""
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        yield client
