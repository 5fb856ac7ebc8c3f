"""One line per error, with the nearest right word of the class at hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt

from safe_rlhf_v.training.parser_errors import ShortErrors, nearest


class Wheel:
    """A wheel.

    Args:
        spokes: How many.
        rim: Of what.
    """

    def __init__(self, spokes: int = 32, rim: Literal["steel", "wood"] = "steel") -> None:
        self.spokes, self.rim = spokes, rim


class SpareWheel(Wheel):
    """Another."""


@dataclass
class Paint:
    """A paint.

    Args:
        colour: Its colour.
    """

    colour: str = "red"


class Wagon:
    """A wagon.

    Args:
        front: Makes the front wheel.
        rear: The rear wheel.
        paint: Its paint.
        load: Its load.
    """

    def __init__(
        self,
        front: Callable[[], Wheel],
        rear: Wheel | None = None,
        paint: Paint | None = None,
        load: float | None = None,
    ) -> None: ...


class Parser(ShortErrors, ArgumentParser):
    """As the commands have it."""


def build_parser() -> Parser:
    parser = Parser(exit_on_error=True, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=NonNegativeInt, default=0)
    parser.add_argument("--paint", type=Paint, default=Paint())
    parser.add_subclass_arguments(Wagon, "wagon", default={"class_path": "Wagon", "init_args": {"front": "Wheel"}})
    return parser


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--sede=3"], "unknown option --sede; did you mean --seed?"),
        (["--sede", "3"], "unknown option --sede; did you mean --seed?"),
        (["--zzz=3"], "unknown option --zzz; --help lists them"),
        (["--paint.color=3"], "unknown option --paint.color; did you mean --paint.colour?"),
        (["--wagn.load=3"], "unknown option --wagn.load; did you mean --wagon.load?"),
        (["extra"], "'extra' belongs to no option; --help lists them"),
        (["--wagon.laod=3"], "wagon: unknown option 'laod' of Wagon; did you mean load?"),
        (["--wagon.spokes=3"], "wagon: unknown option 'spokes' of Wagon; --help lists them"),  # of another class
        (["--wagon.front.spoke=3"], "wagon.front: unknown option 'spoke' of Wheel; did you mean spokes?"),
        (["--wagon.rear=SpareWheel", "--wagon.rear.rimm=wood"], "wagon.rear: unknown option 'rimm' of SpareWheel; did you mean rim?"),
        (["--wagon.paint.color=red"], "wagon.paint: unknown option 'color' of Paint; did you mean colour?"),
        (["--wagon.rear=SpareWeel"], "wagon.rear: unknown class 'SpareWeel'; did you mean SpareWheel?"),
        (["--wagon.front=SpareWeel"], "wagon.front: unknown class 'SpareWeel'; did you mean SpareWheel?"),
        (["--wagon=Wagn"], "wagon: unknown class 'Wagn'; did you mean Wagon?"),
        (["--wagon=Zzz"], "wagon: expected class path, not 'Zzz'"),
        (["--wagon.rear=collections.OrderedDct"], "wagon.rear: collections has no OrderedDct; did you mean OrderedDict?"),
        (["--wagon.rear=collection.OrderedDict"], "wagon.rear: unknown module 'collection'; did you mean collections?"),
        (["--wagon.rear=collections.OrderedDict"], "wagon.rear: 'collections.OrderedDict' is no subclass of Wheel"),
        (["--wagon.rear=safe_rlhf_v.recods.Record"], "wagon.rear: safe_rlhf_v has no recods; did you mean records?"),
        (["--wagon.rear=safe_rlhf_v.guard.Record"], "wagon.rear: safe_rlhf_v.guard has no Record; did you mean safe_rlhf_v.records.Record?"),
        (["--wagon.rear=Wheel", "--wagon.rear.rim=iron"], "wagon.rear.rim: expected one of ['steel', 'wood'], not 'iron'"),
        (["--wagon.rear=Wheel", "--wagon.rear.spokes=x"], "wagon.rear.spokes: expected int, not 'x'"),
        (["--wagon.load=heavy"], "wagon.load: expected float, not 'heavy'"),
        (["--seed=-1"], "seed: must be >=0, not -1"),
        (["--seed=x"], "seed: 'x' is no whole number"),
        (["--config=typo.yaml"], "unknown option 'sede'; did you mean seed?"),
        (["--config=deep.yaml"], "wagon.front: unknown option 'spoke' of Wheel; did you mean spokes?"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_the_nearest_word(
    args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import safe_rlhf_v.guard
    import safe_rlhf_v.records

    assert safe_rlhf_v.guard and safe_rlhf_v.records  # advice looks into the rooms that are loaded
    monkeypatch.chdir(tmp_path)
    Path("typo.yaml").write_text("sede: 3\n")
    Path("deep.yaml").write_text("wagon:\n  init_args:\n    front: {class_path: Wheel, init_args: {spoke: 3}}\n")
    with pytest.raises(SystemExit) as exit:
        build_parser().parse_args(["--name=n", *args])
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([])
    assert capsys.readouterr().err == "error: missing: --name; --help tells what they are\n"


def test_the_nearest_is_never_the_word_itself() -> None:
    assert nearest("lr", ["lr", "weight_decay"]) is None
    assert nearest("trainr.max_steps", ["trainer.max_steps", "model"]) == "trainer.max_steps"
    assert nearest("modle.anything.at_all", ["model.x", "data.x"]) == "model.anything.at_all"
    assert nearest("zzz", ["model", "data"]) is None
