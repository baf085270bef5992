"""What the clients' tests ask for, and what the scripted model answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

QUESTION = "What is the weather in Paris?"
THOUGHT = "It is warm there."
ANSWER = '{"city": "Paris", "degrees": 21}'
# One value of each: where a grammar forces other tokens than the script's, it writes all of them.
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Weather(BaseModel):
    """How it is in a city."""

    city: Literal["Paris"]
    degrees: Literal[21]


class Sky(BaseModel):
    """Something that ends soon, whatever a random model says."""

    colour: Literal["blue", "grey", "red"]
    clear: bool


EXPECTED = Weather(city="Paris", degrees=21)
