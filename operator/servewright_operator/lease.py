"""One replica acts at a time: whoever holds the Lease.

A standby takes the Lease over when it has seen it unchanged for as long as the Lease says, by its
own clock: no two machines' clocks are compared. The holder gives up earlier than that, by its own
clock too, when it cannot renew; and `is_held` is asked before every write, so that a process that
slept through its Lease wakes up powerless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from servewright_operator import kinds, metrics
from servewright_operator.client import ApiError, Client
from servewright_operator.objects import Object

log = logging.getLogger(__name__)

_NEVER = float("-inf")
# Longer than that the next replica would not gain by it.
_RELEASE_S = 5.0


class Lost(Exception):
    """The Lease is another's, or could not be renewed in time."""


class Lease:
    """A Lease in the API server, and whether it is ours.

    client: not the one that the work goes through: a renewal must not wait behind it.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: float,
        renew_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._namespace, self._name, self._identity = namespace, name, identity
        self._duration_s, self._renew_s = duration_s, renew_s
        # A third of the duration is left for clocks that run differently.
        self._give_up_s = duration_s * 2 / 3
        self._clock = clock
        self._held_until = _NEVER
        self._live: Object | None = None  # as last seen
        self._seen_at = _NEVER  # when it was first seen like that

    def is_held(self) -> bool:
        """Whether we may write."""
        return self._clock() < self._held_until

    async def acquire(self) -> None:
        """Return once the Lease is ours."""
        while not await self.attempt():  # noqa: ASYNC110 - another process gives it up
            await asyncio.sleep(self._renew_s)
        metrics.LEADER.set(1)
        log.info("holds the lease", extra={"identity": self._identity})

    async def hold(self) -> None:
        """Renew the Lease until that fails; raises Lost."""
        try:
            while True:
                await asyncio.sleep(self._renew_s)
                await self.attempt()
                if not self.is_held():
                    raise Lost(
                        f"Lease {self._namespace}/{self._name} was not renewed by "
                        f"{self._identity} for {self._give_up_s:.0f} s, or another holds it"
                    )
        finally:
            metrics.LEADER.set(0)

    async def release(self) -> None:
        """Let the next replica take over at once. Nothing may be written after this."""
        held, self._held_until = self.is_held(), _NEVER
        if not held or self._live is None:
            return
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._release()
        except (ApiError, TimeoutError) as error:
            log.warning("could not release the lease", extra={"error": str(error)})

    async def _release(self) -> None:
        assert self._live is not None
        try:
            await self._client.replace({**self._live, "spec": self._spec("", 1)})
        except ApiError as error:
            if error.status != 409:
                raise
            # A renewal of ours arrived that was cut off before its answer did.
            self._live = await self._client.get(kinds.LEASE, self._namespace, self._name)
            if self._live is not None and self._live["spec"]["holderIdentity"] == self._identity:
                await self._client.replace({**self._live, "spec": self._spec("", 1)})

    async def attempt(self) -> bool:
        """Take or renew the Lease once: whether it is ours now."""
        started = self._clock()
        try:
            async with asyncio.timeout(self._give_up_s / 2):
                ours = await self._attempt()
        except (ApiError, TimeoutError) as error:
            log.warning("no answer about the lease", extra={"error": str(error)})
            return False
        if ours:
            self._held_until = started + self._give_up_s
        return ours

    async def _attempt(self) -> bool:
        try:
            if self._live is None or not self.is_held():
                live = await self._client.get(kinds.LEASE, self._namespace, self._name)
                if live is None:
                    self._see(await self._client.create(self._new()))
                    return True
                self._see(live)
            if not self._is_free():
                self._held_until = _NEVER
                return False
            assert self._live is not None
            spec = self._spec(self._identity, round(self._duration_s))
            self._see(await self._client.replace({**self._live, "spec": spec}))
        except ApiError as error:
            if error.status != 409:
                raise
            # Somebody was faster; what they wrote is read at the next attempt.
            self._live = None
            return False
        return True

    def _see(self, live: Object) -> None:
        if self._live is None or self._live["spec"] != live["spec"]:
            self._seen_at = self._clock()
        self._live = live

    def _is_free(self) -> bool:
        assert self._live is not None
        spec = self._live["spec"]
        # Our own name with another life: the container restarted in its pod.
        if spec.get("holderIdentity", "") in ("", self._identity):
            return True
        lasts_s: float = spec.get("leaseDurationSeconds", self._duration_s)
        return self._clock() >= self._seen_at + lasts_s

    def _new(self) -> Object:
        return {
            "apiVersion": kinds.LEASE.api_version,
            "kind": kinds.LEASE.name,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._spec(self._identity, round(self._duration_s)),
        }

    def _spec(self, holder: str, duration_s: int) -> Object:
        before = {} if self._live is None else self._live["spec"]
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {
            **before,
            "holderIdentity": holder,
            "leaseDurationSeconds": duration_s,
            "renewTime": now,
        }
        if holder and before.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = before.get("leaseTransitions", -1) + 1
        return spec
