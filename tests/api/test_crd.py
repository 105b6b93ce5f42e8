"""The CRD on a real API server: defaults, pruning, subresources, columns, examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright_api import load_manifests, revision, service_from_cluster
from servewright_operator import crdgen
from support.apiserver import ApiServer
from support.manifests import make_manifest
from support.tree import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
STATUSES = sorted((ROOT / "tests" / "golden" / "status").glob("*.yaml"))
CHANGES = {"spec.model.source": "https://host/x"}


class Cluster:
    """kubectl in one namespace."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self._where = f"--namespace={namespace}"

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return self._server.kubectl(*words, self._where, stdin=stdin)

    def refused(self, *words: str, stdin: str | None = None) -> str:
        """What kubectl complains of."""
        done = self._server.run_kubectl(*words, self._where, stdin=stdin)
        assert done.returncode != 0
        return done.stderr

    def apply(self, document: dict[str, Any], *words: str) -> dict[str, Any]:
        """The object as it is stored after `kubectl apply`."""
        text = yaml.safe_dump(document)
        stored = self.kubectl("apply", "--filename=-", "--output=json", *words, stdin=text)
        return dict(json.loads(stored))

    def set_status(self, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        words = ("patch", "msvc/mine", "--subresource=status", "--type=merge", f"--patch={patch}")
        self.kubectl(*words)


@pytest.fixture
def cluster(api_server: ApiServer, namespace: str) -> Cluster:
    return Cluster(api_server, namespace)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_applies_and_keeps_its_revision(cluster: Cluster, path: Path) -> None:
    cluster.kubectl("apply", f"--filename={path}")
    for service in load_manifests([path]):
        live = json.loads(cluster.kubectl("get", f"msvc/{service.metadata.name}", "--output=json"))
        stored = service_from_cluster(live)
        assert stored.spec == service.spec
        assert revision(stored) == revision(service)


def test_a_small_manifest_gets_every_default(cluster: Cluster) -> None:
    stored = cluster.apply(make_manifest(CHANGES))["spec"]
    assert stored["replicas"] == 1
    assert stored["rollout"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
        "progressDeadlineSeconds": 600,
        "autoRollback": True,
        "drainSeconds": 30,
    }
    assert stored["resources"] == {
        "requests": {"cpu": "250m", "memory": "1Gi"},
        "limits": {"memory": "2Gi"},
    }
    assert stored["access"] == {"mode": "ApiKey"}
    assert "pod" not in stored


def test_a_group_given_in_part_gets_the_rest(cluster: Cluster) -> None:
    changes = {"spec.rollout.maxSurge": "25%", "spec.resources.limits.cpu": 2}
    stored = cluster.apply(make_manifest({**CHANGES, **changes}))["spec"]
    assert stored["rollout"]["maxUnavailable"] == 0
    assert stored["resources"]["limits"] == {"cpu": 2, "memory": "2Gi"}


def test_entries_of_lists_get_their_defaults(cluster: Cluster) -> None:
    changes = {"spec.pod": {"topologySpread": [{"topologyKey": "zone"}]}}
    (spread,) = cluster.apply(make_manifest({**CHANGES, **changes}))["spec"]["pod"][
        "topologySpread"
    ]
    assert spread == {
        "topologyKey": "zone",
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
    }


def test_kubectl_refuses_an_unknown_field_by_name(cluster: Cluster) -> None:
    text = yaml.safe_dump(make_manifest({**CHANGES, "spec.engine.threds": 2}))
    assert 'unknown field "spec.engine.threds"' in cluster.refused("apply", "-f-", stdin=text)


def test_an_unknown_field_is_pruned_where_nobody_asks_for_strictness(cluster: Cluster) -> None:
    stored = cluster.apply(make_manifest({**CHANGES, "spec.zebra": 1}), "--validate=false")
    assert "zebra" not in stored["spec"]


def test_kubectl_tells_the_cure(cluster: Cluster) -> None:
    text = yaml.safe_dump(make_manifest())
    said = cluster.refused("apply", "-f-", stdin=text)
    assert "spec.model.source: Invalid value" in said
    assert "file:// is for the local runner alone" in said
    assert "use pvc://, https:// or pypi://" in said


def test_kubectl_scales(cluster: Cluster) -> None:
    cluster.apply(make_manifest(CHANGES))
    cluster.set_status({"replicas": 2, "selector": "servewright.io/modelservice=mine"})
    cluster.kubectl("scale", "msvc/mine", "--replicas=3")
    scale = json.loads(cluster.kubectl("get", "msvc/mine", "--subresource=scale", "-ojson"))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "servewright.io/modelservice=mine"}
    stored = json.loads(cluster.kubectl("get", "msvc/mine", "-ojson"))
    assert stored["spec"]["replicas"] == 3
    assert stored["metadata"]["generation"] == 2


def test_scaling_out_of_bounds_is_refused(cluster: Cluster) -> None:
    cluster.apply(make_manifest(CHANGES))
    said = cluster.refused("scale", "msvc/mine", "--replicas=1001")
    assert "spec.replicas" in said


def test_kubectl_get_shows_the_columns(cluster: Cluster) -> None:
    cluster.apply(make_manifest(CHANGES))
    lines = cluster.kubectl("get", "msvc").splitlines()
    assert lines[0].split() == [
        *("NAME", "MODEL", "READY", "REASON", "REPLICAS", "REVISION", "URL", "AGE")
    ]
    cluster.set_status(
        {
            "readyReplicas": 1,
            "revision": "0123456789",
            "model": {"name": "smollm2"},
            "endpoints": {"openai": "http://mine.team.svc:8000/v1"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "ProbeSucceeded",
                    "message": "",
                    "lastTransitionTime": "2026-11-23T04:00:00Z",
                }
            ],
        }
    )
    line = cluster.kubectl("get", "servewright").splitlines()[1]  # by category
    assert line.split()[:-1] == [
        *("mine", "smollm2", "True", "ProbeSucceeded", "1", "0123456789"),
        "http://mine.team.svc:8000/v1",
    ]
    header, line = cluster.kubectl("get", "msvc", "-owide").splitlines()
    assert (header.split()[-1], line.split()[-1]) == ("SOURCE", "https://host/x")


def test_a_status_is_no_part_of_an_edit(cluster: Cluster) -> None:
    stored = cluster.apply(make_manifest({**CHANGES, "status.replicas": 5}))
    assert "status" not in stored
    cluster.set_status({"replicas": 1})
    stored = json.loads(cluster.kubectl("get", "msvc/mine", "-ojson"))
    assert stored["metadata"]["generation"] == 1


def test_conditions_are_kept_one_of_a_type(cluster: Cluster) -> None:
    cluster.apply(make_manifest(CHANGES))
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "X",
        "message": "",
        "lastTransitionTime": "2026-11-23T04:00:00Z",
    }
    patch = json.dumps({"status": {"conditions": [condition, condition]}})
    said = cluster.refused(
        "patch", "msvc/mine", "--subresource=status", "--type=merge", f"--patch={patch}"
    )
    assert "Duplicate value" in said


@pytest.mark.parametrize("path", STATUSES, ids=lambda path: path.stem)
def test_every_status_that_the_operator_makes_is_stored_whole(cluster: Cluster, path: Path) -> None:
    cluster.apply(make_manifest(CHANGES))
    status = next(yaml.safe_load_all(path.read_text()))
    cluster.set_status(status)
    assert json.loads(cluster.kubectl("get", "msvc/mine", "-ojson"))["status"] == status


def test_a_schema_without_change_is_no_new_generation(api_server: ApiServer) -> None:
    path = ROOT / crdgen.TEMPLATE
    name = f"crd/{crdgen.PLURAL}.servewright.io"
    before = api_server.kubectl("get", name, "-ojsonpath={.metadata.generation}")
    api_server.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={path}")
    assert api_server.kubectl("get", name, "-ojsonpath={.metadata.generation}") == before


def test_the_schema_violates_no_rule_of_structural_schemas(api_server: ApiServer) -> None:
    live = json.loads(
        api_server.kubectl("get", f"crd/{crdgen.PLURAL}.servewright.io", "--output=json")
    )
    states = {condition["type"]: condition["status"] for condition in live["status"]["conditions"]}
    assert states["Established"] == "True"
    assert states.get("NonStructuralSchema", "False") == "False"
