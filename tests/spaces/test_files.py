"""Space files: what they may say, what they open, and one sentence for everything else."""

from pathlib import Path
from typing import Any

import pytest

import automc
from automc.budget import Budget
from automc.errors import AutomcError, SpaceError, TaskError
from automc.graph.facts import ModelFacts
from automc.policy import Policy
from automc.registry import SPACE_FILES, SPACES
from automc.search_spaces.bits import bits
from automc.search_spaces.channels import channels
from automc.search_spaces.files import FileSpace, preset
from automc.search_spaces.options import Bits, Widths
from automc.setting import find_space
from automc.space import Axis, SearchSpace
from tests.spaces import models
from tests.test_api import task

PRESETS = [name for name, target in SPACES.table.items() if ".files:" in target]
NET = models.facts_of("transformer")
RESNET = models.facts_of("option_a")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "mine.yaml") -> FileSpace:
    Path(name).write_text(text, encoding="utf-8")
    found = SPACE_FILES.load(Path(name).suffix)(Path(name))
    assert isinstance(found, FileSpace)
    return found


def opened(text: str, facts: ModelFacts = RESNET) -> tuple[Axis, ...]:
    return SearchSpace(facts, written(text)(facts)).axes


WRONG = [
    ("", "must hold keys and values; mine.yaml is empty: begin with open"),
    ("# nothing", "is empty"),
    ("- channels", "mine.yaml is a list"),
    ("channels", "mine.yaml is a str"),
    ("channels: {}", "must say what is open; mine.yaml does not"),
    ("open: []", "open of a space file must hold something"),
    ("open: channels", "open of a space file must be a list; mine.yaml has 'channels'"),
    ("open: null", "open of a space file must be a list"),
    ("open: [7]", r"open\[0\] of a space file must be a valid string; mine.yaml has 7"),
    ("open: [chanels]", "'chanels' is not: did you mean 'channels'?"),
    ("open: [channels]\nopened: [bits]", "'opened' of mine.yaml is not: did you mean 'open'?"),
    ("open: [channels]\nexept: [conv1]", "did you mean 'except'?"),
    ("open: [channels]\nchanels: {}", "did you mean 'channels'?"),
    ("open: [channels]\nchannels: {least: 0.2}", "'channels.least' of mine.yaml is not: did you mean 'least_keep'?"),
    ("open: [channels]\nchannels: {multiple_of: 8.5}", "channels.multiple_of of a space file must be a valid integer"),
    ("open: [channels]\nchannels: {multiple_of: eight}", "valid integer; mine.yaml has 'eight'"),
    ("open: [channels]\nchannels: {multiple_of: 0}", "greater than or equal to 1; mine.yaml has 0"),
    ("open: [channels]\nchannels: {least_keep: 0}", "greater than 0"),
    ("open: [channels]\nchannels: {coupled: 'yes'}", "channels.coupled of a space file must be a valid boolean"),
    ("open: [channels]\nchannels: [0.2]", "channels of a space file must hold keys; mine.yaml has"),
    ("open: [channels]\nbits: {weights: [4]}", "bits of mine.yaml does not belong to channels: open more"),
    (
        "open: [bits]\nbits: {weights: [9]}",
        r"bits.weights\[0\] of a space file must be 2, .* or 32; mine.yaml has 9",
    ),
    ("open: [bits]\nbits: {weights: [true]}", "must be 2, 3, .* or 32; mine.yaml has True"),
    ("open: [bits]\nbits: {weights: 4}", "bits.weights of a space file must be a list"),
    ("open: [codebooks]\ncodebooks: [median]", "must be 'uniform' or 'kmeans'; mine.yaml has 'median'"),
    ("open: [criteria]\ncriteria: [obss]", "'obss' is not: did you mean 'obs'?"),
    ("open: [criteria]\ncriteria: []", "criteria of a space file must hold something"),
    ("open: [ranks]\nranks: {method: sdv}", "did you mean 'svd'?"),
    ("open: [ranks]\nranks: {shares: [1.5]}", "less than or equal to 1"),
    ("open: [weights]\nweights: {sparsities: [0.6]}", "weights of mine.yaml: Zeros in N:8 must be a multiple of 1/8"),
    ("open: [bits]\nties: [conv1]", r"ties\[0\] of a space file must be a list"),
    ("open: [bits]\nties: [[]]", "must hold something"),
    ("open: [bits]\nonly: []", "only of a space file must hold something"),
    ("open: [bits]\n1: 2", "'1' of mine.yaml is not"),
    ("open: [bits", "must be YAML; mine.yaml is not in line 1"),
    ("open: [bits]\n\tonly: [x]", "must be YAML; mine.yaml is not in line 2"),
    ("open: [bits]\nopen: [channels]", "the key 'open' stands twice"),
    ("open: [channels]\nchannels: {coupled: true, coupled: false}", "the key 'coupled' stands twice"),
    ("open: [bits]\n? [a]\n: 1", "unhashable"),
    ("open: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ("open: [\x07]", "a character it may not hold"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=lambda text: repr(text)[:40])
def test_what_is_no_space_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(AutomcError, match=said) as caught:
        written(text)
    message = str(caught.value)
    assert "\n" not in message and message[-1] in ".?" and ": " in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("open: [bits]\nonly: [layer9.*]", "'layer9.*' of mine-.* fits none: did you mean 'layer"),
        ("open: [bits]\nexcept: [conv2]", "'conv2' of mine-.* fits none: did you mean"),
        ("open: [bits]\nties: [[zzz]]", "'zzz' of mine-.* fits none: see `automc inspect`"),
        ("open: [bits]\nties: [[conv1]]", "must join decisions; .'conv1'. fits no two open ones"),
        ("open: [depth]\nties: [[linear, conv1]]", "fits no two open ones"),
        ("open: [channels]\nchannels: {multiple_of: 8}\nties: [[layer1.0.*]]", "must join decisions"),
        (
            "open: [bits]\nbits: {weights: [4]}\nties: [[conv1, layer*]]",
            "values in common; weight_bits of conv1",
        ),
        ("open: [weights, sparsity]", "sparsity of layer 'conv1' is opened twice"),
        ("open: [weight-bits, bits]\nonly: [layer1.*]\nbits: {weights: [4]}", None),
        ("open: [ranks-tucker2, bits]", "factor by svd"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_one_sentence(text: str, said: str | None) -> None:
    if said is None:  # the same decision, opened alike by both
        assert len({a.key for a in opened(text)}) == len(opened(text))
        return
    with pytest.raises(SpaceError, match=said) as caught:
        opened(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.yaml", "must exist; nowhere.yaml does not: give its path"),
        ("amc.yaml", "did you mean the space 'amc'?"),
        ("folder.yaml", "must be readable; folder.yaml is not .*directory"),
        ("latin.yml", "it is no UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(path: str, said: str) -> None:
    Path("folder.yaml").mkdir()
    Path("latin.yml").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(SpaceError, match=said):
        find_space(path, Budget.parse("macs<=50%"))


def test_options_and_sections_reach_what_is_open() -> None:
    text = "open: [channels, bits]\nchannels: {multiple_of: 8, least_keep: 0.25}\nbits: {weights: [4, 8], ends: []}"
    widths, levels = Widths(multiple_of=8, least_keep=0.25), Bits(weights=(4, 8), ends=())
    assert set(opened(text)) == {*channels(RESNET, widths=widths), *bits(RESNET, levels=levels)}
    assert all(isinstance(v, int) for a in opened("open: [bits]\nbits: {weights: [4.0]}") for v in a.values)


def test_a_section_changes_the_defaults_of_the_space_that_is_open() -> None:
    """Of `sparsity` single weights by magnitude, of `weights` patterns and criteria as well."""
    for name, fields in (("sparsity", {"sparsity"}), ("weights", {"sparsity", "pattern", "criterion"})):
        axes = opened(f"open: [{name}]\nweights: {{sparsities: [0.5]}}")
        assert {a.values for a in axes if a.field == "sparsity"} == {(0.5, 0.0)}
        assert {a.field for a in axes} == fields


def test_patterns_are_text_as_they_stand() -> None:
    """YAML 1.1 would read the number 124."""
    text = "open: [weights]\nweights: {sparsities: [0.5], patterns: [2:4, element]}"
    assert {a.values for a in opened(text) if a.field == "pattern"} == {("2:4", "element")}


def test_only_and_except_choose_places_and_shorten_ties() -> None:
    axes = opened("open: [bits]\nonly: ['blocks.1.*']\nexcept: ['*.k_proj', '*.down']", NET)
    decided = {p for a in axes for p in a.places}
    assert decided == {f"blocks.1.{n}" for n in ("q_proj", "v_proj", "out_proj", "gate", "up")}
    assert {a.places for a in axes if a.also} == {
        ("blocks.1.q_proj", "blocks.1.v_proj"),
        ("blocks.1.gate", "blocks.1.up"),
    }
    rest = [a.places for a in opened("open: [bits]\nexcept: ['*.q_proj']", NET) if a.also]
    assert rest[0] == ("blocks.0.k_proj", "blocks.0.v_proj")


def test_ties_join_decisions_of_a_kind_across_groups_layers_and_blocks() -> None:
    axes = opened("open: [depth, channels-all, weight-bits]\nties: [['layer*']]")
    tied = {(a.kind, a.field): a for a in axes if a.also}
    assert tied["block", "keep"].places == ("layer1.0", "layer2.0", "layer3.0")
    inner = [x.name for x in RESNET.layers if x.name.startswith("layer")]
    assert tied["layer", "weight_bits"].places == tuple(inner)
    keep = tied["group", "keep"]
    widths = {RESNET.group(p).units for p in keep.places}
    assert len(widths) > 1
    assert all(round(float(v) * u) == pytest.approx(float(v) * u) for v in keep.values for u in widths)


def test_ties_of_fused_layers_take_the_whole_of_them_along() -> None:
    axes = opened("open: [bits]\nties: [['*.k_proj']]", NET)
    assert {len(a.places) for a in axes if "blocks.0.k_proj" in a.places} == {6}
    everything = opened("open: [bits]\nbits: {ends: [8]}\nties: [['*']]", NET)
    assert [(a.field, len(a.places), a.values) for a in everything] == [
        ("weight_bits", len(NET.layers), (8, 32)),
        ("activation_bits", len(NET.layers), (8, 32)),
    ]


def test_the_name_of_a_file_says_what_it_holds_and_not_how() -> None:
    first = written("open: [channels]\nchannels: {multiple_of: 8, coupled: true}").name
    assert first.startswith("mine-") and len(first) == len("mine-") + 8
    assert written("# a word\nchannels: {coupled: true, multiple_of: 8}\nopen:\n - channels\n").name == first
    assert written("open: [channels]\nchannels: {multiple_of: 4, coupled: true}").name != first


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_name_and_a_comment_and_opens_something(name: str) -> None:
    found = preset(name)
    assert found.name == name and SPACES.load(name).name == name
    facts = models.wide()
    assert SearchSpace(facts, found(facts)).axes
    text = (Path(__file__).parents[2] / "search_spaces" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")


def test_every_file_of_the_folder_is_a_registered_preset() -> None:
    folder = Path(__file__).parents[2] / "search_spaces" / "presets"
    assert sorted(p.stem for p in folder.iterdir()) == sorted(PRESETS)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        SPACES.__class__("x", {"nothing": "automc.search_spaces.files:nothing"}).load("nothing")


def test_the_readmes_file_is_one() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = written(text.partition("```yaml\n")[2].partition("```")[0])
    assert found.document.open == ("channels", "bits") and found.document.excluded == ("*.shortcut",)


def test_presets_open_what_they_say() -> None:
    facts = models.wide()
    amc = preset("amc")(facts)
    assert {(a.kind, a.field) for a in amc} == {("group", "keep")}
    units = {a.place: facts.group(a.place).units for a in amc}
    assert all(round(float(v) * units[a.place]) % 8 == 0 and float(v) >= 0.2 for a in amc for v in a.values)
    haq = preset("haq")(facts)
    assert haq == bits(facts) and haq[0].values == haq[-1].values == (8, 32)
    assert {a.values for a in preset("haq-kmeans")(facts) if a.field == "codebook"} == {("kmeans",)}
    assert {a.values for a in preset("int8")(facts)} == {(8, 32)}
    assert {a.values for a in preset("sparse-tensor-cores")(facts) if a.field == "pattern"} == {("2:4",)}
    assert {p for a in preset("cpu-blocks")(facts) if a.field == "pattern" for p in a.values} == {"4x1", "16x1"}


def test_a_search_takes_a_file_or_a_preset_and_notes_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from automc.registry import SEARCHERS

    for name in ("stub", "uniform"):
        monkeypatch.setitem(SEARCHERS.table, name, "tests.cli.tiny:Stub")
    Path("mine.yaml").write_text("open: [bits]\nties: [['*']]")
    options: dict[str, Any] = {"budget": "size<=95%", "searcher": "stub", "trials": 3}
    study = automc.search(task(), space="mine.yaml", **options)
    assert study.meta["space"] == written(Path("mine.yaml").read_text()).name
    assert study.meta["space"] in study.name
    for found in study.evaluations:
        assert len({d.weight_bits for _, d in found.policy.layers}) == 1
    assert automc.search(task(), space="haq", **options).meta["space"] == "haq"
    Path("mine.yaml").write_text("open: [bits]\nexcept: ['*']")
    with pytest.raises(TaskError, match=r"must have something to decide; mine-\w+ opens nothing"):
        automc.search(task(), space="mine.yaml", **options)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ("macs<=50%", "channels-ranks"),
        ("params<=50%", "channels-ranks"),
        ("macs<=50%,size<=25%", "channels-bits"),
        ("bops<=20%", "zeros-bits"),
        ("size<=25%,bops<=20%", "zeros-bits"),
    ],
)
def test_auto_opens_as_little_as_the_budget_needs(budget: str, name: str) -> None:
    assert find_space("auto", Budget.parse(budget)) == (name, SPACES.load(name))


def test_a_function_is_a_space_under_its_own_name() -> None:
    def nothing(facts: ModelFacts) -> tuple[Axis, ...]:
        return ()

    assert find_space(nothing, Budget.parse("macs<=50%")) == ("nothing", nothing)
    assert find_space(preset("amc"), Budget.parse("macs<=50%"))[0] == "amc"
    assert Policy(RESNET.fingerprint) == SearchSpace(RESNET, nothing(RESNET)).decode([])
