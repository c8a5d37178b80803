"""Numbers with their noun: 1 image, 2,000 images."""


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun. `many` is the plural, if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
