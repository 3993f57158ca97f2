"""The one page on which answers are ranked in a browser.

It loads nothing from anywhere and runs no script: its policy forbids both, so that a text which
somebody wrote into a prompt, or a model into an answer, is a text whatever it looks like.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedllm.rating.session import HELP, Item
from fedllm.visible import visible

_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# With no-referrer a browser would not say where a form was sent from.
_HEADERS = {
    "cache-control": "no-store",
    # A form must not meet a connection that is just given up for having been idle.
    "connection": "close",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_ENVIRONMENT = Environment(
    loader=PackageLoader("fedllm.rating"), autoescape=True, undefined=StrictUndefined
)


@dataclass(frozen=True)
class Page:
    """What a rater is shown.

    Attributes
    ----------
    action : str
        Path to which the form goes.
    progress : str
        A line.
    item : Item, optional
        The prompt; None at the end, while answers are sampled, and when all is over.
    waiting : bool
        Whether answers are sampled.
    over : bool
        Whether the rater left.
    notice, words : str
        What to tell, and what the rater wrote that could not be read.
    step : int
        Of the session; its form comes back with it.
    """

    action: str
    progress: str
    item: Item | None = None
    waiting: bool = False
    over: bool = False
    notice: str = ""
    words: str = ""
    step: int = 0

    @property
    def title(self) -> str:
        """What a tab and a screen reader say first."""
        if self.over:
            return "Everything is kept; close this page"
        if self.item is not None:
            return f"Prompt {self.item.number} of {self.item.count}"
        return "One moment" if self.waiting else "The end"

    def html(self) -> tuple[bytes, dict[str, str]]:
        """Return the page and its headers, which let a browser do nothing but show it."""
        nonce = secrets.token_urlsafe(16)
        item = self.item
        page = _ENVIRONMENT.get_template("rate.html.j2").render(
            nonce=nonce,
            title=self.title,
            action=self.action,
            progress=self.progress,
            notice=self.notice,
            waiting=self.waiting,
            over=self.over,
            words=self.words,
            step=self.step,
            help=HELP,
            item=item,
            prompt=_shown(item.question.prompt) if item else "",
            context=_shown(item.question.context) if item else "",
            answers=[_shown(answer) for answer in item.answers] if item else [],
        )
        policy = {"content-security-policy": _POLICY.format(nonce=nonce)}
        return page.encode(), _HEADERS | policy


def _shown(text: str) -> str:
    return visible(text, keep="\n\t")
