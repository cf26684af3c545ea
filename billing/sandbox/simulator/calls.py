"""One call as the API functions see it, and the look-ups by path id they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from urllib.parse import parse_qs

from billing.sandbox.simulator.answers import ApiError, Json, validation_error
from billing.sandbox.simulator.checks import json_object

Found = TypeVar("Found")
_ID_LENGTH = 39


@dataclass(frozen=True, slots=True)
class Call:
    now: datetime
    params: Mapping[str, str]
    query_string: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes

    def json(self) -> Json:
        return json_object(self.body)

    def json_or_empty(self) -> Json:
        """Control calls may leave their body out."""
        return json_object(self.body) if self.body.strip() else {}

    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.query_string, keep_blank_values=True)

    def form(self) -> dict[str, str]:
        fields = parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True)
        return {name: values[-1].strip() for name, values in fields.items()}


def find(objects: Mapping[str, Found], call: Call, *, prefix: str, name: str) -> Found:
    """By the id in the path: 400 when it cannot be one, 404 when it is nobody's."""
    wanted = call.params["id"]
    if len(wanted) != _ID_LENGTH or not wanted.startswith(prefix):
        raise validation_error(f"/params/{name}", f'must match pattern "^{prefix}.{{36}}$"')
    return look_up(objects, wanted)


def look_up(objects: Mapping[str, Found], wanted: str) -> Found:
    found = objects.get(wanted)
    if found is None:
        raise ApiError(404, "DATA_NOT_FOUND")
    return found
