"""Names and values from elsewhere, as they may be shown: on one line, nothing invisible in them, and not endless.

A study's or a layer's name may hold what a terminal obeys (escapes), what reorders a line (right-to-left marks) or ends
it; each such character is shown as Python would write it.
"""

from typing import Any

LENGTH = 80
"""Characters of a value that a message shows."""


def visible(text: str) -> str:
    """The text with every character that does not print written out: `\\x1b`, `\\u202e`, `\\n`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def brief(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    try:
        said = repr(value)
    except ValueError:  # a whole number of thousands of digits
        said = f"an endless {type(value).__name__}"
    return said if len(said) <= LENGTH else f"{said[: LENGTH - 3]}..."
