"""Locations of one thing written in several ways are one."""

import pytest

from icelake.model.location import below, canonical, is_s3, split_s3


@pytest.mark.parametrize("text", ["s3://b/k/l", "s3a://b/k/l", "S3N://b/k/l/", "s3://b/k/l//"])
def test_one_object(text: str) -> None:
    assert canonical(text) == "s3://b/k/l"
    assert is_s3(text)
    assert split_s3(text) == ("b", "k/l")


def test_buckets_paths_and_names_keep_their_case() -> None:
    assert split_s3("s3://b/") == ("b", "")
    assert canonical("s3a://b/Key") == "s3://b/Key"
    assert canonical("/lake/S3://x/") == "/lake/S3://x"
    assert not is_s3("/lake/s3")
    with pytest.raises(ValueError, match="not a location on S3"):
        split_s3("/lake")


@pytest.mark.parametrize("text", ["/lake/t/a", "/lake/t/x=a%2Fb/c d", "file:/lake/t/a", "file:///lake/t/a", "/lake/t/..a"])
def test_below_a_folder(text: str) -> None:
    assert below(text, ["/elsewhere", "/lake/t/"])
    assert below("s3a://b/k/l/m", ["s3://b/k"])


@pytest.mark.parametrize(
    "text", ["/lake/t", "/lake/t/", "/lake/t2/a", "/lake/t/../a", "/lake/t/./a", "/lake/t//a", "/lake/t/a/", "lake/t/a", "s3://lake/t/a"]
)
def test_not_below_a_folder(text: str) -> None:
    assert not below(text, ["/lake/t"])
