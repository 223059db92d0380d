"""Names and messages as a terminal may safely see them."""


def visible(text: str, *, keep: str = "") -> str:
    """Spell out what is no printable character (`\\x1b`), so that an object's name can command no terminal.

    Args:
        keep: characters to leave as they are, such as line breaks of our own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)
