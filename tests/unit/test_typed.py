"""Named tuples that a start can afford are what those of `typing` are."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
from pathlib import Path

import pytest

from vmm import typed


class Ours(typed.NamedTuple):
    """A range."""

    first: int
    size: int = 16
    name: str = ""

    @property
    def end(self) -> int:
        return self.first + self.size


class Theirs(typing.NamedTuple):
    """A range."""

    first: int
    size: int = 16
    name: str = ""

    @property
    def end(self) -> int:
        return self.first + self.size


class Checked(Ours):
    def __new__(cls, *values: typing.Any, **fields: typing.Any) -> typing.Self:
        self = super().__new__(cls, *values, **fields)
        if self.size < 0:
            raise ValueError(self.size)
        return self


KINDS = pytest.mark.parametrize("kind", [pytest.param(Ours, id="ours"), pytest.param(Theirs, id="typing's")])
Kind = type[Ours] | type[Theirs]


@KINDS
def test_fields_have_places_names_and_defaults(kind: Kind) -> None:
    one = kind(1, name="low")
    assert (one.first, one.size, one.name, one.end) == (1, 16, "low", 17)
    assert one == (1, 16, "low") == kind(first=1, size=16, name="low") == kind(1, 16, "low")
    assert hash(one) == hash((1, 16, "low"))
    assert repr(one) == f"{kind.__name__}(first=1, size=16, name='low')"


@KINDS
def test_the_class_says_what_it_has(kind: Kind) -> None:
    assert kind._fields == ("first", "size", "name")
    assert kind._field_defaults == {"size": 16, "name": ""}
    assert list(inspect.signature(kind).parameters) == ["first", "size", "name"]
    assert [each.default for each in inspect.signature(kind).parameters.values()] == [inspect.Parameter.empty, 16, ""]
    assert kind.__doc__ == "A range."
    assert issubclass(kind, tuple)


@KINDS
def test_copies_have_other_values(kind: Kind) -> None:
    one = kind(1, 2, "a")
    assert one._replace(size=3) == kind(1, 3, "a")
    assert type(one._replace(size=3)) is kind
    assert hasattr(kind, "__replace__") or kind is Theirs  # since Python 3.13
    assert getattr(copy, "replace", kind._replace)(one, size=3) == kind(1, 3, "a")
    assert one._asdict() == {"first": 1, "size": 2, "name": "a"}
    assert kind._make(iter([1, 2, "a"])) == one
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301  # our own
        assert other == one
        assert type(other) is kind


@KINDS
@pytest.mark.parametrize(
    ("values", "fields"),
    [
        pytest.param((), {}, id="nothing"),
        pytest.param((1, 2, "a", 4), {}, id="too many"),
        pytest.param((1,), {"first": 1}, id="twice"),
        pytest.param((1,), {"last": 1}, id="unknown"),
        pytest.param((), {"size": 1}, id="without one that has no default"),
    ],
)
def test_wrong_values_are_refused(kind: Kind, values: tuple[object, ...], fields: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=kind.__name__):
        kind(*values, **fields)  # type: ignore[arg-type]


@KINDS
def test_what_is_wrong_with_a_copy_is_refused(kind: Kind) -> None:
    with pytest.raises((TypeError, ValueError)):  # typing's: the latter before Python 3.13
        kind(1)._replace(last=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        kind._make([1, 2])


@KINDS
def test_it_cannot_be_changed(kind: Kind) -> None:
    one = kind(1)
    for name in ("first", "last"):
        with pytest.raises(AttributeError):
            setattr(one, name, 2)
    assert not hasattr(one, "__dict__")


def test_patterns_match_by_place() -> None:
    match Ours(1, name="low"):
        case Ours(1, size, name="low"):
            assert size == 16
        case other:
            pytest.fail(repr(other))


def test_a_class_below_it_can_check_values() -> None:
    assert Checked(1).end == 17
    assert Checked._fields == Ours._fields
    assert repr(Checked(1)) == "Checked(first=1, size=16, name='')"
    assert not hasattr(Checked(1), "__dict__")
    with pytest.raises(ValueError, match="-1"):
        Checked(1, size=-1)


def test_annotations_are_texts_wherever_it_is_used() -> None:
    # Python 3.14 would not evaluate them before they are asked for, and the class would have no fields.
    users = [
        path for path in Path(typed.__file__).parent.rglob("*.py") if "vmm.typed import" in path.read_text("utf-8")
    ]
    assert len(users) > 50
    assert [each for each in users if "from __future__ import annotations\n" not in each.read_text("utf-8")] == []
