"""All that the conditions of one ModelService are decided from, gathered once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from servewright_api import ModelService
from servewright_operator import pods
from servewright_operator.deployed import Deployed
from servewright_operator.failures import worst
from servewright_operator.objects import Failure, Object, Observed, Rollout
from servewright_operator.reading import mapping, text
from servewright_operator.reasons import Reason


@dataclass(frozen=True, slots=True)
class Facts:
    """service, served and rollout are None where the spec is refused; `problems` says why."""

    observed: Observed
    now: datetime
    deployed: Deployed
    failing: Sequence[Failure]
    overcome: Sequence[Failure]
    service: ModelService | None = None
    served: ModelService | None = None  # as the target revision has it
    rollout: Rollout | None = None
    problems: Sequence[str] = ()

    @property
    def stored(self) -> Object:
        """Status as it was written last."""
        return mapping(self.observed.service, "status")

    @property
    def target(self) -> str:
        """The revision that is to run."""
        return self.deployed.revision if self.rollout is None else self.rollout.target

    @property
    def last_good(self) -> str:
        """The revision that was available last, or nothing."""
        if self.rollout is not None:
            return self.rollout.last_good or ""
        if self.deployed.is_proven:
            return self.deployed.revision
        return text(self.stored, "lastGoodRevision")

    @property
    def at_rest(self) -> Reason | None:
        """Why no replica is wanted, if none is."""
        if self.service is None:
            wants_none = self.deployed.revision and not self.deployed.wanted
            return Reason.SCALED_TO_ZERO if wants_none else None
        if self.service.spec.suspend:
            return Reason.SUSPENDED
        return None if self.service.spec.replicas else Reason.SCALED_TO_ZERO

    @property
    def current(self) -> list[Object]:
        """The pods of the target revision that are to stay."""
        return [
            pod
            for pod in self.observed.pods
            if pods.revision(pod) == self.target
            and not pods.is_ending(pod)
            and not pods.is_over(pod)
        ]

    @property
    def serving(self) -> int:
        """Pods that are ready, of whichever revision."""
        return sum(pods.is_ready(pod) for pod in self.observed.pods)

    @property
    def is_complete(self) -> bool:
        """Whether all pods are of the target revision, which has been good."""
        deployed = self.deployed
        is_rolled_out = deployed.revision == self.target and deployed.is_rolled_out
        return bool(self.target) and is_rolled_out and self.last_good == self.target

    @property
    def is_overdue(self) -> bool:
        """Whether the target revision missed its deadline. A good one is waited for."""
        deployed = self.deployed
        is_late = deployed.revision == self.target and deployed.overdue_since is not None
        return is_late and self.last_good != self.target

    @property
    def is_rolled_back(self) -> bool:
        """Whether the last good revision is to run in place of the wanted one."""
        return self.rollout is not None and self.rollout.target != self.rollout.wanted

    @property
    def can_be_asked(self) -> bool:
        """Whether a call through the Service can show that the target revision answers."""
        return not self.at_rest and self.is_complete and self.serving > 0

    @property
    def worst(self) -> Failure | None:
        """Of what fails now, what to tell; what was told before if that is as it was."""
        first = worst(self.failing, self.target)
        told = mapping(self.stored, "lastFailure")
        for failure in self.failing:
            is_same = (failure.pod, failure.reason) == (text(told, "pod"), text(told, "reason"))
            if is_same and first is not None and failure.revision == first.revision:
                return failure
        return first
