"""The story of one ModelService on one screen, for a person.

Pure: objects of the API server in, text out. Whatever a pod, a log or a model has put into them is
shown without its control characters, which could do anything to a terminal.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from servewright_operator import names, pods
from servewright_operator.objects import Object
from servewright_operator.reading import (
    condition,
    mapping,
    moment,
    objects,
    seconds,
    text,
    whole,
)
from servewright_operator.reasons import Condition

_GOOD = dict.fromkeys(Condition, "True") | {
    Condition.PROGRESSING: "False",
    Condition.DEGRADED: "False",
}
_PARTS = ("schedule", "pull", "fetch", "start", "load", "warm")
_LOG_LINES = 20
_SHORT = 120  # characters that may be read twice


@dataclass(frozen=True, slots=True)
class View:
    """What there is to tell of."""

    service: Object
    revisions: Sequence[Object]  # its ControllerRevisions
    pods: Sequence[Object]

    @property
    def is_ready(self) -> bool:
        """Whether the operator says so, of the spec as it is now."""
        ready = condition(self.service, Condition.READY)
        generation = whole(self.service, "metadata", "generation")
        return ready.get("status") == "True" and whole(ready, "observedGeneration") >= generation


def render(view: View, now: datetime, *, width: int) -> str:
    """The story as plain text."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, legacy_windows=False)
    console.print(story(view, now))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def story(view: View, now: datetime) -> RenderableType:
    """The story for a console, which wraps and colours it."""
    status = mapping(view.service, "status")
    parts = [
        _head(view),
        *_section("Conditions", _conditions(view.service, now)),
        *_section("Revisions", _revisions(view, now)),
        *_section("Pods", _pods(view, now)),
        *_section("", _facts(view.service, status, now)),
        *_section("Last failure", _failure(status, now)),
    ]
    return Group(*parts)


def _head(view: View) -> RenderableType:
    metadata = view.service["metadata"]
    ready = condition(view.service, Condition.READY)
    if view.is_ready:
        verdict = Text("Ready", style="bold green")
    elif ready.get("status") == "True":
        verdict = Text("not Ready: the operator has not seen the last change yet", style="yellow")
    elif not ready:
        verdict = Text("not Ready: no operator has seen it yet", style="yellow")
    else:
        verdict = Text(f"not Ready: {_plain(text(ready, 'reason'))}", style="bold red")
    title = Text(f"ModelService {metadata['namespace']}/{metadata['name']}  ", style="bold")
    return Text.assemble(title, verdict)


def _section(title: str, body: RenderableType | None) -> Iterable[RenderableType]:
    if body is None:
        return
    yield Text("")
    if title:
        yield Text(title, style="bold")
    yield Padding(body, (0, 0, 0, 2 if title else 0))


def _table(*columns: str) -> Table:
    table = Table(box=None, show_header=bool(columns), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _conditions(service: Object, now: datetime) -> RenderableType | None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    found = objects(service, "status", "conditions")
    told_below = text(service, "status", "lastFailure", "message")
    for one in found:
        words = text(one, "message")
        if len(told_below) > _SHORT:
            words = words.replace(told_below, "see Last failure.")
        kind, truth = text(one, "type"), text(one, "status")
        style = "green" if truth == _GOOD.get(kind) else "red"  # type: ignore[call-overload]
        style = "yellow" if truth == "Unknown" or kind == Condition.PROGRESSING else style
        table.add_row(
            Text(_plain(kind)),
            Text(_plain(truth), style=style),
            Text(_plain(text(one, "reason"))),
            _age(moment(one, "lastTransitionTime"), now),
            Text(_plain(words)),
        )
    return table if found else None


def _revisions(view: View, now: datetime) -> RenderableType | None:
    status = mapping(view.service, "status")
    running = {pods.revision(pod) for pod in view.pods if not pods.is_ending(pod)}
    roles = {"revision": "wanted", "lastGoodRevision": "last good", "failedRevision": "failed"}
    table = _table("NUMBER", "NAME", "AGE", "", "IMAGE")
    for one in sorted(view.revisions, key=lambda one: whole(one, "revision"), reverse=True):
        name = text(one, "metadata", "labels", names.REVISION_LABEL)
        told = [word for field, word in roles.items() if name and status.get(field) == name]
        told += ["running"] if name in running else []
        images = [
            text(each, "image") for each in objects(one, "data", "template", "spec", "containers")
        ]
        table.add_row(
            str(whole(one, "revision")),
            Text(_plain(name)),
            _age(moment(one, "metadata", "creationTimestamp"), now),
            Text(", ".join(told), style="red" if "failed" in told else ""),
            Text(_plain(images[0] if images else "")),
        )
    return table if view.revisions else None


def _pods(view: View, now: datetime) -> RenderableType | None:
    table = _table("NAME", "STATE", "RESTARTS", "AGE", "REVISION", "NODE")
    for pod in sorted(view.pods, key=pods.age_key):
        state = _pod_state(pod)
        table.add_row(
            Text(_plain(pods.name(pod))),
            Text(_plain(state), style="green" if state == "Ready" else "yellow"),
            str(pods.restarts(pod)),
            _age(moment(pod, "metadata", "creationTimestamp"), now),
            Text(_plain(pods.revision(pod))),
            Text(_plain(text(pod, "spec", "nodeName"))),
        )
    return table if view.pods else None


def _pod_state(pod: Object) -> str:
    """One word, as `kubectl get pods` would have it."""
    if pods.is_ending(pod):
        return "Ending"
    if pods.is_ready(pod):
        return "Ready"
    if reason := text(pod, "status", "reason"):
        return reason
    for status in pods.containers(pod):
        for kind in ("waiting", "terminated"):
            reason = text(pods.state(status, kind), "reason")
            if reason not in ("", "Completed", "PodInitializing"):
                return reason
        if pods.state(status, "running"):
            return "Fetching" if status.get("name") == names.FETCH_CONTAINER else "NotReady"
    return text(pod, "status", "phase") or "Unknown"


def _facts(service: Object, status: Object, now: datetime) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for title, words in _rows(service, status, now):
        table.add_row(title, Text(_plain(words)))
    return table


def _rows(service: Object, status: Object, now: datetime) -> Iterable[tuple[str, str]]:
    spec, model = mapping(service, "spec"), mapping(status, "model")
    digest = text(model, "digest")[: len("sha256:") + 12]  # enough to tell one from another
    told = [text(model, "format"), f"{whole(model, 'bytes') / 1e6:,.1f} MB", digest]
    known = f" ({', '.join(filter(None, told))})" if "bytes" in model else ""
    if name := text(model, "name"):
        yield "Model", name
    yield "Source", f"{text(spec, 'model', 'source')}{known}"
    wanted = 0 if spec.get("suspend") is True else spec.get("replicas", 1)
    yield "Replicas", f"{whole(status, 'readyReplicas')} of {wanted} serve"
    for protocol, url in mapping(status, "endpoints").items():
        yield "Endpoint", f"{protocol} {url}"
    probe = mapping(status, "lastProbe")
    if probe:
        took = f"{seconds(probe, 'latencySeconds'):.2f} s"
        when = f"{_age(moment(probe, 'time'), now)} ago, {took}, revision {text(probe, 'revision')}"
        words = f"{text(probe, 'result')} ({when}): {text(probe, 'message')}"
        yield "Last probe", words
    parts = mapping(status, "coldStart")
    if parts:
        each = ", ".join(f"{part} {seconds(parts, part):.1f}" for part in _PARTS if part in parts)
        yield "Cold start", f"{sum(seconds(parts, part) for part in parts):.1f} s: {each}"


def _failure(status: Object, now: datetime) -> RenderableType | None:
    failure = mapping(status, "lastFailure")
    if not failure:
        return None
    code = f", exit code {failure['exitCode']}" if "exitCode" in failure else ""
    who = f"pod {text(failure, 'pod')}" if failure.get("pod") else "no pod"
    age = _age(moment(failure, "time"), now)
    head = f"{text(failure, 'reason')}{code} ({age} ago, {who}, {text(failure, 'revision')})"
    message = text(failure, "message")
    lines: list[RenderableType] = [Text(_plain(head), style="red"), Text(_plain(message))]
    log = text(failure, "logTail").splitlines()[-_LOG_LINES:]
    # The runtime's last line says what it ended with: that is the message.
    log = [line for line in log if not message or json.dumps(message)[1:-1] not in line]
    lines += [Padding(Text(_plain(line), style="dim"), (0, 0, 0, 2)) for line in log]
    return Group(*lines)


def _age(since: datetime | None, now: datetime) -> str:
    """As kubectl writes it: 45s, 12m, 3h, 9d."""
    if since is None:
        return ""
    age = max(now - since, timedelta(0))
    if age < timedelta(minutes=2):
        return f"{age.seconds}s"
    if age < timedelta(hours=2):
        return f"{age.seconds // 60}m"
    if age < timedelta(days=2):
        return f"{int(age.total_seconds()) // 3600}h"
    return f"{age.days}d"


def _plain(words: str) -> str:
    """Without what a terminal obeys; lines stay lines."""
    return "".join(one if one.isprintable() or one == "\n" else " " for one in words).strip("\n")
