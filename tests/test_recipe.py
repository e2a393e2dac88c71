"""Recipes: what a file and the command line may say, and what is said back."""

from __future__ import annotations

from pathlib import Path

import pytest

from vargface.errors import InputError
from vargface.recipe import load_recipe, network_symbol
from vargface.recipes import base

SHIPPED = sorted(path.stem for path in Path(base.__file__).parent.glob("[!_]*.py"))


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file of `text` and returns its path."""

    def make(text: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return make


def refused(recipe, *overrides) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(write):
    recipe = load_recipe(write("recipe = dict(lr=0.5, momentum=0.8)"), ["lr=0.25"])
    assert (recipe.lr, recipe.momentum, recipe.wd) == (0.25, 0.8, base.recipe.wd)
    assert list(recipe) == list(base.recipe)


def test_a_recipe_does_not_change_the_defaults(write):
    load_recipe(write("recipe = dict(lr=0.5)"), ["lr_steps=1,2"]).lr_steps.append(3)
    assert base.recipe.lr == 0.1
    assert base.recipe.lr_steps == [100_000, 160_000, 220_000]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_of_the_package_loads_by_name_and_by_path_and_has_a_network(name, root):
    recipe = load_recipe(name)
    assert recipe == load_recipe(root / "recipes" / f"{name}.py")
    _, shapes, _ = network_symbol(recipe).infer_shape(data=(1, 3, 112, 112))
    assert shapes == [(1, recipe.embedding_size)]


@pytest.mark.parametrize(
    ("key", "nearest"), [("learning_rate", None), ("lr_step", "lr_steps"), ("batchsize", "batch_size"), ("LR", None)]
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(write, key, nearest):
    hint = f"did you mean {nearest!r}?" if nearest else "recipes/base.py lists all"
    assert refused("base", f"{key}=1") == f"argument '{key}=1': unknown key {key!r} - {hint}"
    path = write(f"recipe = dict({key}=1)")
    assert refused(path) == f"{path}: unknown key {key!r} - {hint}"


@pytest.mark.parametrize(
    ("argument", "due"),
    [
        ("steps=many", "a whole number, e.g. 240000, not 'many'"),
        ("steps=1e3", "a whole number, e.g. 240000, not 1000.0"),
        ("steps=True", "a whole number, e.g. 240000, not True"),
        ("lr=fast", "a number, e.g. 0.1, not 'fast'"),
        ("lr=", "a number, e.g. 0.1, not ''"),
        ("lr=[0.1]", "a number, e.g. 0.1, not [0.1]"),
        ("mirror=1", "True or False, e.g. True, not 1"),
        ("mirror=yes", "True or False, e.g. True, not 'Yes'"),
        ("lr_steps=10,x", "a list, e.g. [100000, 160000, 220000], not '[10,x]'"),
        ("lr_steps=1.5,2", "a list of whole numbers, e.g. [100000, 160000, 220000], not [1.5, 2]"),
        ("packs=[1]", "a list of text, e.g. ['lfw.bin'], not [1]"),
    ],
)
def test_a_value_of_another_type_is_refused(argument, due):
    key = argument.partition("=")[0]
    assert refused("base", argument) == f"argument {argument!r}: {key} must be {due}"


@pytest.mark.parametrize("value", ["'0.1'", "None", "True", "[0.1]"])
def test_a_wrong_type_in_a_file_names_the_file(write, value):
    path = write(f"recipe = dict(lr={value})")
    assert refused(path) == f"{path}: lr must be a number, e.g. 0.1, not {value}"


def test_a_whole_number_is_a_number(write):
    for recipe in (load_recipe("base", ["lr=1"]), load_recipe(write("recipe = dict(lr=1)"))):
        assert recipe.lr == 1.0
        assert type(recipe.lr) is float


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr=5e-4", 0.0005),
        ("lr=-1", -1.0),
        ("steps=1_000", 1000),
        ("mirror=false", False),
        ("mirror=TRUE", True),
        ("lr_steps=10,20", [10, 20]),
        ("lr_steps=10", [10]),
        ("lr_steps=[10, 20]", [10, 20]),
        ("lr_steps=", []),
        ("margin_ramp=-1,5", [-1, 5]),
        ("packs=a/lfw.bin,b.bin", ["a/lfw.bin", "b.bin"]),
        ("packs=['a.bin']", ["a.bin"]),
        ("packs=1k/lfw.bin", ["1k/lfw.bin"]),
        ("packs=", []),
        ("out=12", "12"),
        ("teacher=a=b/model,3", "a=b/model,3"),
    ],
)
def test_values_on_the_command_line(argument, value):
    found = load_recipe("base", [argument])[argument.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)


def test_a_tuple_in_a_file_is_a_list(write):
    assert load_recipe(write("recipe = dict(lr_steps=(1, 2))")).lr_steps == [1, 2]


def test_an_argument_without_a_value_is_refused():
    assert refused("base", "lr") == "argument 'lr': must be KEY=VALUE, e.g. lr=0.05"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.py", "recipes"])
def test_a_missing_file_lists_what_there_is(name, tmp_path):
    message = refused(str(tmp_path / name))
    assert message.startswith(f"recipe '{tmp_path / name}': no such file - give a path, or one of ")
    names = message.partition("one of ")[2].split(", ")
    assert {*SHIPPED, "study/real_mini"} - {"base"} <= set(names)
    assert not {"base", "study/_claims"} & set(names)  # what recipes are made of


@pytest.mark.parametrize("name", ["other/demo_student", "../recipes/demo_student", "study", "study/__init__"])
def test_only_names_of_recipes_are_names(name):
    assert refused(name).startswith(f"recipe '{name}': no such file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipe = dict(lr=0.5", "SyntaxError"),
        ("import nothing_of_that_name\nrecipe = {}", "ModuleNotFoundError"),
        ("lr = 0.5", "has no `recipe = EasyDict(...)`"),
        ("recipe = ['lr', 0.5]", "has no `recipe = EasyDict(...)`"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(write, text, reason):
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_networks_by_their_keys():
    tiny = ["embedding_size=16", "multiplier=0.25"]
    names = network_symbol(load_recipe("base", ["variant=insightface", *tiny])).list_arguments()
    assert not [name for name in names if "_se_" in name]
    names = network_symbol(load_recipe("base", tiny)).list_arguments()
    assert [name for name in names if "_se_" in name]
    shallow = network_symbol(load_recipe("base", ["network=resnet", "num_layers=18", *tiny])).list_arguments()
    deep = network_symbol(load_recipe("base", ["network=resnet", "num_layers=34", *tiny])).list_arguments()
    assert len(deep) > len(shallow)
    with_dropout = network_symbol(load_recipe("base", ["network=resnet", "num_layers=18", *tiny])).get_internals()
    without = network_symbol(
        load_recipe("base", ["network=resnet", "num_layers=18", "output=FC", *tiny])
    ).get_internals()
    assert ["dropout0_output" in found.list_outputs() for found in (with_dropout, without)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["network=vgg"], "network = 'vgg': must be one of vargfacenet, resnet, mobilefacenet"),
        (["variant=ours"], "network = 'vargfacenet': variant 'ours': must be one of authors, insightface"),
        (["multiplier=0.3"], "network = 'vargfacenet': multiplier 0.3: must make"),
        (["network=resnet", "num_layers=19"], "network = 'resnet': num_layers 19: must be one of 18, 34, 50, 100"),
        (["network=mobilefacenet", "variant=y3"], "network = 'mobilefacenet': variant"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        network_symbol(load_recipe("base", arguments))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(0)", r"not a recipe \(SystemExit: 0\)"),
        ("recipe = {5: 6}", "unknown key 5"),
    ],
)
def test_a_file_that_does_something_else_is_refused(tmp_path, text, message):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "odd.py")
