"""A path that a person gives: expanded, or refused under the name of what holds it."""

import os

import pytest

from normtweak_core.errors import InputError
from normtweak_core.paths import given_path, shown


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_path("~/models", "model.source") == tmp_path / "models"
    assert given_path("owner/name", "model.source").parts == ("owner", "name")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "~nosuchuser/x",
            "must begin with the home folder of a user there is; found '~nosuchuser/x': write the "
            "path out, or ./~nosuchuser/x for a folder of that name",
        ),
        ("", "must be a path; found an empty text: name a file or a folder"),
        ("a\0b", r"must be a path of UTF-8 characters; found 'a\x00b': rename it"),
        ("caf\udce9", r"must be a path of UTF-8 characters; found 'caf\udce9': rename it"),
        (
            "x" * 300,
            "must be a path that the file system takes and this user may look at; found "
            f"'{'x' * 79}…: File name too long: check the path",
        ),
        (
            "/" + "y/" * 3000,
            "must be a path that the file system takes and this user may look at; found "
            f"'{('/' + 'y/' * 3000)[:79]}…: File name too long: check the path",
        ),
    ],
)
def test_what_is_no_path_is_refused_by_its_key(given, said):
    with pytest.raises(InputError) as refused:
        given_path(given, "evaluation.data")
    assert str(refused.value) == f"evaluation.data {said}"


def test_links_that_lead_to_themselves_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"^--text must be .*: Too many levels of symbolic links"):
        given_path(tmp_path / "loop" / "x", "--text")


def test_a_folder_that_this_user_may_not_look_into_is_refused(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("pathlib.Path.stat", refuse)  # tests may run as root, whom nothing stops
    with pytest.raises(InputError, match=r"^--out must be .*: Permission denied: check the path$"):
        given_path(tmp_path / "x", "--out")


def test_a_working_folder_that_was_removed_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError) as refused:
        given_path(".normtweak", "NORMTWEAK_HOME")
    assert str(refused.value) == (
        "NORMTWEAK_HOME is a path from the working folder, which must exist; found '.normtweak', "
        "and the folder was removed: change to a folder that is there"
    )
    assert given_path("/absent", "NORMTWEAK_HOME").parts == ("/", "absent")


def test_a_long_value_is_told_shortly():
    assert shown([1]) == "[1]"
    assert shown("x" * 500) == "'" + "x" * 79 + "…"
