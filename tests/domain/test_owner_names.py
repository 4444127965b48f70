"""Names of owners: which one is refused, and when two are the same person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.audit import UNVERIFIED_FORM, Actor
from strategy_core.domain.errors import InvalidName
from strategy_core.domain.parsing import check_owner_name, same_owner


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        ("аna", "Cyrillic and Latin"),
        ("Zoë Ωmega", "Greek and Latin"),
        ("Βob", "Greek and Latin"),
        ("ana アナ Ана", "Cyrillic and Katakana and Latin"),
        ("ａnа", "Cyrillic and Latin"),
    ],
)
def test_a_name_that_mixes_scripts_is_refused(name: str, mixed: str) -> None:
    with pytest.raises(InvalidName, match=f"letters of one script, but it mixes {mixed}"):
        check_owner_name(name)


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "a\u200bna", "ana\ufe0f", "ana\u3164", "\u2800", "a\u034fna", "x" * 129, "ana\x00"]
)
def test_a_name_that_cannot_be_seen_as_it_is_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="one line of 1 to 128 visible characters"):
        Actor(name)


@pytest.mark.parametrize(
    "name",
    ["ana", "Zoë", "O'Brien-Smith 2", "ana@example.com", "Ана", "Δημήτρης", "王小明 Wang", "山田 タロウ たろう T.",
     "김철수 Kim", "uid 1000", "נועה", "علي", "अनिता", "ana №1"],
)  # fmt: skip
def test_a_name_in_one_script_is_accepted(name: str) -> None:
    assert check_owner_name(name) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ana", "Ana"),
        ("ana", " ANA "),
        ("Zoë", "Zoe\u0308"),
        ("ana", "ａｎａ"),
        ("Straße", "STRASSE"),
        ("ﬁona", "Fiona"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
def test_names_that_only_look_different_are_the_same_owner(one: str, other: str) -> None:
    assert same_owner(one, other)
    assert same_owner(other, one)


def test_other_names_are_other_owners() -> None:
    assert not same_owner("ana", "bob")
    assert not same_owner("ana", "an a")
    assert not same_owner(None, "ana")


@given(st.text(min_size=1))
def test_every_name_is_the_same_owner_as_its_other_forms(name: str) -> None:
    assert same_owner(name, name.upper().lower()) == same_owner(name.upper().lower(), name)
    assert same_owner(name, name)
    assert same_owner(name, f" {name} ")


def test_a_name_from_a_form_is_shown_with_its_mark() -> None:
    assert Actor("ana", source=UNVERIFIED_FORM).shown == "ana (unverified)"
    assert Actor("ana", source="form").shown == "ana"
