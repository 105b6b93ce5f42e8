"""The API server stores each status as it was computed, so that it is not written again."""

from __future__ import annotations

import pytest

from support.apiserver import ApiServer
from support.pretend import Fate, Pretend
from support.written import put


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("good", None, id="of a service that serves"),
        pytest.param("good", "crash", id="of one that was rolled back"),
        pytest.param("no node", None, id="of one without a node"),
        pytest.param("mute", None, id="of one that does not answer"),
    ],
)
def test_the_status_is_stored_as_it_was_computed(
    api_server: ApiServer, namespace: str, first: Fate, then: Fate | None
) -> None:
    world = Pretend(fate=first)
    world.reconcile()
    world.settle()
    if then is not None:
        world.fate = then
        world.edit({"spec.engine.threads": 2})
        world.reconcile()
        world.settle()
    assert put(api_server, namespace, world.service)["status"] == world.status
