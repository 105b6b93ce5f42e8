"""Kinds of values that fields of the schema hold: names, labels, quantities, counts or percents.

A pattern means the same to pydantic, to Python's `re` and to the API server's RE2: no look-around,
no classes that Unicode widens.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from servewright_api.quantity import CPU_PATTERN, MAX_MEMORY, MEMORY_PATTERN, parse_quantity

# RFC 1123 label, a namespace's name.
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
# RFC 1035 label, a Service's name.
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# RFC 1123 subdomain, a Secret's name.
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
# What clients write in `model`: as free as the names in use, with no blanks or control characters.
SERVED_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"
LABEL_KEY_PATTERN = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
DATA_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
IMAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"
PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"

# The longest name of a ModelService: those of its children are up to eleven characters longer,
# and a label's value ends at 63.
MAX_NAME = 52
# Of the Secrets that the operator makes, behind the name of the ModelService.
API_KEYS_SUFFIX, PROBE_SUFFIX = "-api-keys", "-probe"
MAX_COUNT = 1000  # of replicas

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=NAME_PATTERN)]
NamespaceName = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=LABEL_PATTERN)
]
SubdomainName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=SUBDOMAIN_PATTERN)
]
ServedName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=SERVED_NAME_PATTERN)
]
LabelKey = Annotated[
    str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)
]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
DataKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DATA_KEY_PATTERN)]
EnvName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=ENV_NAME_PATTERN)]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=IMAGE_PATTERN)]


def _number_as_text(value: Any) -> Any:
    """A bare 2 in a manifest, as the text that quantities are."""
    if isinstance(value, float):  # the API server takes none either
        raise ValueError("must be a whole number or text; put it in quotes")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_memory(text: str) -> str:
    if not 0 < parse_quantity(text) <= parse_quantity(MAX_MEMORY):
        raise ValueError(f"must be {_MEMORY_WORDS}")
    return text


def _check_cpu(text: str) -> str:
    if parse_quantity(text) == 0:
        raise ValueError(f"must be {_CPU_WORDS}")
    return text


def _int_or_string(words: str, rule: str, **bounds: Any) -> WithJsonSchema:
    """A value of two types, for which the API server needs a rule in CEL."""
    return WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            **bounds,
            "x-kubernetes-validations": [{"rule": rule, "message": f"must be {words}"}],
        }
    )


_MEMORY_WORDS = f"a quantity such as 512Mi or 1.5Gi, above zero and at most {MAX_MEMORY}"
_CPU_WORDS = "a number of CPUs such as 2, 0.5 or 500m, above zero"
_ABOVE_ZERO = "quantity(string(self)).isGreaterThan(quantity('0'))"
_PODS_WORDS = f"a number of pods from 0 to {MAX_COUNT} or a percentage from 0% to 100%"

Memory = Annotated[
    str,
    StringConstraints(max_length=32, pattern=MEMORY_PATTERN),
    BeforeValidator(_number_as_text),
    AfterValidator(_check_memory),
    _int_or_string(
        _MEMORY_WORDS,
        f"string(self).matches(r'{MEMORY_PATTERN}') && {_ABOVE_ZERO} && "
        f"quantity(string(self)).compareTo(quantity('{MAX_MEMORY}')) <= 0",
        pattern=MEMORY_PATTERN,
        maxLength=32,
    ),
]
Cpu = Annotated[
    str,
    StringConstraints(max_length=32, pattern=CPU_PATTERN),
    BeforeValidator(_number_as_text),
    AfterValidator(_check_cpu),
    _int_or_string(
        _CPU_WORDS,
        f"string(self).matches(r'{CPU_PATTERN}') && {_ABOVE_ZERO}",
        pattern=CPU_PATTERN,
        maxLength=32,
    ),
]


def _int_or_percent(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    if isinstance(value, str) and re.fullmatch(PERCENT_PATTERN, value):
        return value
    raise ValueError(f"must be {_PODS_WORDS}")


IntOrPercent = Annotated[
    int | str,
    PlainValidator(_int_or_percent),
    _int_or_string(
        _PODS_WORDS,
        f"type(self) == int ? self >= 0 && self <= {MAX_COUNT} : "
        f"self.matches(r'{PERCENT_PATTERN}')",
        minimum=0,
        maximum=MAX_COUNT,
        pattern=PERCENT_PATTERN,
        maxLength=4,
    ),
]


def is_none(value: int | str) -> bool:
    """Whether an IntOrPercent lets no pod at all: 0 or 0%."""
    return value in (0, "0%")


class Type(BaseModel):
    """A group of fields. Strict: "2" is no number and 1 no boolean, as in the API server."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),  # `model` is a field's name here
    )
