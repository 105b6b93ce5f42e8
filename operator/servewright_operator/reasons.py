"""Types and reasons of conditions and Events: what `kubectl` shows and people alert on."""

from __future__ import annotations

import enum


class Condition(enum.StrEnum):
    """In the order in which status lists them."""

    ADMITTED = "Admitted"  # the spec can be served
    SCHEDULED = "Scheduled"  # pods of the current revision have nodes
    MODEL_READY = "ModelReady"  # the model is loaded in a pod of the current revision
    AVAILABLE = "Available"  # a pod is ready, of whichever revision
    PROGRESSING = "Progressing"  # a rollout is under way
    DEGRADED = "Degraded"  # some pod of ours fails
    READY = "Ready"  # the operator's own call was answered by the current revision, lately


class Reason(enum.StrEnum):
    """CamelCase words, stable: people write alerts with them."""

    # Admitted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    # Scheduled
    POD_SCHEDULED = "PodScheduled"
    UNSCHEDULABLE = "Unschedulable"
    NO_PODS = "NoPods"
    SCHEDULING = "Scheduling"
    # ModelReady; where its pods fail, their own reason
    STARTING = "Starting"
    FETCHING = "Fetching"
    LOADING = "Loading"
    LOADED = "Loaded"
    # Available
    MINIMUM_REPLICAS = "MinimumReplicas"
    TOO_FEW_REPLICAS = "TooFewReplicas"
    # Progressing
    ROLLING_OUT = "RollingOut"
    COMPLETE = "Complete"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    # Ready
    PROBE_SUCCEEDED = "ProbeSucceeded"
    PROBE_FAILED = "ProbeFailed"
    PROBE_PENDING = "ProbePending"
    PROBE_STALE = "ProbeStale"
    ROLLED_BACK = "RolledBack"
    # Degraded: else the failing pod's own reason
    AS_EXPECTED = "AsExpected"
    # several
    SUSPENDED = "Suspended"
    SCALED_TO_ZERO = "ScaledToZero"

    # Events alone
    CREATED = "Created"
    REPAIRED = "Repaired"  # a child that was deleted, or edited by someone else
    READY = "Ready"
    NOT_READY = "NotReady"
    RESTARTED = "Restarted"
    POD_FAILING = "PodFailing"
    REFUSED = "Refused"  # a child, by the API server
    OLD_CRD = "OldCrd"  # it does not know all of the status
