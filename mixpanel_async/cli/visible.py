"""Text for a terminal: characters that it would interpret, or cannot show, are escaped. Pure."""

from __future__ import annotations


def visible(text: str, *, keep: str = "") -> str:
    """Return text in which every character that cannot be printed is escaped, such as `\\x1b`.

    Args:
        text: the text, which may come from a file, a file name or a server.
        keep: characters that stay as they are, such as a line break.
    """
    if text.isprintable():
        return text
    # `isprintable` is false for control, format, surrogate, private and separator characters other than the space.
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
