"""What a budget may say, and what it answers to everything else."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automc.budget import Budget, parse_bytes
from automc.errors import BudgetError
from automc.registry import COSTS

DENSE = {"macs": 1e9, "params": 2e6, "size": 8e6, "bops": 1e12, "latency": 0.04}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("macs<=50%", {"macs": 5e8}),
        (" macs <= 50 % ", {"macs": 5e8}),
        ("MACS<=0.25G", {"macs": 2.5e8}),
        ("params<=0.4M, size<=1MB", {"params": 4e5, "size": 1e6}),
        ("size<=1MiB", {"size": 2**20}),
        ("size<=512kib,macs<=100%", {"size": 2**19, "macs": 1e9}),
        ("size<=1.5e6", {"size": 1.5e6}),
        ("bops<=5G", {"bops": 5e9}),
        ("latency<=2ms", {"latency": 0.002}),
        ("latency<=2s", {"latency": 2.0}),
        ("latency<=2", {"latency": 2.0}),
        ("LATENCY <= 500 US", {"latency": 0.0005}),
        ("latency<=50%", {"latency": 0.02}),
        ("throughput>=500", {"latency": 0.002}),
        ("throughput>=0.5K", {"latency": 0.002}),
        (" throughput >= 200 % ", {"latency": 0.02}),
        ("throughput>=100%", {"latency": 0.04}),
        ("size<=1MB,latency<=10ms", {"size": 1e6, "latency": 0.01}),
    ],
)
def test_limits_are_absolute_in_the_end(text: str, limits: dict[str, float]) -> None:
    assert Budget.parse(text).resolve(DENSE) == limits


def test_throughput_counts_samples_and_latency_batches() -> None:
    dense = {"latency": 0.04}
    assert Budget.parse("throughput>=500").resolve(dense, 8) == {"latency": 0.016}
    assert Budget.parse("throughput>=200%").resolve(dense, 8) == {"latency": 0.02}
    assert Budget.parse("latency<=5ms").resolve(dense, 8) == {"latency": 0.005}
    assert Budget.parse("latency<=50%").resolve(dense, 8) == {"latency": 0.02}


def test_a_limit_on_throughput_is_one_on_latency() -> None:
    assert Budget.parse("macs<=50%,throughput>=2K").metrics == ("macs", "latency")


@pytest.mark.parametrize(("unit", "power"), [("ms", "e-3"), ("us", "e-6")])
def test_an_amount_of_time_is_exact(unit: str, power: str) -> None:
    for tenths in range(1, 500):
        amount = f"{tenths / 10:g}"
        assert Budget.parse(f"latency<={amount}{unit}") == Budget.parse(f"latency<={amount}{power}"), amount


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must read metric<=amount"),
        ("macs", "must read metric<=amount"),
        ("macs<50%", "must read metric<=amount"),
        ("macs<=half", "must read metric<=amount"),
        ("macs<=-5%", "must read metric<=amount"),
        ("macs<=0", "must be above zero"),
        ("macs<=1e999", "must be above zero and finite"),
        ("macs<=120%", "at most 100"),
        ("macs<=5MB", "unit of macs"),
        ("speed<=5", "'speed' is none of them"),
        ("macs<=5%,macs<=6%", "limited once"),
        ("macs<=5%,", "must read metric<=amount"),
        ("latency>=2ms", "must read latency<=amount; 'latency>=2ms' does not: turn it round"),
        ("macs>=50%", "must read macs<=amount"),
        ("throughput<=500", "must read throughput>=amount; 'throughput<=500' does not: turn it round"),
        ("throughput>=99%", "at least 100%"),
        ("throughput>=0", "must be above zero"),
        ("latency<=0ms", "must be above zero"),
        ("latency<=150%", "at most 100"),
        ("latency<=2m", "unit of latency must be %, s, ms, us or none; 'm' is none"),
        ("latency<=2KB", "unit of latency"),
        ("throughput>=5ms", "unit of throughput must be %, k, m, g or none"),
        ("macs<=2ms", "unit of macs"),
        ("latency<=2ms,throughput>=500", "limited once"),
        ("latency<=2ms,latency<=50%", "limited once"),
        ("latency=2ms", "must read metric<=amount"),
        ("delay<=2ms", "limits .*latency, throughput; 'delay' is none of them"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        Budget.parse(text)


@given(st.dictionaries(st.sampled_from(list(COSTS)), st.floats(1e-3, 100), min_size=1))
def test_what_is_printed_reads_back(shares: dict[str, float]) -> None:
    budget = Budget.parse(",".join(f"{name}<={share}%" for name, share in shares.items()))
    assert Budget.parse(str(budget)) == budget


@given(st.floats(1e-3, 1e9), st.sampled_from(["", "s", "ms", "us", "%"]))
def test_a_limit_on_time_that_is_printed_reads_back(amount: float, unit: str) -> None:
    share = unit == "%"
    texts = [f"latency<={min(amount, 100) if share else amount}{unit}", f"throughput>={max(amount, 100)}{'%' * share}"]
    for budget in map(Budget.parse, texts):
        assert Budget.parse(str(budget)) == budget


@given(st.floats(1.0, 1e15), st.sampled_from(["", "K", "M", "G"]))
def test_an_amount_that_is_printed_reads_back(amount: float, unit: str) -> None:
    budget = Budget.parse(f"bops<={amount}{unit}")
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("macs<=50%", "macs<=50%"),
        ("params<=0.4M, size<=1MB", "params<=400000,size<=1e+06"),
        ("params<=4.1M", "params<=4.1e+06"),
        ("macs<=33.3%", "macs<=33.3%"),
        ("macs<=0.25G,size<=512KiB", "macs<=2.5e+08,size<=524288"),
        ("size<=1MiB", "size<=1048576"),  # these were cut to six digits
        ("macs<=12345678", "macs<=12345678"),
        ("macs<=33.3333333%", "macs<=33.3333333%"),
        ("size<=1048576.5", "size<=1048576.5"),
        ("latency<=2ms", "latency<=0.002"),
        ("latency<=500us,size<=10%", "latency<=0.0005,size<=10%"),
        ("latency<=4.1ms", "latency<=0.0041"),
        ("latency<=0.3ms", "latency<=0.0003"),
        ("throughput>=150%", "throughput>=150%"),
        ("throughput>=1.5k", "throughput>=1500"),
    ],
)
def test_a_budget_is_printed_in_full_and_short_where_that_is_all(text: str, printed: str) -> None:
    assert str(Budget.parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "count"),
    [("1GiB", 2**30), ("500MB", 5 * 10**8), (" 2 kb ", 2000), ("1000", 1000), ("0", 0), ("1.5k", 1500)],
)
def test_an_amount_of_memory(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1 parsec", "1e3e"])
def test_no_amount_of_memory(text: str) -> None:
    with pytest.raises(BudgetError, match="500MB or 1GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("percent", [58, 29, 57, 0.8, 1.6, 3.1])
def test_a_percentage_of_the_dense_cost_is_exact(percent: float) -> None:
    dense = 12_500_000.0
    limit = Budget.parse(f"macs<={percent}%").resolve({"macs": dense})["macs"]
    assert limit == float(Fraction(str(percent)) * Fraction(dense) / 100)


def test_an_amount_of_memory_is_exact() -> None:
    assert parse_bytes("4.1MB") == 4_100_000 and parse_bytes("0.29GB") == 290_000_000
