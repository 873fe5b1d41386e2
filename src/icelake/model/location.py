"""Locations: where a file or folder is. An absolute path, or an object of S3.

Engines write one and the same object as ``s3://``, ``s3a://`` or ``s3n://``, and a path as ``file:/…`` or ``file:///…``; locations are
compared in their canonical form.
"""

from collections.abc import Iterable

_S3 = ("s3://", "s3a://", "s3n://")


def canonical(location: str) -> str:
    """The location without trailing slashes, an S3 one as ``s3://bucket/key``, one in a file system as its path."""
    if location[:5].lower() == "file:" and not (location[5:7] == "//" and location[7:8] != "/"):
        # With a host between the slashes it would be another's file.
        location = "/" + location[5:].lstrip("/")
    for scheme in _S3:
        if location[: len(scheme)].lower() == scheme:
            location = "s3://" + location[len(scheme) :]
            break
    return location.rstrip("/")


def below(location: str, folders: Iterable[str]) -> bool:
    """Whether a file's location is below one of the folders, whatever is between: no part of it is empty, ``.`` or ``..``."""
    place = canonical(location)
    for folder in map(canonical, folders):
        if place.startswith(f"{folder}/"):
            return {"", ".", ".."}.isdisjoint(place[len(folder) + 1 :].split("/")) and "\0" not in place and not location.endswith("/")
    return False


def is_s3(location: str) -> bool:
    return canonical(location).startswith("s3://")


def split_s3(location: str) -> tuple[str, str]:
    """(bucket, key); the key of a bucket itself is "". Raises ValueError if it is not on S3."""
    text = canonical(location)
    if not text.startswith("s3://"):
        raise ValueError(f"not a location on S3: {location!r}")
    bucket, _, key = text.removeprefix("s3://").partition("/")
    return bucket, key
