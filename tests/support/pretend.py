"""A cluster pretended in memory: enough of Kubernetes to let decisions meet their consequences.

It stores what a plan says, rolls pods as the Deployment controller does, lets them live as their
revision's fate wants, and answers the operator's calls. Time moves only when it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from servewright_operator import names
from servewright_operator.decide import plan
from servewright_operator.names import Key
from servewright_operator.objects import Note, Object, Observed, Plan, Probe, ProbeRecord
from servewright_operator.reading import condition, moment
from servewright_operator.settings import PodDefaults
from support import pod_objects
from support.manifests import make_manifest

# How a revision's pods live.
Fate = Literal["good", "slow", "crash", "hang", "no node", "no image", "mute"]

KEY = Key("default", "mine")
PODS = PodDefaults("registry.example/servewright-runtime:1", "registry.example/cuda:1")
DEADLINE_S = 60


class Pretend:
    """One ModelService `mine`, its children and its pods."""

    def __init__(self, changes: Mapping[str, Any] | None = None, fate: Fate = "good") -> None:
        first = {
            "spec.model.source": "https://models.example/mine.gguf",
            "spec.access.mode": "Open",
            "spec.rollout.progressDeadlineSeconds": DEADLINE_S,
        }
        self.service: Object = make_manifest({**first, **(changes or {})})
        self.service["metadata"] |= {"namespace": "default", "uid": "u-1", "generation": 1}
        self.now = pod_objects.BORN
        self.fate: Fate = fate  # of revisions that are new from now on
        self.fates: dict[str, Fate] = {}
        self.defaults = PODS
        self.children: dict[tuple[str, str], Object] = {}
        self.pods: dict[str, Object] = {}
        self.born: dict[str, datetime] = {}
        self.secrets = {"mine-probe": "probe-key", "mine-api-keys": "user-key"}  # as far as read
        self.told: list[Note] = []
        self.status_writes = 0
        self.child_writes: list[str] = []
        self.probe: Probe | None = None
        self.record: ProbeRecord | None = None
        self.states: dict[str, Object] = {}
        self.requeue_after_s: float | None = None
        self._made = 0
        self._progressed_at = self.now

    # What a person does

    def edit(self, changes: Mapping[str, Any]) -> None:
        """Change fields of the ModelService by path; None removes one."""
        for path, value in changes.items():
            *groups, last = path.split(".")
            place = self.service
            for group in groups:
                place = place.setdefault(group, {})
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        self.service["metadata"]["generation"] += 1

    def restart_operator(self, defaults: PodDefaults | None = None) -> None:
        """What was only in its memory is gone."""
        self.record, self.probe, self.states = None, None, {}
        self.defaults = defaults or self.defaults

    # What the operator does

    def observed(self) -> Observed:
        return Observed(
            KEY,
            self.service,
            children=list(self.children.values()),
            pods=list(self.pods.values()),
            probe=self.record,
            states=dict(self.states),
            secrets=dict(self.secrets),
        )

    def reconcile(self) -> Plan:
        """One pass, carried out."""
        made = plan(self.observed(), self.defaults, self.now)
        if made.children is not None:
            self._apply(made.children)
        if made.status != self.service.get("status"):
            self.status_writes += 1
            self.service = {**self.service, "status": made.status}
        self.told += made.notes
        if made.probe != self.probe:
            self.probe, self.record = made.probe, None
        for name, pod in self.pods.items():
            if pod["metadata"]["uid"] in made.ask_state:
                phase = "Ready" if self._is_ready(name) else "Loading"
                self.states[pod["metadata"]["uid"]] = {**STATE, "phase": phase}
        self.requeue_after_s = made.requeue_after_s
        return made

    def _apply(self, desired: Any) -> None:
        wanted = {(child["kind"], child["metadata"]["name"]): child for child in desired}
        for name in [name for name in self.children if name not in wanted]:
            self.child_writes.append(f"delete {'/'.join(name)}")
            del self.children[name]
        for name, child in wanted.items():
            live = self.children.get(name)
            new = dict(child)
            if name[0] == "Service":
                new["spec"] = {**child["spec"], "clusterIP": "127.96.0.7"}
            if live is not None:
                same = {part: live.get(part) for part in ("spec", "data", "revision")} == {
                    part: new.get(part) for part in ("spec", "data", "revision")
                }
                if same:
                    continue
                new["status"] = live.get("status", {})
            generation = 1 if live is None else live["metadata"]["generation"] + 1
            new["metadata"] = {**new["metadata"], "generation": generation}
            self.child_writes.append(f"apply {'/'.join(name)}")
            self.children[name] = new

    # What Kubernetes does

    @property
    def deployment(self) -> Object:
        return self.children[("Deployment", "mine")]

    def kubernetes(self) -> None:
        """The Deployment controller, the scheduler and the kubelet take a step."""
        if ("Deployment", "mine") not in self.children:
            return
        template = self.deployment["spec"]["template"]
        wanted: int = self.deployment["spec"]["replicas"]
        revision = template["metadata"]["labels"][names.REVISION_LABEL]
        self.fates.setdefault(revision, self.fate)
        self._live()
        new = [name for name in self.pods if self._revision(name) == revision]
        old = [name for name in self.pods if self._revision(name) != revision]
        ready = [name for name in new if self._is_ready(name)]
        ready_old = [name for name in old if self._is_ready(name)]
        while len(new) < wanted and len(new) + len(old) < wanted + 1:
            new.append(self._make(revision))
        while len(new) > wanted:
            del self.pods[new.pop()]
        for name in sorted(old, key=self._is_ready):
            if name not in ready_old or len(ready) + len(ready_old) > wanted:
                ready_old = [other for other in ready_old if other != name]
                old.remove(name)
                del self.pods[name]
        self._tell(wanted, new, old, ready)

    def _tell(self, wanted: int, new: list[str], old: list[str], ready: list[str]) -> None:
        before = self.deployment.get("status", {})
        available = len(ready) + sum(self._is_ready(name) for name in old)
        counts = {
            "replicas": len(new) + len(old),
            "updatedReplicas": len(new),
            "readyReplicas": available,
            "availableReplicas": available,
        }
        progressing = condition(self.deployment, "Progressing")
        is_new = before.get("observedGeneration") != self.deployment["metadata"]["generation"]
        complete = len(new) == len(ready) == wanted and not old
        was_complete = progressing.get("reason") == "NewReplicaSetAvailable"
        if is_new or any(before.get(part, 0) < counts[part] for part in counts):
            self._progressed_at = self.now
        reason = "ReplicaSetUpdated"
        if complete or (was_complete and not old):  # more replicas are no new rollout
            reason = "NewReplicaSetAvailable"
        elif self.now - self._progressed_at > timedelta(seconds=DEADLINE_S):
            reason = "ProgressDeadlineExceeded"
        since = progressing.get("lastUpdateTime")
        if progressing.get("reason") != reason or since is None:
            since = pod_objects.stamp(self.now)
        self.deployment["status"] = {
            **{part: value for part, value in counts.items() if value},
            "observedGeneration": self.deployment["metadata"]["generation"],
            "conditions": [
                {"type": "Available", "status": "True" if available >= wanted else "False"},
                {
                    "type": "Progressing",
                    "status": "False" if reason == "ProgressDeadlineExceeded" else "True",
                    "reason": reason,
                    "lastUpdateTime": since,
                },
            ],
        }

    def _make(self, revision: str) -> str:
        self._made += 1
        name = f"mine-{self._made}"
        self.pods[name] = pod_objects.pod(revision, name)
        self.pods[name]["metadata"]["creationTimestamp"] = pod_objects.stamp(self.now)
        self.born[name] = self.now
        return name

    def _live(self) -> None:
        """Each pod's situation, from its fate and age."""
        for name, pod in self.pods.items():
            age = (self.now - self.born[name]).total_seconds()
            base = pod_objects.pod(self._revision(name), name)
            base["metadata"] = pod["metadata"]
            self.pods[name] = _situation(base, self.fates[self._revision(name)], age)

    def _revision(self, name: str) -> str:
        revision: str = self.pods[name]["metadata"]["labels"][names.REVISION_LABEL]
        return revision

    def _is_ready(self, name: str) -> bool:
        return condition(self.pods[name], "Ready").get("status") == "True"

    def call(self) -> None:
        """The operator's call through the Service, if there is one to make."""
        if self.probe is None:
            return
        answers = {self._revision(name) for name in self.pods if self._is_ready(name)}
        is_mute = self.fates.get(self.probe.revision) == "mute"
        is_good = self.probe.revision in answers and not is_mute
        before = self.record
        self.record = ProbeRecord(
            time=self.now,
            revision=self.probe.revision,
            latency_s=0.25,
            result="Succeeded" if is_good else "Failed",
            reason="Answered" if is_good else "TimedOut",
            message="It answered as it should." if is_good else "No answer came within 60 s.",
            failures=0 if is_good else (before.failures if before else 0) + 1,
            repeats=1,
            succeeded_at=self.now if is_good else (before.succeeded_at if before else None),
        )

    # Both together

    def step(self, seconds: float = 5.0) -> None:
        """A while passes, in which everybody acts once."""
        self.now += timedelta(seconds=seconds)
        self.kubernetes()
        self.call()
        self.reconcile()

    def settle(self, *, most: int = 80) -> None:
        """Steps until three in a row change nothing, at most `most` of them."""
        quiet = 0
        for _ in range(most):
            before = (self.status_writes, len(self.child_writes), set(self.pods))
            self.step()
            is_quiet = before == (self.status_writes, len(self.child_writes), set(self.pods))
            quiet = quiet + 1 if is_quiet and self.requeue_after_s != 0 else 0
            # A rollout that makes no progress is quiet too, until its deadline.
            waits = self.truth("Progressing") == "True"
            if quiet >= 3 and not waits:
                return
        raise AssertionError(f"not settled after {most} steps: {self.service['status']}")

    # What it shows

    @property
    def status(self) -> Object:
        status: Object = self.service["status"]
        return status

    def truth(self, kind: str) -> str:
        """A condition's status."""
        status: str = condition(self.service, kind)["status"]
        return status

    def reason(self, kind: str) -> str:
        reason: str = condition(self.service, kind)["reason"]
        return reason

    def message(self, kind: str) -> str:
        message: str = condition(self.service, kind)["message"]
        return message

    def since(self, kind: str) -> datetime:
        since = moment(condition(self.service, kind), "lastTransitionTime")
        assert since is not None
        return since

    @property
    def revisions(self) -> list[str]:
        """Those remembered, by number."""
        found = [
            child for (kind, _), child in self.children.items() if kind == "ControllerRevision"
        ]
        found.sort(key=lambda child: child["revision"])
        return [child["metadata"]["labels"][names.REVISION_LABEL] for child in found]

    @property
    def running(self) -> str:
        """The revision of the Deployment."""
        labels = self.deployment["spec"]["template"]["metadata"]["labels"]
        revision: str = labels[names.REVISION_LABEL]
        return revision


STATE: Object = {
    "phase": "Ready",
    "coldStart": {"start": 6.0, "load": 4.5, "warm": 1.25},
    "models": [
        {
            "name": "mine",
            "revision": "aaaaaaaaaa",
            "model": {"digest": "sha256:" + "1" * 64, "format": "gguf", "bytes": 98_000_000},
        }
    ],
    "running": 0,
    "waiting": 0,
}


def _situation(base: Object, fate: Fate, age_s: float) -> Object:
    if fate == "no node":
        return pod_objects.unschedulable(base)
    if fate == "no image":
        return pod_objects.no_image(base, is_backing_off=int(age_s / 5) % 2 == 1)
    if age_s < 5:
        return pod_objects.creating(base)
    if fate == "crash":
        return pod_objects.crashed(base)
    if fate == "hang" or age_s < (50 if fate == "slow" else 15):
        return pod_objects.loading(base)
    return pod_objects.ready(base)
