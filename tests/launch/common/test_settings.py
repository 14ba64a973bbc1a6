"""What is derived from the config classes: texts, usual settings and the schema of every command that takes recipes."""

import math
from dataclasses import MISSING
from typing import Any, Literal

import jsonschema
import pytest
import yaml

from launch.common.commands import ALL
from launch.common.recipe_files import RECIPES, names
from launch.common.settings import Setting, options, schema, sections_of, settings_of
from launch.schema import config_of
from launch.training.config import FinetuneConfig, PretrainConfig
from mae3d.io.bounds import FINITE

COMMANDS = [name for name, command in ALL.items() if command.config]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_a_text_and_the_usual_ones_exist(name: str) -> None:
    kind = config_of(name)
    settings = {setting.name: setting for setting in settings_of(kind)}
    assert [setting for setting in settings if not settings[setting].help] == []
    assert [section for section, text in sections_of(kind).items() if not text] == []
    assert set(kind.USUAL) <= settings.keys()
    assert 8 <= len(kind.USUAL) <= 12
    assert {f"--{setting}" for setting in settings} < {option.name for option in options(kind)}


def test_defaults_are_those_that_a_start_has() -> None:
    settings = {setting.name: setting.default for setting in settings_of(FinetuneConfig)}
    config = FinetuneConfig()
    for name, default in settings.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        assert value == default, name
    evaluate = {setting.name: setting.default for setting in settings_of(config_of("evaluate"))}
    assert [name for name, default in evaluate.items() if default is MISSING] == ["run", "out"]


@pytest.mark.parametrize(
    ("kind", "value", "choices"),
    [
        (bool, "true|false", ("true", "false")),
        (bool | None, "true|false", ("true", "false")),
        (Literal["a", "b"], "a|b", ("a", "b")),
        (Literal["a", "b"] | str, "NAME", ("a", "b")),
        (Literal["a", "b"] | None, "a|b", ("a", "b")),
        (float | Literal["auto"], "NUMBER", ("auto",)),
        (Literal[tuple(f"choice-{number}" for number in range(9))], "NAME",
         tuple(f"choice-{number}" for number in range(9))),
        (int | tuple[int, int], "VALUE ...", ()),
        (dict[str, Any] | str, "VALUE", ()),
        (int | None, "N", ()),
    ],
)  # fmt: skip
def test_the_help_shows_the_values_of_a_type(kind: Any, value: str, choices: tuple[str, ...]) -> None:
    option = Setting("a.b", kind, None, "text", FINITE).option()
    assert (option.name, option.value, option.choices, option.group) == ("--a.b", value, choices, "a")


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_valid_by_the_schema(name: str) -> None:
    kind = FinetuneConfig if name.startswith("finetune") else PretrainConfig
    described = schema(kind, title="")
    jsonschema.Draft7Validator.check_schema(described)
    jsonschema.validate(yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")), described)


@pytest.mark.parametrize(
    ("recipe", "is_valid"),
    [
        ({"data": {"shards": ["a", "b"], "weights": "2 1", "area": [0.1, 1]}, "optim": {"lr": None}}, True),
        ({"train": {"deepspeed": {"anything": 1}}, "model": {"mean": [0.1, 0.2, 0.3]}, "extend": True}, True),
        ({"data": None}, True),
        ({"data": {"shrads": "a"}}, False),
        ({"data": {"area": [0.1, 0.2, 0.3]}}, False),
        ({"data": {"flip": 1.5}}, False),
        ({"optim": {"eps": 0}}, False),
        ({"model": {"mask_ratio": 1}}, False),
        ({"model": {"mask_type": "tubes"}}, False),
        ({"model": {"mask_type": "my_masks:checkerboard(size=2)"}}, True),
        ({"train": {"zero_stage": 4}}, False),
        ({"extend": "yes"}, False),
    ],
)
def test_the_schema_refuses_what_a_start_refuses(recipe: dict[str, Any], is_valid: bool) -> None:
    described = schema(PretrainConfig, title="")
    assert jsonschema.Draft7Validator(described).is_valid(recipe) is is_valid
    flip = described["properties"]["data"]["properties"]["flip"]
    assert flip["description"].startswith("probability of a horizontal flip")
    assert math.isclose(flip["default"], 0.5)
