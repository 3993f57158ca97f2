"""Patterns in served text that are masked and counted. It is no guarantee of privacy.

What is masked is what these patterns recognise: a name, an address, a number that is spelt
otherwise, or told in parts, goes through. Only training with privacy bounds what a model can say
of a record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedllm.config import read_toml
from fedllm.errors import ConfigError

# Most characters of a match, but for e-mail addresses: whether one begins at a place is decided
# by so many behind it.
_SPAN, _OWN_SPAN = 64, 256
_MOST_OF_AN_ADDRESS = 320
_ADDRESS_END = re.compile(r"[A-Za-z0-9._%+@-]*\Z")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Pattern:
    """What is masked.

    Attributes
    ----------
    name : str
        Stands in brackets instead of what was found.
    regex : re.Pattern
        What it looks like.
    valid : callable
        Whether its digits and letters (the rest taken out) are such a number.
    """

    name: str
    regex: re.Pattern[str]
    valid: Callable[[str], bool] = lambda plain: True

    def end_of(self, match: re.Match[str]) -> int:
        """Return where a match ends as such a number; where it begins, if it is none.

        Behind a number there may be what looks as if it went on: a date behind a card. So where
        the check fails it is tried on what ends at a border within the match.
        """
        text, start = match.string, match.start()
        if self.valid(_plain(match[0])):
            return match.end()
        for end in range(match.end() - 1, start, -1):
            if not _borders(text, end):
                continue
            shorter = self.regex.fullmatch(text, start, end)
            if shorter is not None and self.valid(_plain(shorter[0])):
                return end
        return start


def _digits(text: str) -> list[int]:
    return [int(letter) for letter in text if letter.isdigit()]


def _luhn(plain: str) -> bool:
    """Check a card's last digit (ISO/IEC 7812-1)."""
    digits = _digits(plain)
    doubled = [d if n % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for n, d in _from_end(digits)]
    return any(digits) and sum(doubled) % 10 == 0


def _from_end(digits: list[int]) -> Iterable[tuple[int, int]]:
    return enumerate(reversed(digits))


def _iban(plain: str) -> bool:
    """Check an account's two digits (ISO 13616, ISO 7064 MOD 97-10)."""
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _nhs(plain: str) -> bool:
    digits = _digits(plain)
    rest = 11 - sum((10 - n) * d for n, d in enumerate(digits[:9])) % 11
    return len(set(digits)) > 1 and rest % 11 == digits[9]


def _resident(plain: str) -> bool:
    """Check the last character of a Chinese identity number (GB 11643)."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    found = sum(int(d) * w for d, w in zip(plain[:17], weights, strict=True)) % 11
    return "10X98765432"[found] == plain[17].upper()


def _insee(plain: str) -> bool:
    number = plain[:13].upper().replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(plain[13:])


def _dni(plain: str) -> bool:
    number = plain[:8].upper().translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[8].upper()


def _phone(plain: str) -> bool:
    return 8 <= len(_digits(plain)) <= 15


def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.ASCII)


# The first of those that begin at one place is taken.
PATTERNS = (
    Pattern(
        "email",
        _compiled(r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,3}"),
    ),
    Pattern("iban", _compiled(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)"), _iban),
    # Before cards, for which some would pass.
    Pattern(
        "fr_insee",
        _compiled(r"(?<!\d)[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?!\d)"),
        _insee,
    ),
    Pattern("card", _compiled(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"), _luhn),
    Pattern("cn_resident", _compiled(r"(?<!\d)[1-9]\d{16}[\dXx](?!\w)"), _resident),
    Pattern(
        "us_ssn",
        _compiled(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    ),
    Pattern("uk_nhs", _compiled(r"(?<!\d)\d{3}[ -]?\d{3}[ -]?\d{4}(?!\d)"), _nhs),
    Pattern(
        "uk_nino",
        _compiled(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)"),
    ),
    Pattern("es_dni", _compiled(r"(?<!\w)(?:\d{8}|[XYZ]\d{7})-?[A-Z](?!\w)"), _dni),
    Pattern(
        "phone",
        _compiled(r"(?<![\w+])\+\d{1,3}(?:[ ./-]?(?:\(\d{1,4}\)|\d{1,4})){2,6}(?!\d)"),
        _phone,
    ),
    Pattern("phone", _compiled(r"(?<![\w-])0\d{1,5}(?:[ /-]\d{2,8}){1,4}(?![\w-])"), _phone),
    Pattern("phone", _compiled(r"(?:(?<!\w)\d{3}|\(\d{3}\))[ .-]\d{3}[ .-]\d{4}(?!\w)"), _phone),
)


@dataclass(frozen=True)
class Guard:
    """Masks what patterns recognise.

    Attributes
    ----------
    patterns : tuple of Pattern
        In the order in which they are tried.
    span : int
        Most characters of a match.
    """

    patterns: tuple[Pattern, ...] = PATTERNS
    span: int = _SPAN

    def mask(self, text: str) -> tuple[str, Counter[str]]:
        """Return a text with all matches masked, and how many there were of each name."""
        stream = self.stream()
        return stream.push(text) + stream.end(), stream.found

    def stream(self) -> GuardedText:
        """Return what masks a text that comes in pieces."""
        return GuardedText(self)

    def next(self, text: str, start: int) -> tuple[int, int, str] | None:
        """Return the first match from a place on: where it begins and ends, and its name."""
        best: tuple[int, int, str] | None = None
        for pattern in self.patterns:
            place = start
            while (match := pattern.regex.search(text, place)) is not None:
                if best is not None and match.start() >= best[0]:
                    break
                end = pattern.end_of(match)
                if end > match.start():
                    best = (match.start(), end, pattern.name)
                    break
                place = match.start() + 1
        return best


def _borders(text: str, end: int) -> bool:
    """Tell whether a word or number ends at a place."""
    return text[end - 1].isalnum() and not (text[end].isalnum() or text[end] == "_")


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())


@dataclass
class GuardedText:
    """A text that comes in pieces: the same is masked, and the same handed on, as of the whole.

    The newest characters wait until nothing that follows can make a match of them.

    Attributes
    ----------
    found : Counter
        Matches by name.
    """

    guard: Guard
    found: Counter[str] = field(default_factory=Counter)
    _text: str = field(default="", repr=False)
    _done: int = 0

    def push(self, piece: str) -> str:
        """Take the next piece; return what can be handed on."""
        self._text += piece
        beginning = _ADDRESS_END.search(self._text, max(len(self._text) - _MOST_OF_AN_ADDRESS, 0))
        waits = beginning.start() if beginning else len(self._text)
        return self._until(min(waits, len(self._text) - self.guard.span))

    def end(self) -> str:
        """Return what is left."""
        return self._until(len(self._text))

    def _until(self, last: int) -> str:
        """Hand on what begins before ``last``."""
        parts = []
        while self._done < last:
            match = self.guard.next(self._text, self._done)
            if match is None or match[0] >= last:
                parts.append(self._text[self._done : last])
                self._done = last
                break
            parts += [self._text[self._done : match[0]], f"[{match[2]}]"]
            self.found[match[2]] += 1
            self._done = match[1]
        self._forget()
        return "".join(parts)

    def _forget(self) -> None:
        # A pattern looks back one character at most; operators' own a few.
        unused = max(self._done - self.guard.span, 0)
        self._text, self._done = self._text[unused:], self._done - unused


def read_guard(path: Path | None) -> Guard:
    """Return the guard with an operator's own patterns before the others.

    Parameters
    ----------
    path : Path, optional
        TOML with ``[patterns]``: a name and a regular expression of Python each.

    Raises
    ------
    ConfigError
        If the file is wrong; names the pattern.
    """
    if path is None:
        return Guard()
    listed = read_toml(path).get("patterns")
    if not isinstance(listed, Mapping) or not listed:
        raise ConfigError(
            f"{path} names no patterns",
            'write a section [patterns] with lines such as ward = "W-[0-9]{4}"',
        )
    own = tuple(_own(name, regex, path) for name, regex in listed.items())
    return Guard((*own, *PATTERNS), _OWN_SPAN)


def _own(name: str, regex: object, path: Path) -> Pattern:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: a pattern's name is not of small letters, digits, _ and -",
            "choose a name such as ward_code",
        )
    try:
        compiled = re.compile(str(regex)) if isinstance(regex, str) else None
    except re.error as error:
        raise ConfigError(
            f"{path}: the pattern {name!r} is no regular expression: {error}", "correct it"
        ) from None
    if compiled is None or compiled.match("") is not None:
        raise ConfigError(
            f"{path}: the pattern {name!r} is no text, or matches nothing at all",
            "give a regular expression that matches a character at least",
        )
    return Pattern(name, compiled)
