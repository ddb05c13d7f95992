"""What becomes of files on disks that fail."""


def flipped(content, share):
    """The content with another byte at that share of it."""
    at = int(share * len(content))
    return content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :]


DAMAGES = {
    "deleted": None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "short": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "a third of zeros": lambda content: content[: len(content) // 3].ljust(len(content), b"\0"),
    "flipped": lambda content: flipped(content, 0.1),
}


def damage(path, kind):
    """Damage a file in one of the ways of `DAMAGES`."""
    if DAMAGES[kind] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))
