"""How many calls the operator begins at once, and who waits behind those that hang."""

from __future__ import annotations

import asyncio

from aiohttp import web

from servewright_operator.names import Key
from support.probed import (
    KEY,
    WAIT_S,
    hangs,
    probe_of,
    probing,
    replica,
    says,
    until,
)


async def test_calls_are_bounded() -> None:
    at_once = most = 0
    let_go = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await let_go.wait()
        at_once -= 1
        return await says()(request)

    async with replica(answer) as server, probing(places=3) as heard:
        for number in range(10):
            heard.prober.tell(Key("default", f"m{number}"), probe_of(server.url), {})
        await until(lambda: at_once == 3)
        let_go.set()
        await until(lambda: len(heard.changes) == 10)
    assert most == 3


async def test_300_that_hang_in_one_namespace_delay_no_call_in_another() -> None:
    """Whatever they hang for: a place is their namespace's own."""
    async with replica(hangs) as mute, replica(says()) as server, probing(hold_s=WAIT_S) as heard:
        for number in range(300):
            probe = probe_of(mute.url, timeout_s=3600.0)
            heard.prober.tell(Key("theirs", f"m{number}"), probe, {f"uid-{number}": mute.url})
        await until(lambda: len(mute.asked) >= 60)
        before = len(mute.asked)
        heard.prober.tell(KEY, probe_of(server.url), {"uid": f"{server.url}/state"})
        await heard.answered()
        assert len(server.asked) == 1
        assert before <= len(mute.asked) <= 64


async def test_calls_that_hang_delay_those_of_their_own_namespace_for_a_while_only() -> None:
    hold_s = 0.2
    async with (
        replica(hangs) as mute,
        replica(says()) as server,
        probing(places=4, hold_s=hold_s) as heard,
    ):
        started = asyncio.get_running_loop().time()
        for number in range(20):
            probe = probe_of(mute.url, timeout_s=3600.0)
            heard.prober.tell(Key("default", f"m{number}"), probe, {})
        await until(lambda: len(mute.asked) >= 4)
        heard.prober.tell(KEY, probe_of(server.url), {})
        await heard.answered()
        waited_s = asyncio.get_running_loop().time() - started
        assert len(mute.asked) == 20  # first come, first served; none was given up
    assert waited_s > 4.9 * hold_s  # the four places were taken five times before its turn
