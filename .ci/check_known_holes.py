"""Run by `make check`: does a locked version have a published vulnerability? Asks osv.dev, once, about all of them.

Found: exit 1, unless .ci/accepted-holes.toml says why it cannot hurt. Nobody to ask (no network): one line, exit 0.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import httpx

FOLDER = Path(__file__).parent
OSV = "https://api.osv.dev/v1/querybatch"
SECONDS = 10


class NobodyAnswers(Exception):
    pass


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--lock", type=Path, default=FOLDER.parent / "requirements-dev.lock")
    options.add_argument("--accepted", type=Path, default=FOLDER / "accepted-holes.toml")
    options.add_argument("--url", default=OSV)
    chosen = options.parse_args()
    pins = re.findall(r"^([a-z0-9-]+)==([^\s;]+)", chosen.lock.read_text(encoding="utf-8"), re.MULTILINE)
    accepted: dict[str, str] = tomllib.loads(chosen.accepted.read_text(encoding="utf-8"))["accepted"]
    try:
        holes = ask(chosen.url, pins)
    except NobodyAnswers as reason:
        print(f"known holes: not checked, {chosen.url} does not answer ({reason})")
        return 0
    open_holes = [hole for hole in holes if not accepted.get(hole[2], "").strip()]
    for name, version, identity in open_holes:
        print(f"known hole: {name} {version}: https://osv.dev/vulnerability/{identity}")
    for identity in sorted(accepted.keys() - {hole[2] for hole in holes}):
        print(f"known holes: {identity} is accepted and no longer there: take it out of {chosen.accepted.name}")
    print(f"known holes: {len(open_holes)} in {len(pins)} packages, {len(holes) - len(open_holes)} accepted")
    return 1 if open_holes else 0


def ask(url: str, pins: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(package, version, id) of every published vulnerability. Raises NobodyAnswers."""
    queries = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in pins]
    try:
        answer = httpx.post(url, json={"queries": queries}, timeout=SECONDS)
        answer.raise_for_status()
        results = answer.json()["results"]
        found = [[hole["id"] for hole in result.get("vulns", [])] for result in results]
    except httpx.HTTPError as error:
        raise NobodyAnswers(" ".join(str(error).split("\n")[0].split()) or type(error).__name__) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NobodyAnswers("what came back is no answer of OSV's") from None
    if len(found) != len(pins):
        raise NobodyAnswers(f"it was asked about {len(pins)} packages and answered about {len(found)}")
    return [(*pin, identity) for pin, ids in zip(pins, found, strict=True) for identity in ids]


if __name__ == "__main__":
    sys.exit(main())
