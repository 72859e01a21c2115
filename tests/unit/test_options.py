import pytest

from vmm.errors import ConfigError
from vmm.options import parse_bool, parse_int, parse_keys, parse_pairs, parse_seconds, parse_size, split_commas


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("1.5G", 3 << 29),
        ("64MiB", 64 << 20),
        ("4k", 4096),
        ("1T", 1 << 40),
        ("100", 100),
        ("100B", 100),
        ("0x100000", 1 << 20),
        (4096, 4096),
        ("9007199254740993", 9007199254740993),  # not exact in floating point
        ("0.125k", 128),
    ],
)
def test_size(text: str | int, size: int) -> None:
    assert parse_size(text, "-x") == size


def test_bare_size_has_the_unit_of_its_option() -> None:
    assert parse_size("512", "-m", unit="m") == 512 << 20


@pytest.mark.parametrize(
    "text", ["", "M", "12Q", "-5M", "1.2.3G", "5 5", "0x", "0.3k", "inf", "1e3", "9" * 5000, f"1.{'0' * 5000}"]
)
def test_size_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-m"):
        parse_size(text, "-m")


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("0x10", 16), ("-1", -1), ("007", 7), (3, 3)])
def test_int(text: str | int, value: int) -> None:
    assert parse_int(text, "-x", minimum=-1, maximum=16) == value


@pytest.mark.parametrize("text", ["", "x", "17", "-2", "1.0", "--1", 99, "9" * 5000])
def test_int_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match="-x"):
        parse_int(text, "-x", minimum=-1, maximum=16)


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000])
def test_no_int_has_more_digits_than_can_be_said(digits: str) -> None:
    with pytest.raises(ConfigError, match="not a whole number"):
        parse_int(digits, "-x")


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"minimum": 0}, "from 0 up"), ({"maximum": -2}, "up to -2"), ({"minimum": 0, "maximum": 9}, "from 0 to 9")],
)
def test_int_says_the_limits_that_there_are(limits: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^-x -1: must be {words}$"):
        parse_int("-1", "-x", **limits)


@pytest.mark.parametrize(("text", "seconds"), [("60", 60.0), ("0.25", 0.25), ("1e-3", 0.001)])
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "inf", "nan", "5s"])
def test_seconds_refused(text: str) -> None:
    shown = text or "''"
    with pytest.raises(ConfigError, match=f"^--timeout {shown}: not a number of seconds above 0$"):
        parse_seconds(text, "--timeout")


def test_bool() -> None:
    assert parse_bool("on", "x")
    assert not parse_bool("off", "x")
    with pytest.raises(ConfigError, match="x=maybe"):
        parse_bool("maybe", "x")


def test_two_commas_are_one_that_belongs_to_the_value() -> None:
    assert split_commas("a,,b,c") == ["a,b", "c"]
    assert parse_keys("name=opt/x,string=one,, two", "-fw_cfg") == {"name": "opt/x", "string": "one, two"}


def test_first_part_without_equals_has_the_implied_key() -> None:
    assert parse_keys("opt/x,file=f", "-fw_cfg", implied="name") == {"name": "opt/x", "file": "f"}


def test_flags() -> None:
    assert parse_pairs("menu,strict=off", "-boot") == [("menu", "on"), ("strict", "off")]
    assert parse_keys("nomenu", "-boot", known=("menu",)) == {"menu": "off"}


def test_values_keep_equal_signs() -> None:
    assert parse_keys("string=a=b", "-fw_cfg") == {"string": "a=b"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a=1,,", "unknown key 'a'"), ("x=1,", "empty part"), ("x=1,y=2", "unknown key 'y'"), ("x=1,x=2", "given twice")],
)
def test_pairs_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_keys(text, "-o", known=("x",))
