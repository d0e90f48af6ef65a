"""``applied``: everything is restored, whatever happened, and every patch is known to have been used."""

import pytest

from patches.patch import Patch, applied


class Base:
    def greet(self) -> str:
        return "base"


class Child(Base):
    def name(self) -> str:
        return "child"


def replaced(self: object) -> str:
    """Stand in for a method."""
    return "replaced"


NAME = Patch(Child, "name", replaced, "test")
GREET = Patch(Child, "greet", replaced, "test")  # inherited from Base
original_name = Child.name


def test_replaces_inside_and_restores_outside():
    with applied([NAME]):
        assert Child().name() == "replaced"
    assert Child.name is original_name


def test_counts_calls():
    with applied([NAME]) as calls:
        Child().name()
        Child().name()
        assert calls[NAME] == 2


def test_an_inherited_attribute_is_inherited_again():
    with applied([GREET]):
        assert Child().greet() == "replaced"
        assert Base().greet() == "base"
    assert "greet" not in vars(Child)


def test_restores_after_an_exception_and_lets_it_through():
    with pytest.raises(ZeroDivisionError), applied([NAME, GREET]):
        raise ZeroDivisionError
    assert Child.name is original_name
    assert "greet" not in vars(Child)


def test_two_patches_of_one_attribute_are_undone_in_reverse_order():
    def again(self: object) -> str:
        return "again"

    second = Patch(Child, "name", again, "test")
    with pytest.raises(RuntimeError, match="never called"), applied([NAME, second]):
        assert Child().name() == "again"
    assert Child.name is original_name


def test_a_missing_name_raises_and_leaves_nothing_replaced():
    missing = Patch(Child, "gone", replaced, "test")
    with (
        pytest.raises(AttributeError, match=r"expected .*Child.gone to exist, found no attribute 'gone'"),
        applied([NAME, missing]),
    ):
        pass
    assert Child.name is original_name


def test_a_patch_never_called_raises_on_a_clean_exit():
    with pytest.raises(RuntimeError, match=r"1 never called: .*Child.greet"), applied([NAME, GREET]):
        Child().name()


def test_an_exception_is_not_hidden_by_unused_patches():
    with pytest.raises(KeyError), applied([NAME]):
        raise KeyError("inner")
