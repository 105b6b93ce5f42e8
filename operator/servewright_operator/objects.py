"""The plain data between what is seen, what is decided and what is done.

Kubernetes objects are JSON as the API server sends it, without `metadata.managedFields` but in a
child whose spec somebody else edited. Nobody changes an object that it did not make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from servewright_operator.names import Key

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision as its ControllerRevision holds it: what was rendered once is used ever after."""

    name: str  # the hash, ten hex digits
    number: int  # 1, 2, ...: the order in which they were asked for
    template: Object  # the pod template


@dataclass(frozen=True, slots=True)
class Rollout:
    """Which revision is wanted, which one the Deployment is to run, and which are remembered."""

    wanted: str  # what spec asks for
    target: str  # what the Deployment runs: wanted, or after a rollback last_good
    kept: Sequence[StoredRevision]  # by number; wanted and target are among them
    last_good: str | None
    failed: str | None  # wanted, once it was rolled back; else None
    why: str  # it failed, in the pod's words; empty unless failed is given

    def template(self) -> Object:
        """The pod template that the Deployment is to have."""
        return next(revision.template for revision in self.kept if revision.name == self.target)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with a pod, in its own words."""

    pod: str  # its name
    revision: str
    reason: str  # CamelCase: the container's own, the kubelet's or the scheduler's
    message: str
    exit_code: int | None
    log_tail: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask the cluster about a pod that fails or hangs, for its PodWords."""

    uid: str
    pod: str  # its name
    once: str  # while this stays the same, the answer got before is still the answer
    container: str | None  # whose log to read; None: no log
    previous: bool  # the log of the container's life before this one
    events: bool  # whether to read the pod's Warning Events


@dataclass(frozen=True, slots=True)
class PodWords:
    """What was asked about a failing pod, once per restart. Empty where there is nothing."""

    log_tail: str = ""
    events: tuple[str, ...] = ()  # of Warning Events, newest last: "REASON: message"


@dataclass(frozen=True, slots=True)
class Probe:
    """The operator's own call: what to ask of whom, and how often."""

    url: str  # http://CLUSTER-IP:8000
    key: str | None = field(repr=False)  # API key; None: access is open
    model: str  # served name
    prompt: str
    expect: str | None
    timeout_s: float
    interval_s: float
    revision: str  # that has to answer


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """The last answers to a Probe.

    result: Succeeded: the revision asked for answered as expected (429 too: alive and busy);
    Failed: it answered something else or not at all; Unknown: it could not be asked.
    """

    time: datetime
    revision: str  # that answered, or was asked for where none did
    latency_s: float
    result: Literal["Succeeded", "Failed", "Unknown"]
    reason: str  # CamelCase
    message: str
    failures: int  # since the last success, or since Unknown was repeated
    repeats: int  # of this result and reason in a row, this one included
    succeeded_at: datetime | None  # the last success for this revision


@dataclass(frozen=True, slots=True)
class Observed:
    """All that a decision about one ModelService may depend on, but for settings and time."""

    key: Key
    service: Object  # the ModelService with its stored status
    children: Sequence[Object] = ()  # owned by it, of every kind but Pod and Secret
    pods: Sequence[Object] = ()  # of its Deployment, all revisions
    words: Mapping[str, PodWords] = field(default_factory=dict)  # by pod uid
    states: Mapping[str, Object] = field(default_factory=dict)  # ready pods' /state, by pod uid
    probe: ProbeRecord | None = None
    # The value of each generated Secret's key, existing or freshly made, by the Secret's name.
    # One that is not among them was not read yet, and is taken to be there.
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets_due: datetime | None = None  # when one of them is to be read again
    has_pod_monitors: bool = False  # the cluster has the kind PodMonitor
    refused: str = ""  # why the API server took no child of the last pass, in its words

    def of_kind(self, kind: str) -> list[Object]:
        """The children of a kind."""
        return [child for child in self.children if child["kind"] == kind]


@dataclass(frozen=True, slots=True)
class Note:
    """An Event to post: a transition, told once."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be so, and said. Executing it twice changes nothing the second time."""

    # In the order to apply them; owned ones not among them go. None: leave all as they are.
    children: Sequence[Object] | None
    status: Object  # the whole of .status
    notes: Sequence[Note]  # after the status is written
    probe: Probe | None  # to keep asking; None: nobody to ask
    ask_state: Mapping[str, str]  # URL of /state by uid, of pods to ask until they are ready
    requeue_after_s: float | None  # when time alone would change the decision; 0: at once
    lacks_key: bool = False  # Ready waits for an answer, and the key to ask with was not read
