"""Whatever edits somebody else makes of a Deployment, one pass undoes them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from servewright_operator.objects import Object
from support import editing
from support.apiserver import ApiServer
from support.editing import APPLY, JSON, MERGE, STRATEGIC, Cluster
from support.foreign_specs import SPECS
from support.objects import Refused

# Each example is some ten requests.
EXAMPLES = 40


@pytest.fixture
def cluster(api_server: ApiServer, namespace: str) -> Iterator[Cluster]:
    """The children of a ModelService that has every one."""
    with editing.cluster(api_server, namespace) as made:
        yield made


Edit = Callable[[Cluster, Object], None]


def by_patch(content_type: str, spec: Object, manager: str) -> Edit:
    return lambda cluster, live: cluster.edit(live, content_type, {"spec": spec}, manager)


def by_json_patch(spec: Object, manager: str) -> Edit:
    """Fields replaced as they are, without any merging."""

    def edit(cluster: Cluster, live: Object) -> None:
        template = spec.get("template", {})
        groups = [
            ("/spec", {key: value for key, value in spec.items() if key != "template"}),
            ("/spec/template/spec", template.get("spec", {})),
        ]
        changes = [
            {"op": "add", "path": f"{path}/{key}", "value": value}
            for path, fields in groups
            for key, value in fields.items()
        ]
        cluster.edit(live, JSON, changes, manager)

    return edit


def by_order(random: Any) -> Edit:
    """Lists in another order, and nothing else."""

    def edit(cluster: Cluster, live: Object) -> None:
        pod = cluster.get(live)["spec"]["template"]["spec"]
        places = {"/spec/template/spec/volumes": pod["volumes"]}
        for index, container in enumerate(pod["containers"]):
            for field in ("env", "ports", "volumeMounts"):
                if field in container:
                    path = f"/spec/template/spec/containers/{index}/{field}"
                    places[path] = container[field]
        changes = [
            {"op": "replace", "path": path, "value": random.sample(items, len(items))}
            for path, items in places.items()
        ]
        cluster.edit(live, JSON, changes, "orderly")

    return edit


MANAGERS = st.sampled_from(["kubectl-edit", "gitops"])


ANY_EDITS = st.lists(
    st.one_of(
        st.builds(by_patch, st.sampled_from([MERGE, STRATEGIC, APPLY]), SPECS, MANAGERS),
        st.builds(by_json_patch, SPECS, MANAGERS),
        st.builds(by_order, st.randoms(use_true_random=False)),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_EDITS)
def test_one_pass_undoes_any_edits_and_the_next_writes_nothing(
    cluster: Cluster, edits: list[Edit]
) -> None:
    live = cluster.fresh("Deployment")
    for edit in edits:
        try:
            edit(cluster, live)
        except Refused:
            event("refused")  # as invalid, by the API server itself
    is_edited = cluster.get(live)["spec"] != live["spec"]
    event(f"edited: {is_edited}")
    told = cluster.put_back("Deployment")
    assert told or not is_edited
    assert cluster.get(live)["spec"] == live["spec"]
