"""ModelServices that a cluster takes, any of them: for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from servewright_api.modelservice import ModelService
from servewright_api.rules import broken_rules

DIGEST = "sha256:" + "0123456789abcdef" * 4

_LABELS = st.dictionaries(
    st.sampled_from(["team", "example.com/tier", "a.b-c_d"]),
    st.sampled_from(["", "x", "A.b_c-1"]),
)
_NAMES = st.sampled_from(["one", "two-2", "three.x"])
_LITTLE = {
    "cpu": st.sampled_from(["250m", "0.1", "0.250", "1"]),
    "memory": st.sampled_from(["1Gi", "1024Mi", "1500M", "1e9", "1073741824", "0.5G", "1.1"]),
}
_MUCH = {
    "cpu": st.sampled_from(["1", "1000m", "2.250"]),
    "memory": st.sampled_from(["1.5Gi", "3e9", "2048Mi", "1Ti"]),
}
_COUNTS = st.one_of(st.integers(0, 3), st.sampled_from(["0%", "25%", "100%"]))


def _optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_MODELS = st.one_of(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from(
                [
                    "https://models.example.com/m.gguf",
                    "https://models.example.com:8443/$(HOME)/m.gguf",
                ]
            )
        },
        optional={"digest": st.just(DIGEST), "credentialsSecret": st.just({"name": "login"})},
    ),
    st.fixed_dictionaries(
        {"source": st.sampled_from(["pvc://models/m.gguf", "pvc://models.x/a/b$$c.gguf"])},
        optional={"digest": st.just(DIGEST)},
    ),
    st.sampled_from(["http://10.0.0.1:8080/m.gguf", "pypi://llm==0.1/llm/m.gguf"]).map(
        lambda source: {"source": source, "digest": DIGEST}
    ),
)
_REF = st.fixed_dictionaries({"name": _NAMES, "key": st.sampled_from(["k", "K.k_-"])})
_ENV = st.one_of(
    st.fixed_dictionaries({"value": st.sampled_from(["", "1", "$(A) $$", "http://proxy:3128"])}),
    st.sampled_from(["secretKeyRef", "configMapKeyRef"]).flatmap(
        lambda kind: st.fixed_dictionaries({"valueFrom": st.fixed_dictionaries({kind: _REF})})
    ),
)
_TOLERATIONS = st.sampled_from(
    [
        {"operator": "Exists"},
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "value": "x"},
        {"key": "down", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
        {"key": "team", "value": ""},
    ]
)
_SPREADS = st.builds(
    lambda key, when, skew: {"topologyKey": key, "whenUnsatisfiable": when, "maxSkew": skew},
    st.sampled_from(["kubernetes.io/hostname", "example.com/rack"]),
    st.sampled_from(["ScheduleAnyway", "DoNotSchedule"]),
    st.integers(1, 3),
)
_PODS = _optional(
    serviceAccountName=_NAMES,
    imagePullSecrets=st.lists(_NAMES, unique=True).map(
        lambda names: [{"name": name} for name in names]
    ),
    nodeSelector=_LABELS,
    tolerations=st.lists(_TOLERATIONS, max_size=3),
    topologySpread=st.lists(
        _SPREADS, max_size=3, unique_by=lambda s: (s["topologyKey"], s["whenUnsatisfiable"])
    ),
    priorityClassName=_NAMES,
    labels=_LABELS,
    annotations=_LABELS,
    env=st.dictionaries(st.sampled_from(["A", "HTTPS_PROXY", "_b"]), _ENV).map(
        lambda found: [{"name": name, **value} for name, value in found.items()]
    ),
    runtimeClassName=_NAMES,
    image=st.sampled_from(["example.com/runtime:1", "runtime@sha256:" + "0" * 64]),
)
_SPECS = st.fixed_dictionaries(
    {"model": _MODELS},
    optional={
        "engine": _optional(maxModelLen=st.integers(16, 2048), prefixCache=st.booleans()),
        "resources": _optional(requests=_optional(**_LITTLE), limits=_optional(**_MUCH)),
        "accelerator": st.just({"type": "nvidia"}),
        "replicas": st.integers(0, 4),
        "suspend": st.booleans(),
        "rollout": _optional(
            maxSurge=_COUNTS,
            maxUnavailable=_COUNTS,
            progressDeadlineSeconds=st.sampled_from([10, 600, 86400]),
            drainSeconds=st.sampled_from([0, 30, 3600]),
        ),
        "probe": _optional(prompt=st.sampled_from(["$(HOME)", "ü\n\"'", "$$"])),
        "access": st.sampled_from(
            [{"mode": "Open"}, {"mode": "ApiKey"}, {"secretRef": {"name": "users"}}]
        ),
        "pod": _PODS,
    },
)


def _is_valid(service: ModelService) -> bool:
    return not list(broken_rules(service, in_cluster=True))


def model_services(name: str = "mine") -> st.SearchStrategy[ModelService]:
    """ModelServices called `name` that break no rule."""
    return _SPECS.map(
        lambda spec: ModelService.model_validate(
            {
                "apiVersion": "servewright.io/v1alpha1",
                "kind": "ModelService",
                "metadata": {"name": name},
                "spec": spec,
            }
        )
    ).filter(_is_valid)
