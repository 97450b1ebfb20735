"""The section `limits:` of a cloud and an edge: what its children may send before they are not heard for a while."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config.sections import Section
from hfl_mqtt.config.units import Duration, Real, Size, Whole
from hfl_mqtt.config.wording import misplaced
from hfl_mqtt.protocol.limits import MAX_WEIGHT

OFF = "off"


class LimitsConfig(Section):
    """Bounds on each child; what is left out is as in `rounds.conduct.Bounds`, which suits nearly everybody."""

    messages_per_minute: Annotated[Whole, Field(ge=10, le=10_000_000)] | None = Field(
        default=None, description="Messages of one child in a minute, beside those that answer a call."
    )
    max_wasted_updates: Annotated[Real, Field(ge=1, le=1e6)] | None = Field(
        default=None, description="Bytes of one child that come to nothing in a minute, in updates of the largest size."
    )
    strikes: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Updates that cannot be counted (NaN, shape, signature, norm) before quarantine."
    )
    quarantine: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None, description="How long the first quarantine of a child lasts; each is twice the one before."
    )
    max_quarantine: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None, description="How long a quarantine lasts at most."
    )
    max_norm_ratio: Annotated[Real, Field(gt=1, le=1e9)] | Literal["off"] | None = Field(
        default=None,
        description="An update counts whose norm is at most so many times the median of the last ones; off: any norm.",
    )
    max_weight_ratio: Annotated[Real, Field(gt=1, le=1e9)] | Literal["off"] | None = Field(
        default=None,
        description="An update counts that stands for at most so many times the samples of the others' ones; off: any.",
    )
    max_samples: Annotated[Whole, Field(ge=1, le=MAX_WEIGHT)] | None = Field(
        default=None, description="Samples that one update may stand for."
    )
    slowest_link: Annotated[Size, Field(ge=1)] | None = Field(
        default=None, description="A child whose parts come slower, in bytes a second, does not hold others up."
    )

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.quarantine is not None and self.max_quarantine is not None and self.quarantine > self.max_quarantine:
            raise misplaced((("max_quarantine",), "is shorter than the first one: raise it, or lower quarantine"))
        return self

    def given(self) -> dict[str, Any]:
        """Return what the file says, by the names of `rounds.conduct.Bounds`."""
        names = {"quarantine": "quarantine_s", "max_quarantine": "max_quarantine_s"}
        values = {names.get(key, key): value for key, value in self.model_dump(exclude_none=True).items()}
        return {key: inf if value == OFF else value for key, value in values.items()}
