"""Settings: what is unknown or does not fit is reported in one line; the saved file gives the same settings."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from support.refusal import raises
from ubend.core.errors import SettingError
from ubend.core.settings import (
    RECIPES,
    Recipe,
    Settings,
    change_settings,
    dump_toml,
    flatten,
    known_keys,
    make_settings,
    parse_assignment,
    read_config,
)
from ubend.tasks.user_settings import asks_for_several, read_user_settings


def refused(recipe: Recipe = "modern", config: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(SettingError) as caught:
        make_settings(recipe, config, {key.replace("__", "."): value for key, value in changes.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("wd", "train.weight_decay"),
        ("model.size", "data.size"),
        ("trian.epochs", "train.epochs"),
        ("train.epoch", "train.epochs"),
        ("train.batch_size", "train.batch"),
        ("data.with", "model.width"),
        ("augment.rotation", "augment.rotation_deg"),
        ("devise", "device"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, meant: str) -> None:
    with raises(SettingError, key=key, named=[f"{meant}?"]):
        make_settings(changes={key: 1})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.growth", "model.upsampling"),
        ("data.window", "data.crop"),
        ("data.epoch_windows", "data.crops_per_epoch"),
        ("train.average_decay", "train.ema_decay"),
    ],
)
def test_a_renamed_key_names_the_new_one(key: str, name: str) -> None:
    with raises(SettingError, key=key, named=[name]):
        make_settings(changes={key: 1})
    assert name in known_keys()


def test_unknown_key_stays_in_its_section() -> None:
    assert "did you mean augment.kind?" in refused(**{"augment.kint": "none"})
    assert "did you mean model.kind?" in refused(**{"model.kint": "paper"})


def test_unknown_key_without_a_neighbour() -> None:
    assert "docs/settings.md" in refused(xyzzy=1)
    assert "train.qqqq" in refused(config={"train": {"qqqq": {"deeper": 1}}})


def shortened(word: str) -> set[str]:
    """The word, and the word without one of its letters; words that are a letter apart share one of these."""
    return {word} | {word[:place] + word[place + 1 :] for place in range(len(word))}


@pytest.mark.parametrize("known", known_keys())
@examples(max_examples=5)
@given(place=st.integers(0, 30), letter=st.sampled_from("aeiot"))
def test_one_wrong_letter_is_told(known: str, place: int, letter: str) -> None:
    section, dot, leaf = known.rpartition(".")
    if len(leaf) < 5:
        return
    wrong = section + dot + leaf[: place % len(leaf)] + letter + leaf[place % len(leaf) + 1 :]
    if wrong == known or any(shortened(wrong) & shortened(other) for other in known_keys() if other != known):
        return
    with raises(SettingError, key=wrong, named=[known]):
        make_settings(changes={wrong: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 0),
        ("train.epochs", 2.5),
        ("train.epochs", "a\nb"),
        ("train.learning_rate", -1),
        ("train.learning_rate", float("nan")),
        ("train.weight_decay", float("inf")),
        ("train.optimizer", "rmsprop"),
        ("train.seed", 2**63),
        ("data.size", 7),
        ("data.channels", 17),
        ("data.val_share", 0.5),
        ("data.classes", [1, 2]),
        ("augment.rotation_deg", 181),
        ("model.depth", 9),
    ],
)
def test_wrong_value(key: str, value: Any) -> None:
    says = refused(config=None, **{key: value})
    assert says.startswith(key)
    if key != "data.classes":
        assert f"(got {value!r})" in says


def test_contradictions() -> None:
    assert "model.skips has 2 entries for model.depth 4" in refused(model__skips=[True, False])
    assert "data.crop" in refused(data__crop=64, data__resize="squash")
    assert "data.crop" in refused("tutorial", data__crop=64)
    assert "must be set together" in refused(data__mean=[0.5])
    assert "must be set together" in refused(data__mean=[0.5, 0.5, 0.5], data__std=[0.2])


def test_several_wrong_values_are_told_together() -> None:
    says = refused(train__epochs=0, data__size=1)
    assert "train.epochs" in says
    assert "data.size" in says


@pytest.mark.parametrize("recipe", ["best", ["modern"], {"a": 1}.keys(), 3])
def test_unknown_recipe(recipe: Any) -> None:
    with raises(SettingError, key="recipe", named=["modern, tutorial"]):
        make_settings(changes={"recipe": recipe})


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_settings_come_back(recipe: Recipe) -> None:
    settings = make_settings(recipe)
    assert settings.recipe == recipe
    assert make_settings(config=tomllib.loads(dump_toml(settings))) == settings
    for key, value in flatten(RECIPES[recipe]):
        section, _dot, leaf = key.rpartition(".")
        assert getattr(getattr(settings, section), leaf) == value


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.fixed_dictionaries(
        {
            "train.seed": st.integers(0, 2**63 - 1),
            "train.learning_rate": st.floats(1e-300, 1e300),
            "train.compile": st.booleans() | st.none(),
            "train.patience": st.none() | st.integers(1, 10**9),
            "data.split": NAMES,
            "data.classes": st.lists(NAMES, max_size=4).map(tuple),
            "data.mean": st.tuples(*[st.floats(-1e9, 1e9)] * 3),
            "data.std": st.tuples(*[st.floats(1e-9, 1e9)] * 3),
            "model.skips": st.lists(st.booleans(), min_size=4, max_size=4).map(tuple) | st.none(),
            "augment.kind": st.sampled_from(["none", "frozen", "warp"]),
            "device": NAMES | st.none(),
        }
    ),
    st.sampled_from(list(RECIPES)),
)
def test_any_saved_settings_come_back(changes: dict[str, Any], recipe: Recipe) -> None:
    if recipe == "paper":
        changes["model.skips"] = None  # there none is cut
    settings = make_settings(recipe, changes=changes)
    text = dump_toml(settings)
    assert make_settings(config=tomllib.loads(text)) == settings
    for key, value in changes.items():
        found: Any = settings
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def test_order_of_strength() -> None:
    assert make_settings("tutorial").train.epochs == 30
    file = {"train": {"epochs": 4, "batch": 5}, "data": {"size": 96}}
    of_file = make_settings("tutorial", file)
    assert (of_file.train.epochs, of_file.train.batch, of_file.data.size) == (4, 5, 96)
    assert of_file.train.optimizer == "adam"  # the recipe's, where the file is silent
    changed = make_settings("tutorial", file, {"train.epochs": 6})
    assert (changed.train.epochs, changed.train.batch) == (6, 5)
    assert make_settings(config={"recipe": "tutorial"}).train.optimizer == "adam"


def test_change_settings() -> None:
    settings = make_settings("tutorial")
    changed = change_settings(settings, {"data.channels": 3, "train.epochs": 2})
    assert changed.data.channels == 3
    assert changed.train.epochs == 2
    assert change_settings(changed, {"data.channels": None, "train.epochs": 30}) == settings
    with raises(SettingError, key="data.channels"):
        change_settings(settings, {"data.channels": 0})


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(Exception, match="frozen"):
        Settings().train.epochs = 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train.epochs=5", ("train.epochs", 5)),
        (" train.epochs = 5 ", ("train.epochs", 5)),
        ("train.learning_rate=1e-3", ("train.learning_rate", 1e-3)),
        ("train.compile=true", ("train.compile", True)),
        ("augment.kind=warp", ("augment.kind", "warp")),
        ('augment.kind="warp"', ("augment.kind", "warp")),
        ("data.split=a=b.csv", ("data.split", "a=b.csv")),
        ("data.mean=[0.5, 0.4, 0.3]", ("data.mean", [0.5, 0.4, 0.3])),
        ("model.skips=[true,false,true,true]", ("model.skips", [True, False, True, True])),
        ("data.split=C:\\x.csv", ("data.split", "C:\\x.csv")),
    ],
)
def test_assignments(text: str, wanted: tuple[str, Any]) -> None:
    assert parse_assignment(text) == wanted
    assert wanted[0] in known_keys()


@pytest.mark.parametrize("text", ["train.epochs", "=5", "", " =5"])
def test_assignments_that_are_none(text: str) -> None:
    with raises(SettingError, key="--set"):
        parse_assignment(text)


def test_unreadable_config(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = = 1")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("bad.toml", "bytes.toml", "absent.toml"):
        with raises(SettingError, path=tmp_path / name) as caught:
            read_config(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "good.toml").write_text("[train]\nepochs = 3\n", encoding="utf-8")
    assert make_settings(config=read_config(tmp_path / "good.toml")).train.epochs == 3


@pytest.mark.parametrize("name", ["data.toml", "settings.conf"])
def test_a_config_with_any_suffix_asks_for_several_trainings(name: str, tmp_path: Path) -> None:
    """As `read_user_settings` reads it."""
    (tmp_path / name).write_text("[data]\nfolds = 3\n", encoding="utf-8")
    assert asks_for_several(tmp_path, tmp_path / name) == "data.folds"
    assert asks_for_several(tmp_path, None) is None


def test_a_setting_from_a_file_is_not_called_by_a_flag(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[data]\ncrop = 7\n", encoding="utf-8")
    for flags, name in (({"patches": True}, "data.crop"), ({"patches": True, "size": 7}, "--size")):
        with raises(SettingError, key="data.crop") as caught:
            read_user_settings(tmp_path, config=tmp_path / "c.toml", flags=flags)
        assert name in str(caught.value)
