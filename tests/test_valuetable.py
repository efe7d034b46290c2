"""`--values`: all forms, every misuse, and what is written is read back the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.refusal import raises
from ubend.core.errors import SettingError
from ubend.core.settings import dump_toml, make_settings, read_config
from ubend.labels.class_table import (
    ANY_DISTANCE,
    IGNORED,
    NOISE_REACH,
    RESERVED_NAMES,
    ROUNDING_REACH,
    LabelMap,
    choose_colors,
    make_label_map,
)
from ubend.labels.label_values import ValueKind
from ubend.labels.value_table import parse_table, write_table


def parse(text: str) -> LabelMap:
    return parse_table(text.split(","))


def test_values() -> None:
    labels = parse("0=background, 255 = polyp")
    assert (labels.names, labels.kind) == (("background", "polyp"), "value")
    assert labels.codes == ((0,), (255,))
    assert (labels.ignored, labels.reach, labels.others) == ((), 0, None)


def test_ranges_and_one_name_for_several() -> None:
    labels = parse("0=background,1..3=cell,9=cell,7..7=edge,255=ignored,40000..40001=ignored")
    assert labels.names == ("background", "cell", "edge")
    assert labels.codes == ((0,), (1, 2, 3, 9), (7,))
    assert labels.ignored == (255, 40000, 40001)


def test_colours() -> None:
    for text in ("#000000=ground,#ff0000=road", "black=ground,red=road", "#000=ground,#F00=road"):
        labels = parse(text)
        assert labels.kind == "color"
        assert labels.codes == ((0,), (0xFF0000,))
        assert labels.colors == ((0, 0, 0), (255, 0, 0))
        assert (labels.reach, labels.others) == (ROUNDING_REACH, None)


@pytest.mark.parametrize(
    ("rest", "reach", "others"),
    [
        ("*=nearest", ANY_DISTANCE, None),
        ("*=near", NOISE_REACH, IGNORED),
        ("*=ignored", 0, IGNORED),
        ("*=b", 0, 1),
        ("*=other", 0, 2),
    ],
)
@pytest.mark.parametrize("table", ["0=a,1=b", "red=a,blue=b"])
def test_all_other_codes(table: str, rest: str, reach: int, others: int | None) -> None:
    labels = parse(f"{table},{rest}")
    assert (labels.reach, labels.others) == (reach, others)
    assert labels.names == (("a", "b", "other") if rest == "*=other" else ("a", "b"))
    assert parse(f"{rest},{table}") == labels  # wherever it stands


def test_one_class_and_the_rest() -> None:
    labels = parse("0=background,*=object")
    index, found = labels.classify(np.array([0, 1, 77, 65535], np.int32))
    assert index.tolist() == [0, 1, 1, 1]
    assert found.all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0=",
        "=a",
        "0=a,",
        "0:a,1:b",
        "0=a,x1=b",
        "0=a,-1=b",
        "0=a,1.5=b",
        "0=a,3..1=b",
        "0=a,1..=b",
        "0=a,1...3=b",
        "0=a,²=b",
        "0=a,65536=b",
        "0=a,1..99999999999999=b",
        "0=a,#12=b",
        "0=a,#gggggg=b",
        "0=a,1=nearest",
        "0=a,1=b,2=near",
        "0=a,1=b,*=ignored,*=nearest",
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with raises(SettingError, key="data.values", named=["0=background,255=polyp"]) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["0=a", "0=a,255=ignored", "*=a", "0=a,1=a", "0=a,0=b", "0=a,0=ignored", "0..9=a,5=b", "0=a,red=b", "0=a,*=a"],
)
def test_contradictions(text: str) -> None:
    with raises(SettingError, key="data.values", named=[text]):
        parse(text)


def test_more_classes_than_a_byte_holds() -> None:
    with raises(SettingError, key="data.values", named=["300", "254"]):
        parse_table([f"{i}=c{i}" for i in range(300)])


NAMES = st.text("abcø漢 =,#*.1", min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def tables(draw: st.DrawFn) -> LabelMap:
    """Whatever `--values` or `find_classes` can make."""
    kind: ValueKind = draw(st.sampled_from(["value", "color"]))
    top = 40 if draw(st.booleans()) else (65535 if kind == "value" else 0xFFFFFF)
    codes = draw(st.lists(st.integers(0, top), min_size=2, max_size=12, unique=True))
    ignored = tuple(sorted(codes[: draw(st.integers(0, min(2, len(codes) - 2)))]))
    own = codes[len(ignored) :]
    cut = draw(st.integers(1, len(own) - 1))
    table = [tuple(sorted(own[:cut])), *((code,) for code in own[cut:])]
    names = tuple(draw(st.lists(NAMES, min_size=len(table), max_size=len(table), unique=True)))
    usual = (ROUNDING_REACH if kind == "color" else 0, None)
    reach, others = draw(
        st.sampled_from([usual, (ANY_DISTANCE, None), (NOISE_REACH, IGNORED), (0, IGNORED), (0, 0), (0, len(table))])
    )
    if others == len(table):  # a class that only `*` gives
        names, table = (*names, "all the rest"), [*table, ()]
    return LabelMap(names, kind, tuple(table), choose_colors(names, table, kind), ignored, reach, others)


@given(tables())
def test_what_is_written_is_read_back(labels: LabelMap) -> None:
    assert parse_table(write_table(labels)) == labels


def test_runs_are_short() -> None:
    labels = make_label_map(range(20), [f"c{i}" for i in range(20)])
    assert write_table(parse("0=background,1..19=cell,255=ignored")) == ("0=background", "1..19=cell", "255=ignored")
    assert write_table(labels)[:2] == ("0=c0", "1=c1")


def test_through_a_settings_file(tmp_path: object) -> None:
    """Names with commas, quotes and other letters live through TOML."""
    from pathlib import Path

    labels = make_label_map([0, 3, 9], ['road, "wet"', "nền\\x", "c=d"])
    path = Path(str(tmp_path)) / "a.toml"
    path.write_text(dump_toml(make_settings(changes={"data.values": write_table(labels)})), encoding="utf-8")
    given = make_settings(config=read_config(path)).data.values
    assert given is not None
    assert parse_table(given) == labels


def test_reserved_names_are_those_that_are_refused() -> None:
    assert set(RESERVED_NAMES) == {"ignored", "nearest", "near"}
