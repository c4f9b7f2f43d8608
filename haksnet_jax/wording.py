"""Numbers with their nouns."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`, `1,200 boxes`. Args: number; noun, of one; plural, where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
