"""What holds of the children of every ModelService."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from servewright_api import parse_manifest
from servewright_api.modelservice import API_VERSION, KIND, ModelService
from servewright_api.revision import revision
from servewright_operator import desired, names
from servewright_operator.desired import pod
from servewright_operator.holding import difference, holds, with_hash
from servewright_operator.objects import Object
from servewright_operator.settings import PodDefaults
from support.desired import PODS, UID, children_of, make_observed, make_rollout, one
from support.manifests import make_service
from support.modelservices import DIGEST, model_services

OPEN = {"spec.access.mode": "Open"}
CLAIM = {"spec.model.source": "pvc://models/m.gguf", **OPEN}
# What the kernel takes as one variable of a new process.
LONGEST_VARIABLE = 128 * 1024


def pod_of(service: ModelService) -> Object:
    """The pod's spec."""
    spec: Object = pod.template(service, revision(service), PODS)["spec"]
    return spec


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def variable(container: Object, name: str) -> str:
    (value,) = (each["value"] for each in container["env"] if each["name"] == name)
    return str(value)


@given(model_services(), model_services())
def test_the_same_input_gives_the_same_bytes_and_stays_as_it_is(
    service: ModelService, earlier: ModelService
) -> None:
    rollout = make_rollout(service, earlier)
    observed = make_observed(service, rollout, pod_monitors=True)
    before = copy.deepcopy((service, rollout, observed))
    first, second = (desired.build(service, rollout, observed) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    for child in first:
        _spoil(child)
    assert (service, rollout, observed) == before
    assert json.dumps(desired.build(service, rollout, observed)) == json.dumps(second)


def _spoil(value: Any) -> None:
    """Change all that can be changed in place."""
    inner = list(value.values()) if isinstance(value, dict) else list(value)
    for each in inner:
        if isinstance(each, dict | list):
            _spoil(each)
    value.clear()


@given(model_services("m" * names.MAX_NAME), model_services("m" * names.MAX_NAME))
def test_every_child_is_owned_labelled_and_nobody_elses_namesake(
    service: ModelService, earlier: ModelService
) -> None:
    children = children_of(service, earlier, pod_monitors=True)
    for child in children:
        metadata = child["metadata"]
        assert metadata["namespace"] == service.metadata.namespace
        assert metadata["labels"].items() >= names.labels(service.metadata.name).items()
        (owner,) = metadata["ownerReferences"]
        assert owner == {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": service.metadata.name,
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        assert len(metadata["name"]) <= 63  # a label's value and a Service's name end there
    assert len({(child["kind"], child["metadata"]["name"]) for child in children}) == len(children)
    template = one(children, "Deployment")["spec"]["template"]
    for selecting in _selectors(children):
        assert template["metadata"]["labels"].items() >= selecting.items()


def _selectors(children: list[Object]) -> Iterator[Object]:
    for child in children:
        found = child.get("spec", {})
        selector = found.get("selector", found.get("podSelector"))
        if selector is not None:
            yield selector.get("matchLabels", selector)


@given(model_services())
def test_no_operator_no_default_and_no_edit_of_the_rest_touches_a_stored_template(
    service: ModelService,
) -> None:
    stored = make_rollout(
        service, pods=PodDefaults("example.com/old:1", "example.com/old-cuda:1", "Always", ("old",))
    )
    (kept,) = stored.kept
    # As another version of the operator may have rendered it.
    kept.template["spec"]["hostname"] = "from-another-version"
    kept.template["spec"]["containers"][0]["image"] = "example.com/another:2"
    wanted = json.dumps(kept.template)
    rollout = service.spec.rollout.model_copy(update={"progress_deadline_seconds": 77})
    now = service.model_copy(
        update={"spec": service.spec.model_copy(update={"replicas": 9, "rollout": rollout})}
    )
    children = desired.build(now, stored, make_observed(now, stored))
    assert json.dumps(one(children, "Deployment")["spec"]["template"]) == wanted
    assert json.dumps(one(children, "ControllerRevision")["data"]["template"]) == wanted


@given(model_services())
def test_the_runtime_is_told_the_same_bytes_for_the_same_revision(service: ModelService) -> None:
    for container in containers(pod_of(service)):
        text = variable(container, pod.MANIFEST_VARIABLE)
        assert "$" not in text  # nothing that the kubelet would expand
        (document,) = json.loads(text)
        told = parse_manifest(document, in_cluster=True)
        assert told.metadata.name == service.metadata.name
        for group in ("model", "engine", "accelerator", "limits", "access"):
            assert getattr(told.spec, group) == getattr(service.spec, group)
        assert told.spec.probe.prompt == service.spec.probe.prompt
        assert told.spec.rollout.drain_seconds == service.spec.rollout.drain_seconds
        assert variable(container, pod.REVISION_VARIABLE) == revision(service)
        other = service.model_copy(
            update={"spec": service.spec.model_copy(update={"replicas": 9, "suspend": True})}
        )
        (replica,) = pod_of(other)["containers"]
        assert variable(replica, pod.MANIFEST_VARIABLE) == text


def test_the_longest_spec_fits_into_a_variable() -> None:
    wide = "\U0001f600"  # twelve characters once escaped
    service = make_service(
        {
            "spec.model.source": "https://h/" + wide * 2038,
            "spec.probe.prompt": wide * 4096,
            "spec.probe.expect": wide * 1024,
            "spec.pod.annotations": {f"a{index}": wide * 4096 for index in range(32)},
        }
    )
    (replica,) = pod_of(service)["containers"]
    assert len(variable(replica, pod.MANIFEST_VARIABLE)) < LONGEST_VARIABLE


@given(model_services())
def test_every_pod_passes_the_restricted_pod_security_standard(service: ModelService) -> None:
    """Each control of the standard, version 1.37; what a field does not say is as it should be."""
    spec = pod_of(service)
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
    assert spec["securityContext"] == {
        "runAsNonRoot": True,  # no runAsUser: any id will do
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not spec["automountServiceAccountToken"]
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("hostPort" not in port for port in container.get("ports", ()))
    kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
    assert kinds <= {"emptyDir", "persistentVolumeClaim", "projected", "secret"}


@given(model_services())
def test_whatever_is_mounted_is_there_and_whatever_is_there_is_mounted(
    service: ModelService,
) -> None:
    spec = pod_of(service)
    mounted = {mount["name"] for each in containers(spec) for mount in each["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    writable = {"tmp", "shm", "model"}
    for container in containers(spec):
        for mount in container["volumeMounts"]:
            assert mount.get("readOnly") or mount["name"] in writable
    (replica,) = spec["containers"]
    told = {mount["name"]: mount for mount in replica["volumeMounts"]}
    assert "credentials" not in told
    assert told["model"]["readOnly"]
    assert ("keys" in told) == (service.spec.access.mode == "ApiKey")


@pytest.mark.parametrize(
    ("source", "digest", "fetches"),
    [
        ("https://h/m.gguf", None, True),
        ("pypi://a==1/m.gguf", DIGEST, True),
        ("pvc://claim/m.gguf", None, False),
        ("pvc://claim/m.gguf", DIGEST, True),
    ],
)
def test_a_pod_fetches_what_has_to_come_or_to_be_verified(
    source: str, digest: str | None, fetches: bool
) -> None:
    spec = pod_of(make_service({"spec.model.source": source, "spec.model.digest": digest}))
    assert ("initContainers" in spec) == fetches


def test_a_start_has_time_for_a_deadline_that_is_raised_later() -> None:
    """The template stays as it is stored when only the deadline is edited."""
    for deadline_s, budget_s in ((10, 3600), (86_400, 86_400)):
        service = make_service({"spec.rollout.progressDeadlineSeconds": deadline_s, **CLAIM})
        probe = pod_of(service)["containers"][0]["startupProbe"]
        assert probe["failureThreshold"] * probe["periodSeconds"] == budget_s


def test_a_pod_that_goes_has_time_to_linger_to_drain_and_to_end() -> None:
    spec = pod_of(make_service({"spec.rollout.drainSeconds": 120, **CLAIM}))
    assert spec["terminationGracePeriodSeconds"] == 130


@given(model_services())
def test_an_accelerator_is_claimed_by_the_replica_alone(service: ModelService) -> None:
    spec, wanted = pod_of(service), service.spec.accelerator
    (replica,) = spec["containers"]
    for container in containers(spec):
        claim = "1" if wanted is not None and container is replica else None
        for part in container["resources"].values():
            assert part.get("nvidia.com/gpu") == claim
        image = PODS.image if wanted is None else PODS.cuda_image
        assert container["image"] == service.spec.pod.image or image
    taints = [each.get("key") for each in spec.get("tolerations", ())]
    assert ("nvidia.com/gpu" in taints) == (wanted is not None)


def test_pull_secrets_of_user_and_installation_are_named_once() -> None:
    given = {"spec.pod.imagePullSecrets": [{"name": "mine"}, {"name": "both"}]}
    pods = PodDefaults("x", "y", image_pull_secrets=("both", "theirs"))
    spec = pod.template(make_service(given), "r", pods)["spec"]
    assert spec["imagePullSecrets"] == [{"name": "mine"}, {"name": "both"}, {"name": "theirs"}]


def spread(*given: Object) -> list[tuple[str, str, int]]:
    """Topology key, what if it cannot be, skew: of the pods' constraints."""
    found = pod_of(make_service({"spec.pod.topologySpread": list(given)}))
    return [
        (each["topologyKey"], each["whenUnsatisfiable"], each["maxSkew"])
        for each in found["topologySpreadConstraints"]
    ]


def test_pods_are_spread_over_nodes_unless_the_user_says_how() -> None:
    node, zone = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
    assert spread() == [(node, "ScheduleAnyway", 1)]
    strict = {"topologyKey": zone, "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 2}
    assert spread(strict) == [(zone, "DoNotSchedule", 2), (node, "ScheduleAnyway", 1)]
    rack = {"topologyKey": "rack"}
    assert spread(rack) == [("rack", "ScheduleAnyway", 1), *spread()]


@pytest.mark.parametrize(
    ("changes", "replicas", "has_budget"),
    [
        ({}, 1, False),
        ({"spec.replicas": 2}, 2, True),
        ({"spec.replicas": 0}, 0, False),
        ({"spec.replicas": 3, "spec.suspend": True}, 0, False),
    ],
)
def test_replicas_are_the_deployments_and_several_have_a_budget(
    changes: dict[str, Any], replicas: int, has_budget: bool
) -> None:
    children = children_of(make_service({**CLAIM, **changes}))
    assert one(children, "Deployment")["spec"]["replicas"] == replicas
    assert has_budget == any(child["kind"] == "PodDisruptionBudget" for child in children)


def made(*services: ModelService) -> set[str]:
    """Names of the Secrets that are made while all of these revisions are kept."""
    children = children_of(services[-1], *services[:-1])
    return {child["metadata"]["name"] for child in children if child["kind"] == "Secret"}


def test_made_secrets_stay_while_a_kept_revision_mounts_them() -> None:
    ours = make_service({"spec.model.source": "pvc://c/m"})
    theirs = make_service(
        {"spec.model.source": "pvc://c/m", "spec.access.secretRef": {"name": "users"}}
    )
    everyones = make_service(CLAIM)
    assert made(ours) == {"mine-api-keys", "mine-probe"}
    assert made(theirs) == {"mine-probe"}
    assert made(everyones) == set()
    assert made(ours, everyones) == {"mine-api-keys", "mine-probe"}
    assert made(theirs, everyones) == {"mine-probe"}


def ways_out(*services: ModelService, rolled_back: bool = False) -> list[int | None]:
    """The TCP ports, DNS aside, that the NetworkPolicy leaves open; None: every one."""
    children = children_of(services[-1], *services[:-1], rolled_back=rolled_back)
    ports = [
        port
        for rule in one(children, "NetworkPolicy")["spec"]["egress"]
        for port in rule["ports"]
        if port.get("port") not in (53, 5353)
    ]
    assert all(port["protocol"] == "TCP" for port in ports)
    return [port.get("port") for port in ports]


@pytest.mark.parametrize(
    ("source", "env", "ports"),
    [
        ("pvc://claim/m.gguf", [], []),
        ("pvc://claim/m.gguf", [{"name": "HTTPS_PROXY", "value": "http://p:3128"}], []),
        ("https://h/m.gguf", [], [443]),
        ("https://h:8443/m.gguf", [], [8443]),
        ("https://[::1]:8443/m.gguf", [], [8443]),
        ("http://h/m.gguf", [], [80]),
        ("pypi://a==1/m.gguf", [], [443]),
        ("https://h/m.gguf", [{"name": "https_proxy", "value": "http://p:3128"}], [443, 3128]),
        ("https://h/m.gguf", [{"name": "HTTPS_PROXY", "value": "p:3128"}], [443, 3128]),
        ("https://h/m.gguf", [{"name": "NO_PROXY", "value": "h,10.0.0.0/8"}], [443]),
        ("pypi://a==1/m.gguf", [{"name": "PIP_INDEX_URL", "value": "http://p/simple"}], [80, 443]),
        (
            "pypi://a==1/m.gguf",
            [{"name": "PIP_EXTRA_INDEX_URL", "value": "https://p:1/s http://p:99999 http://p:2"}],
            [1, 2, 443],
        ),
        ("pypi://a==1/m.gguf", [{"name": "PIP_TIMEOUT", "value": "5"}], [443]),
        (
            "https://h/m.gguf",
            [
                {
                    "name": "HTTPS_PROXY",
                    "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}},
                }
            ],
            [None, 443],
        ),
    ],
)
def test_a_replica_reaches_its_source_and_what_leads_there_and_nothing_else(
    source: str, env: list[Object], ports: list[int | None]
) -> None:
    service = make_service(
        {"spec.model.source": source, "spec.model.digest": DIGEST, "spec.pod.env": env, **OPEN}
    )
    assert ways_out(service) == ports


def test_the_way_out_of_the_last_good_revision_stays_open() -> None:
    """Its pods may have to start again at any time, while the new one comes and after it failed."""
    good = make_service({"spec.model.source": "https://h:8443/m.gguf", **OPEN})
    new = make_service({"spec.model.source": "https://h/m.gguf", **OPEN})
    assert ways_out(good, new) == [443, 8443]
    assert ways_out(good, new, rolled_back=True) == [443, 8443]


@settings(max_examples=20)
@given(model_services())
def test_every_edit_of_a_desired_value_is_noticed(service: ModelService) -> None:
    for child in children_of(service):
        live = copy.deepcopy(with_hash(child))
        for path in _leaves(child):
            place: Any = live
            for part in path[:-1]:
                place = place[part]
            was = place[path[-1]]
            place[path[-1]] = _other(was)
            assert difference(live, child) is not None, path
            place[path[-1]] = was
        assert holds(live, child)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = enumerate(value) if isinstance(value, list) else value.items()
    for key, each in inner:
        if isinstance(each, dict | list) and each:
            yield from _leaves(each, (*path, key))
        elif not isinstance(each, dict | list):
            yield (*path, key)


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else f"{value}x"
