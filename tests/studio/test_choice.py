"""What is chosen: its checks, the place of the token, and the command that repeats it."""

import shlex

import pytest

import adjointdpm as adp
from adjointdpm.cli.main import app
from adjointdpm.cli.parse_sampler import SOLVERS, adjoint_of, check_steps
from adjointdpm.studio.choice import (
    ADJOINTS,
    LEARNING_RATES,
    VARIABLES,
    colour_metric,
    number,
    solver_for,
    whole,
    with_token,
)
from tests.tiny.studios import choice


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", "a <effect> red apple"),
        ("An owl", "An <effect> owl"),
        ("the <effect> owl", "the <effect> owl"),
        ("ant", "<effect> ant"),
        ("a <effect>s owl", "a <effect> <effect>s owl"),
        ("", "<effect> "),
    ],
)
def test_the_token_stands_after_the_article_unless_it_is_there(prompt, expected):
    assert with_token(prompt) == expected


@pytest.mark.parametrize("text", ["#336699", "rgb(51, 102, 153)", "rgba(51.0, 102, 153, 0.5)"])
def test_a_color_is_read_as_browsers_write_it(text):
    assert colour_metric(text) == "background:0.2,0.4,0.6"


@pytest.mark.parametrize(
    "text", ["", "blue", "#12", "rgb(1,2)", "rgb(300,0,0)", "rgb(a,b,c)", "rgb(nan,0,0)"]
)
def test_another_text_is_no_color(text):
    with pytest.raises(adp.InputError, match="#rrggbb"):
        colour_metric(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "a" * 401}, "401 characters"),
        ({"prompt": "\ud800"}, "not a text"),
        ({"other_prompt": "a" * 401}, "other prompt has 401"),
        ({"metric": ()}, "no metric"),
        ({"metric": ("label:\udfff",)}, "not a text"),
        ({"steps": 0}, "steps"),
        ({"steps": 201}, "steps"),
        ({"sampling_steps": 101}, "sampling_steps"),
        ({"variable": "weights"}, "variable"),
        ({"adjoint": "truncated"}, "adjoint"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_done_is_refused(wrong, message):
    with pytest.raises(adp.InputError, match=message):
        choice(**wrong)


@pytest.mark.parametrize("solver", ["dpm++", "euler", "heun", "coupled:rk4"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_adjoint_has_a_solver_that_it_can_differentiate(adjoint, solver):
    found = solver_for(adjoint, solver)
    assert found in SOLVERS
    check_steps(found, adjoint_of(adjoint))
    if adjoint != "reversible":
        assert found == solver


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_command_is_one_that_the_command_line_reads(variable, capsys):
    """Whatever is typed stays one argument."""
    assert variable in LEARNING_RATES
    given = choice(
        prompt="--a 'cat'; $HOME", other_prompt='a "car"', variable=variable, metric=("label:red apple", "0.3*content"),
        learning_rate=0.05, seed=7, adjoint="reversible",
    )  # fmt: skip
    program, *arguments = shlex.split(given.command(["--guidance_scale=3.0"], "heun"))
    assert program == "adjointdpm"
    app.main([*arguments, "--print_config"], standalone_mode=False)
    printed = capsys.readouterr().out
    for line in (
        "seed: 7",
        "solver: coupled:heun",
        "guidance_scale: 3.0",
        "learning_rate: 0.05",
        "- 0.3*content",
    ):
        assert line in printed
    assert "a 'cat'; $HOME" in printed.replace("''", "'")
    if variable != "noise":
        assert 'a "car"' in printed.replace("<effect> ", "")


def test_numbers_of_the_page_are_checked():
    assert number("rate", 1) == 1.0
    assert whole("seed", 3.0) == 3
    for value in (None, "3", True, float("nan"), float("inf")):
        with pytest.raises(adp.InputError, match="rate must be a number"):
            number("rate", value)
    with pytest.raises(adp.InputError, match="seed must be a whole number"):
        whole("seed", 1.5)
