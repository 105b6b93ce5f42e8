"""The screen of `servewright status`, read in review as a person sees it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_operator.showing import View, render
from support.odd import spoil
from support.pretend import Pretend
from support.tree import ROOT
from support.views import LOG, view_of

GOLDEN = ROOT / "tests" / "golden" / "showing"


def settled(world: Pretend) -> Pretend:
    world.reconcile()
    world.settle()
    return world


def ready() -> Pretend:
    return settled(Pretend({"spec.replicas": 2}))


def rolled_back() -> Pretend:
    world = settled(Pretend())
    world.fate = "crash"
    world.edit({"spec.engine.threads": 2})
    world.reconcile()
    world.settle()
    world.status["lastFailure"]["logTail"] = LOG
    return world


def unschedulable() -> Pretend:
    return settled(Pretend(fate="no node"))


def rolling_out() -> Pretend:
    world = settled(Pretend())
    world.edit({"spec.engine.threads": 2})
    for _ in range(3):
        world.step()
    return world


def unseen() -> Pretend:
    return Pretend()


SITUATIONS = [ready, rolled_back, unschedulable, rolling_out, unseen]


def screen(world: Pretend, width: int) -> str:
    return render(view_of(world), world.now + timedelta(minutes=3), width=width)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: str(one.__name__))
def test_the_screen_is_as_the_file_shows(
    situation: Callable[[], Pretend], width: int, golden: Callable[[Path, str], None]
) -> None:
    shown = screen(situation(), width)
    assert max(map(len, shown.splitlines())) <= width
    name = situation.__name__.replace("_", "-")
    golden(GOLDEN / f"{name}-{width}.txt", shown)


def test_ready_is_what_the_operator_says_of_the_spec_as_it_is_now() -> None:
    world = ready()
    assert view_of(world).is_ready
    world.edit({"spec.replicas": 3})
    assert not view_of(world).is_ready
    assert "has not seen the last change yet" in screen(world, 120)


def test_a_log_cannot_move_the_cursor_or_write_markup() -> None:
    world = rolled_back()
    world.status["lastFailure"]["logTail"] = "\x1b[2J\x1b]0;title\x07 [red]x[/red] \r\x08 end"
    world.status["lastFailure"]["message"] = "[/] unbalanced [bold"
    shown = screen(world, 80)
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert "[red]x[/red]" in shown
    assert "[/] unbalanced [bold" in shown


def test_long_words_of_a_failure_are_told_once() -> None:
    world = rolled_back()
    failure, old = world.status["lastFailure"], world.status["lastFailure"]["message"]
    words = 'The model was not downloaded: "connection refused". ' * 4
    for one in world.status["conditions"]:
        one["message"] = one["message"].replace(old, words)
    last = json.dumps({"time": "2026-01-01T00:00:00Z", "event": words})
    failure |= {"message": words, "logTail": f"the line before\n{last}"}
    shown = screen(world, 1000)
    assert shown.count("connection refused") == 4
    assert "see Last failure." in shown
    assert "the line before" in shown


@given(st.data())
def test_odd_objects_are_shown_all_the_same(data: st.DataObject) -> None:
    world = copy.deepcopy(_WORLD)
    view = view_of(world)
    spoil(data, view.service.get("status"))
    for one in (*view.pods, *(revision["data"] for revision in view.revisions)):
        spoil(data, one)
    for width in (80, 20):
        assert render(View(view.service, view.revisions, view.pods), world.now, width=width)


_WORLD = rolled_back()
