"""What a name, a mail address, a reference may be made of, and how text of others is shown: one rule for every way in.

Called by subscribing/ when something is entered, by cli/output.py and log.py when something is shown. Names are kept
as people write them, in any script; what is refused is what nobody can see or what steers a terminal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from billing.errors import InvalidInput

LONGEST_NAME = 100
LONGEST_PLAN_NAME = 200
LONGEST_TEXT = 500
LONGEST_EMAIL = 50  # Xendit's limit
LONGEST_XENDIT_ID = 60

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,99}")
# As store/models.py makes them: a reference of this form would be taken for another thing's id.
_OUR_ID = re.compile(r"(att|cap|cus|evt|inv|lease|plan|ref|run|ses|sub|tok)-[0-9a-f]{32}", re.IGNORECASE)
_MOBILE = re.compile(r"\+[1-9][0-9]{5,14}")
_LOCAL_PART = re.compile(r"(?:[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]|[^\x00-\x7f\s])+|\"(?:[^\"\\]|\\.)+\"")
_ASCII_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")

# Controls; what is invisible or turns the direction of reading (Unicode's Cc, Cf, Cs, Zl, Zp); letters by name that
# are blank to the eye.
_NO_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u2064\u2066-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
    "\u034f\u115f\u1160\u2800\u3164\uffa0]"
)
_JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji are not written without them
_LATIN_ENDS = 0x24F


# ------------------------------------------------------------------------------------------- what is entered


def refuse_no_text(what: str, text: str) -> None:
    """Control characters, and what nobody sees. Raises InvalidInput without repeating them."""
    if text.isascii() and text.isprintable():
        return
    for found in _NO_TEXT.finditer(text):
        if not _joins(found):
            place, title = found.start() + 1, _title(found[0])
            raise InvalidInput(f"{what}: character {place} is {title}, which is no text; leave it out")


def check_text(what: str, text: str, *, longest: int) -> str:
    """Text for people, without the blanks around it. Raises InvalidInput."""
    refuse_no_text(what, text)
    kept = text.strip()
    if not kept:
        raise InvalidInput(f"{what} is empty; write 1 to {longest} characters")
    if len(kept) > longest:
        raise InvalidInput(f"{what} has {len(kept)} characters; write 1 to {longest}")
    return kept


def check_email(email: str) -> None:
    """Something that mail can be sent to. Whether anybody reads it, only a mail can tell. Raises InvalidInput."""
    refuse_no_text("email", email)
    local, _, domain = email.rpartition("@")
    if len(email) > LONGEST_EMAIL or not _LOCAL_PART.fullmatch(local) or not _is_domain(domain):
        raise InvalidInput(
            f"email {email[:60]!r}: not an address of at most {LONGEST_EMAIL} characters such as ana@example.com"
        )


def check_reference(what: str, reference: str) -> None:
    if not _REFERENCE.fullmatch(reference):
        raise InvalidInput(
            f"{what} {reference[:40]!r}: use 1 to 100 letters, digits and . _ : @ + - (no blanks),"
            " beginning with a letter or digit"
        )
    if _OUR_ID.fullmatch(reference):
        raise InvalidInput(
            f"{what} {reference[:40]!r}: has the form of an id, and would be taken for one; choose another"
        )


def check_mobile(mobile: str) -> None:
    if not _MOBILE.fullmatch(mobile):
        raise InvalidInput(f"mobile {mobile[:20]!r}: must be in international form such as +628123456789")


def check_xendit_id(value: str, prefix: str, what: str) -> None:
    if not value.startswith(prefix) or len(value) > LONGEST_XENDIT_ID or not value.isascii() or not value.isprintable():
        raise InvalidInput(f"{what} {value[:20]!r}: Xendit's ids of this kind start with {prefix}")


@lru_cache(maxsize=4096)
def _is_domain(domain: str) -> bool:
    labels = domain.split(".")
    return len(labels) > 1 and all(map(_is_label, labels))


def _is_label(label: str) -> bool:
    """ASCII by the rules of host names; other scripts by being letters, their marks, or digits."""
    if label.isascii():
        return _ASCII_LABEL.fullmatch(label) is not None
    return all(letter == "-" or unicodedata.category(letter)[0] in "LMN" for letter in label)


# --------------------------------------------------------------------------------------------- what is shown


def visible(text: str, *, keep: str = "", spell: Callable[[str], str] | None = None) -> str:
    """The same text with everything that is no text spelled out: an escape code becomes the letters `\\x1b`."""
    spell = spell or _spelled_out
    return _NO_TEXT.sub(lambda found: found[0] if found[0] in keep or _joins(found) else spell(found[0]), text)


def _spelled_out(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _joins(found: re.Match[str]) -> bool:
    """A joiner stands behind a letter of a script that needs it."""
    before = found.string[found.start() - 1 : found.start()]
    return found[0] in _JOINERS and before > chr(_LATIN_ENDS) and before not in _JOINERS


def _title(letter: str) -> str:
    known = unicodedata.name(letter, "a control character" if unicodedata.category(letter) == "Cc" else "")
    return f"U+{ord(letter):04X} ({known})" if known else f"U+{ord(letter):04X}"
