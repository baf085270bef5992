"""A Submission: what a client asked to be remembered, as text that outlives the process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Source:
    """A text, or token ids, that is to become a document. id None makes one of its content."""

    content: str | list[int]
    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Submission:
    """Sources for a collection.

    Attributes:
        window, stride: see MemoryManager.add.
        fingerprint: of the model that is to remember them.
    """

    sources: Items[Source]
    collection: str
    window: int
    stride: int
    fingerprint: str
    id: str = field(default_factory=lambda: f"memjob-{uuid.uuid4().hex[:16]}")

    def to_json(self) -> str:
        """For a store."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Submission:
        """The submission of to_json().

        Raises:
            ValueError: the text is not one.
        """
        try:
            values = json.loads(text)
            sources = [Source(**source) for source in values.pop("sources")]
            return cls(sources, **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("this is not a submission") from error
