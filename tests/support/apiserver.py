"""A Kubernetes API server for tests: the genuine programs on free loopback ports, or the cluster
that is there already.

Programs are taken from the folder KUBEBUILDER_ASSETS, as every operator project does: etcd,
kube-apiserver and kubectl; kube-controller-manager and kube-scheduler, where they lie beside them,
make Deployments into ReplicaSets into Pods and collect garbage. No kubelet: nothing runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from support.runs import free_port
from support.tree import ROOT
from support.waiting import eventually

CRDS = ROOT / "charts" / "servewright-crds" / "templates"
SERVER_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
CONTROLLER_PROGRAMS = ("kube-controller-manager", "kube-scheduler")

# Ready after 4 s on an idle machine of two cores; others may be at work on it.
START_S = 120.0
STOP_S = 20.0
_HOST = "127.0.0.1"


def _not_ours() -> None:
    raise AssertionError("this API server is somebody else's")


@dataclass
class ApiServer:
    """An API server that answers, and how to be its admin or somebody with less power."""

    folder: Path  # for kubeconfigs; gone with the server
    kubeconfig: Path  # of an admin
    kubectl_program: str
    # kube-apiserver alone, killed and started anew on the same data and port, if it is ours.
    stop: Callable[[], None] = _not_ours
    start: Callable[[], None] = _not_ours
    database: str = ""  # URL of etcd, if it is ours
    version: str = field(init=False)  # such as 1.37.2

    def __post_init__(self) -> None:
        answer = json.loads(self.kubectl("get", "--raw", "/version"))
        self.version = answer["gitVersion"].removeprefix("v")

    @property
    def is_ours(self) -> bool:
        """Whether it was started here, for tests alone."""
        return bool(self.database)

    def run_kubectl(
        self, *words: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """kubectl as admin, whatever its exit code."""
        return subprocess.run(
            [self.kubectl_program, f"--kubeconfig={self.kubeconfig}", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "KUBECACHEDIR": str(self.folder / "kubectl-cache")},
        )

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """What kubectl prints as admin; AssertionError with its complaint when it fails."""
        done = self.run_kubectl(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig of a ServiceAccount that exists, by a token of an hour."""
        token = self.kubectl("create", "token", service_account, f"--namespace={namespace}")
        view = ("config", "view", "--minify", "--flatten", "--raw", "--output=json")
        config = json.loads(self.kubectl(*view))
        config["users"][0]["user"] = {"token": token.strip()}
        config["contexts"][0]["context"]["namespace"] = namespace
        path = self.folder / f"{namespace}-{service_account}.kubeconfig"
        path.write_text(json.dumps(config))
        return path


@contextlib.contextmanager
def api_server(
    *, own: bool = False, controllers: bool = False, flags: Sequence[str] = ()
) -> Iterator[ApiServer]:
    """An API server of ours, or the existing cluster's unless it must be our own.

    The test is skipped where there are no programs to start one: nothing pretends to be one.
    controllers: with kube-controller-manager and kube-scheduler. flags: more, of kube-apiserver.
    """
    with tempfile.TemporaryDirectory(prefix="servewright-api-") as name:
        folder = Path(name)
        if os.environ.get("USE_EXISTING_CLUSTER", "").lower() == "true" and not own:
            yield _existing(folder)
        else:
            with _started(folder, controllers=controllers, flags=flags) as server:
                yield server


def apply_crds(server: ApiServer) -> None:
    """Bring the CRDs to what they are in this tree, and wait until they are served."""
    server.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRDS}")
    server.kubectl("wait", f"--filename={CRDS}", "--for=condition=Established", "--timeout=30s")


def _existing(folder: Path) -> ApiServer:
    kubectl = shutil.which("kubectl")
    if kubectl is None or "KUBECONFIG" not in os.environ:
        pytest.skip("needs kubectl and KUBECONFIG, as USE_EXISTING_CLUSTER is true")
    return ApiServer(folder, Path(os.environ["KUBECONFIG"]), kubectl)


@contextlib.contextmanager
def _started(folder: Path, *, controllers: bool, flags: Sequence[str]) -> Iterator[ApiServer]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("needs KUBEBUILDER_ASSETS, or USE_EXISTING_CLUSTER=true and KUBECONFIG")
    programs = SERVER_PROGRAMS + (CONTROLLER_PROGRAMS if controllers else ())
    absent = [name for name in programs if not (Path(assets) / name).exists()]
    if absent:
        pytest.skip(f"needs {' and '.join(absent)} in KUBEBUILDER_ASSETS")

    port = free_port()
    kubeconfig = _make_credentials(folder, port)
    with contextlib.ExitStack() as stack:
        database = f"http://{_HOST}:{free_port()}"
        _start(stack, folder, Path(assets) / "etcd", *_etcd_flags(folder, database))
        api = Path(assets) / "kube-apiserver"
        trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        lives: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            own = _api_server_flags(folder, port, database)
            process = _start(stack, folder, api, *own, *flags)
            lives.append(process)

            def is_ready() -> bool:
                assert process.poll() is None, f"kube-apiserver ended: {_tail(folder, api.name)}"
                return _is_ready(port, trust)

            eventually(is_ready, timeout_s=START_S, interval_s=0.1)

        def stop() -> None:
            lives[-1].kill()
            lives[-1].wait()

        start()
        if controllers:
            for name in CONTROLLER_PROGRAMS:
                own = _controller_flags(folder, kubeconfig, name)
                _start(stack, folder, Path(assets) / name, *own)
        yield ApiServer(folder, kubeconfig, str(Path(assets) / "kubectl"), stop, start, database)


def _start(
    stack: contextlib.ExitStack, folder: Path, program: Path, *flags: str
) -> subprocess.Popen[bytes]:
    """Start a program that ends with `stack`, or with us however we end."""
    with (folder / f"{program.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            preexec_fn=_end_with_parent,
        )
    stack.callback(_stop, process)
    return process


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text(errors="replace")[-2000:]


def _is_ready(port: int, trust: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection(_HOST, port, timeout=5, context=trust)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _make_credentials(folder: Path, port: int) -> Path:
    """Certificates of a new authority, a key for tokens, and the admin's kubeconfig: its path."""
    authority = trustme.CA()
    server = authority.issue_cert(_HOST, "localhost", "kubernetes.default.svc")
    admin = authority.issue_cert("admin", common_name="admin", organization_name="system:masters")
    tokens = authority.issue_cert("tokens")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for name, leaf in (("server", server), ("admin", admin), ("tokens", tokens)):
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": f"https://{_HOST}:{port}",
                    "certificate-authority": str(folder / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": "admin",
                "user": {
                    "client-certificate": str(folder / "admin.crt"),
                    "client-key": str(folder / "admin.key"),
                },
            }
        ],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def _etcd_flags(folder: Path, clients: str) -> list[str]:
    peers = f"http://{_HOST}:{free_port()}"
    return [
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",  # a test's data need not outlive the machine
        "--log-level=warn",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
    ]


def _api_server_flags(folder: Path, port: int, database: str) -> list[str]:
    return [
        f"--etcd-servers={database}",
        f"--bind-address={_HOST}",
        f"--secure-port={port}",
        "--endpoint-reconciler-type=none",  # it refuses to advertise loopback
        f"--cert-dir={folder}",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'tokens.key'}",
        f"--service-account-signing-key-file={folder / 'tokens.key'}",
        # An operator calls Services and pods from this machine: nothing but loopback may be there.
        "--service-cluster-ip-range=127.96.0.0/16",
        "--authorization-mode=RBAC",
        # Without controllers no namespace ever gets the ServiceAccount that this waits for.
        "--disable-admission-plugins=ServiceAccount",
    ]


def _controller_flags(folder: Path, kubeconfig: Path, name: str) -> list[str]:
    flags = [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    if name == "kube-controller-manager":
        flags += [
            f"--root-ca-file={folder / 'ca.crt'}",
            f"--service-account-private-key-file={folder / 'tokens.key'}",
        ]
    return flags
