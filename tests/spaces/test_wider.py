"""What a refused budget says would help does help, and where nothing is named nothing would."""

import re

import pytest
import torch
from torch import nn

import automc
from automc.budget import Budget
from automc.errors import BudgetError, TaskError
from automc.projection import Costing, Projector
from automc.registry import SPACES
from automc.setting import prepare
from automc.space import SearchSpace
from tests.spaces import models

NET = models.facts_of("option_a")


def opened(name: str) -> SearchSpace:
    return SearchSpace(NET, SPACES.load(name)(NET))


def refusal(name: str, budget: str) -> str:
    with pytest.raises(BudgetError) as caught:
        Projector(opened(name), Budget.parse(budget))
    return str(caught.value)


def reaches(name: str, budget: str) -> bool:
    try:
        Projector(opened(name), Budget.parse(budget))
    except BudgetError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "budget", "first"),
    [
        ("channels", "macs<=5%", "channels-all"),
        ("criteria", "params<=5%", "channels-all"),
        ("channels", "params<=10%,bops<=0.5%", "joint"),
        ("weight-bits", "bops<=2%", "bits"),
        ("weight-bits", "macs<=50%", "channels-bits"),
    ],
)
def test_the_spaces_named_reach_the_budget_and_hold_what_was_chosen(name: str, budget: str, first: str) -> None:
    said = re.search(r": raise the limit, or choose a space that reaches it: (.*)\.$", refusal(name, budget))
    assert said is not None
    named = said[1].split(" or ")
    assert named[0] == first and all(reaches(n, budget) for n in named)


def test_where_no_space_is_named_none_reaches_the_budget() -> None:
    said = re.search(r"; no registered space reaches it, (\S+) comes nearest", refusal("bits", "size<=100B"))
    least = {name: Costing(opened(name)).of(opened(name).smallest)["size"] for name in SPACES}
    assert said is not None and least[said[1]] == min(least.values()) > 100
    assert refusal("joint", "size<=100B").endswith("raise the limit; no registered space does better.")
    assert refusal("bits", "macs<=50%,size<=100B").endswith("no registered space meets all of them.")


def test_what_binds_a_size_says_how_much_of_it_is_the_header() -> None:
    said = refusal("joint", "size<=100B")
    costing, smallest = Costing(opened("joint")), opened("joint").smallest
    share = 100 * costing.table.header_bytes / costing.of(smallest)["size"]
    assert f"bound by the file's header ({share:.0f}%), " in said
    assert "header" not in refusal("channels", "macs<=1%")


def test_a_plugin_that_raises_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACES.table, "broken", "nowhere:at_all")
    assert "channels-all" in refusal("channels", "macs<=5%")


def test_a_space_that_opens_nothing_names_one_that_does() -> None:
    def said(model: nn.Module) -> str:
        x = torch.randn(8, 4)
        with pytest.raises(TaskError) as caught:
            prepare(automc.Task(model, [x], [(x, x)]), Budget.parse("size<=90%"), "channels")
        return str(caught.value)

    named = re.search(r"channels opens nothing in 'task': try --space (\S+)", said(nn.Linear(4, 4)))
    assert named is not None and SPACES.load(named[1])(automc.inspect(linear())) != ()
    assert said(nn.Sigmoid()).endswith("no registered space does, see what `automc inspect` says of the model.")


def linear() -> automc.Task:
    x = torch.randn(8, 4)
    return automc.Task(nn.Linear(4, 4), [x], [(x, x)])
