"""Text from outside, such as file names and error messages, made safe to print."""


def printable(text: str, keep: str = "") -> str:
    """The text with control characters and bytes that are not UTF-8 escaped, as in \\x1b; those in `keep` stay."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
