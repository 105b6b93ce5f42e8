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
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _above_zero(text: str) -> str:
    if parse_quantity(text) == 0:
        raise ValueError("is zero; write a quantity above it, or leave the field out")
    return text


def _within_memory(text: str) -> str:
    if parse_quantity(text) > parse_quantity(MAX_MEMORY):
        raise ValueError(f"is more than {MAX_MEMORY}; write a quantity such as 512Mi")
    return text


def _quantity_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["integer", "string"], "pattern": pattern, "maxLength": 32})


Memory = Annotated[
    str,
    StringConstraints(max_length=32, pattern=MEMORY_PATTERN),
    BeforeValidator(_number_as_text),
    AfterValidator(_above_zero),
    AfterValidator(_within_memory),
    _quantity_schema(MEMORY_PATTERN),
]
Cpu = Annotated[
    str,
    StringConstraints(max_length=32, pattern=CPU_PATTERN),
    BeforeValidator(_number_as_text),
    AfterValidator(_above_zero),
    _quantity_schema(CPU_PATTERN),
]


def _int_or_percent(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    if isinstance(value, str) and re.fullmatch(PERCENT_PATTERN, value):
        return value
    raise ValueError(
        f"is neither a number of pods from 0 to {MAX_COUNT} nor a percentage from 0% to 100%; "
        "write one such as 1 or 25%"
    )


IntOrPercent = Annotated[
    int | str,
    PlainValidator(_int_or_percent),
    WithJsonSchema(
        {
            "type": ["integer", "string"],
            "minimum": 0,
            "maximum": MAX_COUNT,
            "pattern": PERCENT_PATTERN,
            "maxLength": 4,
        }
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
