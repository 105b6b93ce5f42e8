"""What somebody else may write into a Deployment's spec, parts that clash with ours included: for
property tests.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from servewright_operator.objects import Object

EXEC = {"exec": {"command": ["true"]}}


def _optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    return st.fixed_dictionaries({}, optional=fields)


def _lists(items: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, max_size=2, unique_by=lambda item: item[key])


_VALUES = st.sampled_from(["", "1", "theirs"])
_VARIABLES = st.fixed_dictionaries(
    {"name": st.sampled_from(["HOME", "NEW", "LANG", "SERVEWRIGHT_REVISION"])},
    optional={"value": _VALUES},
)
_MOUNTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["tmp", "model"]), "mountPath": st.sampled_from(["/tmp", "/more"])}  # noqa: S108
)
_PROBES = st.one_of(
    st.just(EXEC),
    _optional(periodSeconds=st.integers(1, 9), httpGet=st.just({"path": "/", "port": 1})),
)
_CONTAINERS = st.fixed_dictionaries(
    {"name": st.sampled_from(["replica", "side"]), "image": st.just("theirs")},
    optional={
        "env": _lists(_VARIABLES, "name"),
        "volumeMounts": _lists(_MOUNTS, "mountPath"),
        "livenessProbe": _PROBES,
        "lifecycle": st.just({"preStop": EXEC}),
        "workingDir": _VALUES,
        "ports": st.just([{"containerPort": 9999, "protocol": "UDP"}]),
        "resources": st.just({"limits": {"ephemeral-storage": "1Gi"}}),
        "securityContext": st.just({"runAsUser": 0, "runAsNonRoot": False}),
        "terminationMessagePath": st.just("/dev/theirs"),
    },
)
_SOURCES = st.sampled_from(
    [{"emptyDir": {}}, {"emptyDir": {"medium": "Memory"}}, {"hostPath": {"path": "/"}}]
)
_VOLUMES = st.builds(
    lambda name, source: {"name": name, **source},
    st.sampled_from(["tmp", "model", "theirs"]),
    _SOURCES,
)
_PODS = _optional(
    containers=_lists(_CONTAINERS, "name"),
    initContainers=_lists(_CONTAINERS, "name"),
    volumes=_lists(_VOLUMES, "name"),
    nodeSelector=st.dictionaries(st.sampled_from(["disk", "zone"]), _VALUES, max_size=2),
    tolerations=st.just([{"operator": "Exists"}]),
    hostNetwork=st.booleans(),
    dnsPolicy=st.sampled_from(["ClusterFirst", "Default"]),
    terminationGracePeriodSeconds=st.integers(0, 3),
    imagePullSecrets=st.just([{"name": "theirs"}]),
    hostAliases=st.just([{"ip": "192.0.2.1", "hostnames": ["theirs"]}]),
    affinity=st.just({"podAntiAffinity": {}}),
    securityContext=_optional(fsGroup=st.just(1), runAsNonRoot=st.just(False)),
    serviceAccountName=st.just("theirs"),
    topologySpreadConstraints=st.just(
        [
            {
                "maxSkew": 1,
                "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"a": "b"}},
            }
        ]
    ),
)
SPECS = _optional(
    replicas=st.integers(0, 9),
    minReadySeconds=st.integers(0, 9),
    paused=st.booleans(),
    strategy=st.just({"type": "Recreate", "rollingUpdate": None}),
    template=st.fixed_dictionaries(
        {"spec": _PODS},
        optional={
            "metadata": _optional(
                labels=st.just({"theirs": "1"}), annotations=st.just({"theirs": "1"})
            )
        },
    ),
)
