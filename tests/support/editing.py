"""A ModelService's children on a real API server, those who edit them, and passes over them."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from servewright_api.modelservice import ModelService
from servewright_operator import kinds, metrics, names
from servewright_operator.apply import Applier, Outcome
from servewright_operator.client import Client
from servewright_operator.holding import with_hash
from servewright_operator.objects import Object
from servewright_operator.store import Store
from support.apiserver import ApiServer
from support.desired import children_of, one
from support.objects import Objects
from support.operators import configuration
from support.tree import ROOT

JSON, MERGE, STRATEGIC, APPLY = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)


@dataclass
class Cluster:
    """The children of one ModelService, those who edit them, and the operator's passes."""

    server: ApiServer
    objects: Objects
    owner: Object
    children: list[Object]

    def fresh(self, kind: str) -> Object:
        """A child as the operator applied it."""
        desired = one(self.children, kind)
        live = self.find(desired)
        if live is not None:
            self.objects.delete(live)
        return self.objects.apply(with_hash(desired))

    def find(self, named: Object) -> Object | None:
        metadata = named["metadata"]
        kind = kinds.BY_NAME[named["kind"]]
        return self.objects.find(kind, metadata["namespace"], metadata["name"])

    def get(self, named: Object) -> Object:
        live = self.find(named)
        assert live is not None
        return live

    def edit(self, live: Object, content_type: str, body: Any, manager: str = "somebody") -> None:
        """A request of somebody else, by force where it may be."""
        metadata = live["metadata"]
        query = {"fieldManager": manager}
        if content_type == APPLY:
            query["force"] = "true"
            identity = {key: metadata[key] for key in ("name", "namespace")}
            body = {key: live[key] for key in ("apiVersion", "kind")} | {
                "metadata": identity,
                "spec": body["spec"],
            }
        path = kinds.BY_NAME[live["kind"]].path(metadata["namespace"], metadata["name"])
        self.objects.request("PATCH", path, query, body, content_type)

    def kubectl(self, *words: str) -> None:
        self.server.kubectl(*words, f"--namespace={self.owner['metadata']['namespace']}")

    def pass_over(self, *live: Object) -> Outcome:
        """What the operator does about children that it sees so. Raises ApiError."""
        store = Store()
        for seen in (self.owner, *live):
            store.put(copy.deepcopy(seen))
        desired = [one(self.children, seen["kind"]) for seen in live]
        outcome = Outcome()

        async def run() -> None:
            async with Client(await configuration(self.server.kubeconfig)) as client:
                applier = Applier(client, time.monotonic)
                known = store.children(self.owner)
                await applier.bring_about(self.owner, known, desired, (), outcome)

        asyncio.run(run())
        return outcome

    def put_back(self, kind: str) -> list[str]:
        """What a pass tells that it put back; a second one finds nothing to do."""
        desired = one(self.children, kind)
        outcome = self.pass_over(self.get(desired))
        assert outcome.refused == []
        asked = requests()
        assert self.pass_over(self.get(desired)) == Outcome()
        assert requests() == asked
        return [note.message for note in outcome.notes]


def requests() -> float:
    """How many this process sent to API servers as an operator."""
    samples = (sample for metric in metrics.API_REQUESTS.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


@contextmanager
def cluster(server: ApiServer, namespace: str) -> Iterator[Cluster]:
    """A ModelService that has every child, in a namespace in which no operator runs."""
    text = (ROOT / "tests" / "golden" / "everything" / "in.yaml").read_text()
    manifest = yaml.safe_load(text)["modelService"]
    manifest["metadata"]["namespace"] = namespace
    server.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
    service = ModelService.model_validate(manifest)
    with closing(Objects(server)) as objects:
        owner = objects.find(kinds.MODEL_SERVICE, namespace, service.metadata.name)
        assert owner is not None
        yield Cluster(server, objects, owner, children_of(service, uid=owner["metadata"]["uid"]))


def in_pod(**fields: Any) -> Object:
    """A Deployment with fields of its pods' spec."""
    return {"spec": {"template": {"spec": fields}}}


def in_replica(**fields: Any) -> Object:
    """A Deployment with fields of the replica's container."""
    return in_pod(containers=[{"name": names.REPLICA_CONTAINER, **fields}])
