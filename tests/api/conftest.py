"""A real API server for the session, a fresh namespace for each test, and on failure what was
in it.

`api_server` has no controllers: what a test writes stays as it wrote it. `control_plane` is
another one, in which Deployments become ReplicaSets and Pods, and garbage is collected.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from support import apiserver
from support.apiserver import ApiServer
from support.kubelet import Kubelet
from support.objects import Objects
from support.operator_process import OperatorProcess, operator_process
from support.place import Place

# What a test's namespace may hold that explains its failure.
KINDS = (
    "modelservices.servewright.io",
    "deployments.apps",
    "controllerrevisions.apps",
    "services",
    "pods",
    "leases.coordination.k8s.io",
    "events",
)


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """etcd and kube-apiserver with our CRD."""
    with _with_crds(controllers=False) as server:
        yield server


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ApiServer]:
    """The same with kube-controller-manager and kube-scheduler; no kubelet."""
    with _with_crds(controllers=True) as server:
        yield server


@pytest.fixture
def namespace(request: pytest.FixtureRequest, api_server: ApiServer) -> Iterator[str]:
    """A fresh namespace of `api_server`."""
    with _fresh_namespace(request, api_server) as name:
        yield name


@pytest.fixture(scope="module")
def module_namespace(request: pytest.FixtureRequest, api_server: ApiServer) -> Iterator[str]:
    """A namespace of `api_server` for what a module's tests share, and nothing to do elsewhere.

    Without controllers no namespace ever goes, so what other tests left would be in the counts.
    """
    _skip_unless_ours(api_server)
    api_server.kubectl("delete", "modelservices.servewright.io", "--all", "--all-namespaces")
    with _fresh_namespace(request, api_server) as name:
        yield name


@pytest.fixture
def place(api_server: ApiServer, namespace: str) -> Iterator[Place]:
    """A fresh namespace of `api_server`, as its user has it."""
    _skip_unless_ours(api_server)
    with contextlib.closing(Objects(api_server)) as objects:
        made = Place(objects, namespace)
        yield made
        made.leave()


@pytest.fixture
def controlled_namespace(request: pytest.FixtureRequest, control_plane: ApiServer) -> Iterator[str]:
    """A fresh namespace of `control_plane`."""
    with _fresh_namespace(request, control_plane) as name:
        yield name


@pytest.fixture(scope="module")
def controlled_place(request: pytest.FixtureRequest, control_plane: ApiServer) -> Iterator[Place]:
    """A namespace of `control_plane` for a module's tests, and a node whose kubelet pretends."""
    _skip_unless_ours(control_plane)
    kubelet = Kubelet(control_plane)
    kubelet.start()
    with (
        _fresh_namespace(request, control_plane) as name,
        contextlib.closing(Objects(control_plane)) as objects,
    ):
        yield Place(objects, name)
    kubelet.stop()


@pytest.fixture(scope="module")
def controlled_operator(
    control_plane: ApiServer, controlled_place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One for that namespace, which must make no mistake of its own in a module's tests."""
    log = tmp_path_factory.mktemp("operator") / "log"
    namespace = controlled_place.namespace
    with operator_process(
        control_plane.kubeconfig, log, lease_namespace=namespace, namespaces=(namespace,)
    ) as running:
        yield running
        assert running.mistakes() == []


def _skip_unless_ours(server: ApiServer) -> None:
    """An existing cluster has controllers, nodes, and ModelServices that are not ours to delete."""
    if not server.is_ours:
        pytest.skip("needs an API server of its own: unset USE_EXISTING_CLUSTER")


@contextlib.contextmanager
def _with_crds(*, controllers: bool) -> Iterator[ApiServer]:
    with apiserver.api_server(controllers=controllers) as server:
        apiserver.apply_crds(server)
        yield server


@contextlib.contextmanager
def _fresh_namespace(request: pytest.FixtureRequest, server: ApiServer) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    server.kubectl("create", "namespace", name)
    failed_before = request.session.testsfailed
    yield name
    if request.session.testsfailed > failed_before:
        for kind in KINDS:
            dump = server.run_kubectl("get", kind, f"--namespace={name}", "--output=yaml").stdout
            if "items: []" not in dump:
                print(f"--- {kind}\n{dump}")
    server.kubectl("delete", "namespace", name, "--wait=false")
