"""The one decision: from what is observed to what is to be so, and said.

Pure, so that every situation that a cluster can get into is a test of a function.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

from servewright_api import ManifestError, ModelService, parse_manifest, revision
from servewright_api.manifest import service_from_cluster
from servewright_operator import desired, names, pods
from servewright_operator.deployed import Deployed
from servewright_operator.desired.pod import MANIFEST_VARIABLE, template
from servewright_operator.facts import Facts
from servewright_operator.failures import failing, overcome, worst
from servewright_operator.objects import (
    Object,
    Observed,
    Plan,
    Probe,
    Rollout,
)
from servewright_operator.reading import at, condition, mapping, objects, text
from servewright_operator.reasons import Condition, Reason
from servewright_operator.revisions import choose
from servewright_operator.settings import PodDefaults
from servewright_operator.status import compute
from servewright_operator.verdicts import words

_SOONEST_S = 1.0
_UNANSWERED = {Reason.PROBE_PENDING, Reason.PROBE_STALE}


def plan(observed: Observed, pod_defaults: PodDefaults, now: datetime) -> Plan:
    """What to do about a ModelService, as it is seen `now`."""
    if at(observed.service, "metadata", "deletionTimestamp") is not None:
        # Its children go by their owner references; what is applied now would come back.
        return Plan(None, mapping(observed.service, "status"), (), None, {}, None)
    deployed = Deployed.of(observed, now)
    facts = Facts(
        observed=observed,
        now=now,
        deployed=deployed,
        failing=failing(observed, deployed, now),
        overcome=overcome(observed, now),
    )
    try:
        service = service_from_cluster(observed.service)
    except ManifestError as error:
        story = compute(replace(facts, problems=error.problems))
        return Plan(None, story.status, story.notes, None, {}, story.requeue_after_s)
    rollout = _rollout(facts, service, pod_defaults)
    served = service if rollout.target == rollout.wanted else _served(rollout.template(), service)
    facts = replace(facts, service=service, served=served, rollout=rollout)
    story = compute(facts)
    waits = [story.requeue_after_s]
    if observed.secrets_due is not None:
        waits.append(max(_SOONEST_S, (observed.secrets_due - now).total_seconds()))
    return Plan(
        children=desired.build(service, rollout, observed),
        status=story.status,
        notes=story.notes,
        probe=_probe(facts, service, served),
        ask_state=_ask_state(facts),
        requeue_after_s=min((wait for wait in waits if wait is not None), default=None),
        lacks_key=_lacks_key(facts, served, story.status),
    )


def _rollout(facts: Facts, service: ModelService, pod_defaults: PodDefaults) -> Rollout:
    wanted = revision(service)
    failure = worst(facts.failing, wanted)
    return choose(
        facts.observed,
        facts.deployed,
        wanted,
        lambda: template(service, wanted, pod_defaults),
        auto_rollback=service.spec.rollout.auto_rollback,
        why="its pods told nothing." if failure is None else words(failure),
    )


def _probe(facts: Facts, service: ModelService, served: ModelService) -> Probe | None:
    """The call that shows whether the target revision answers: by its own prompt and key."""
    observed = facts.observed
    address = next((text(one, "spec", "clusterIP") for one in observed.of_kind("Service")), "")
    if not facts.can_be_asked or address in ("", "None"):
        return None
    key = _key(observed)
    if _wants_key(served) and key is None:
        return None
    probe = served.spec.probe
    host = f"[{address}]" if ":" in address else address
    return Probe(
        url=f"http://{host}:{names.HTTP_PORT}",
        key=key if _wants_key(served) else None,
        model=served.served_name,
        prompt=probe.prompt,
        expect=probe.expect,
        timeout_s=float(probe.timeout_seconds),
        interval_s=float(service.spec.probe.interval_seconds),
        revision=facts.target,
    )


def _lacks_key(facts: Facts, served: ModelService, status: Object) -> bool:
    """Whether the key has to be read now: an answer that the operator before this one got counts
    still, so that of a thousand services not every key is read at once.
    """
    if not (facts.can_be_asked and _wants_key(served)) or _key(facts.observed) is not None:
        return False
    return condition({"status": status}, Condition.READY).get("reason") in _UNANSWERED


def _wants_key(served: ModelService) -> bool:
    return served.spec.access.mode != "Open"


def _key(observed: Observed) -> str | None:
    return observed.secrets.get(names.probe_secret(observed.key.name))


def _served(stored: Object, service: ModelService) -> ModelService:
    """What the pods of a stored template serve, as it says itself."""
    for container in objects(stored, "spec", "containers"):
        for variable in objects(container, "env"):
            if variable.get("name") == MANIFEST_VARIABLE:
                try:
                    return parse_manifest(json.loads(text(variable, "value"))[0])
                except (ValueError, LookupError):
                    continue
    return service


def _ask_state(facts: Facts) -> dict[str, str]:
    """The target's first ready pod, for model and cold start; before that the one that has tried
    longest, for the phase in which it hangs if it does.
    """
    tries = (pod for pod in facts.current if pods.state(_replica(pod), "running"))
    pod = pods.first_ready(facts.current) or min(tries, key=pods.age_key, default=None)
    url = None if pod is None else pods.admin_url(pod)
    return {} if pod is None or url is None else {pods.uid(pod): f"{url}/state"}


def _replica(pod: Object) -> Object:
    return pods.container(pod, names.REPLICA_CONTAINER)
