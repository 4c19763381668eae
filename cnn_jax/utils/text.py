"""Text for messages."""


def count(number: int, noun: str) -> str:
    """Returns "1 image", "2 images" or "1,000 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
