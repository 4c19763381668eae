"""Text for messages."""


def count(number: int, noun: str) -> str:
    """Returns "1 image", "2 images" or "1,000 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Returns "1:02:03" for hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def printable(text: str) -> str:
    """Returns text on one line without control characters, which could change the state of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
