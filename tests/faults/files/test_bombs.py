"""A few bytes that claim a great deal: refused before room is made for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import automc
from automc import artifact
from automc.compression.entropy import decode
from automc.errors import ArtifactError, PolicyError
from automc.files import parsed_json
from automc.policy import Policy
from tests.faults.files import watch
from tests.faults.files.readers import READERS, Net, reseal_saved, small

Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]
ENDLESS = bytes([1]) + b"\xff\xff\xff\xff\x07" + b"\x01" + b"\x00" + b"\xff\xff\xff\xff\x07"
"""An entropy-coded blob of 2^31 - 1 zeros."""


def changed(folder: Path, change: Callable[[Header, Tensors], object]) -> None:
    """A saved model with another header, or other tensors, and the digests that go with it."""
    automc.save(small(), folder)
    path = folder / artifact.MODEL
    data = path.read_bytes()
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["automc"])
    tensors = load_tensors(data)
    change(header, tensors)
    path.write_bytes(save_tensors(tensors, metadata={"automc": json.dumps(header)}))
    reseal_saved(path)


def first(header: Header, key: str) -> str:
    return str(next(iter(header[key])))


def _stored(header: Header, **parts: Any) -> None:
    for name, entry in header["stored"].items():
        bits, shape, form, lowest = entry
        now = {"bits": bits, "shape": shape, "form": form, "lowest": lowest} | parts
        header["stored"][name] = list(now.values())


def _endless(header: Header, tensors: Tensors) -> None:
    """Codes of one weight that unpack to billions."""
    name = first(header, "stored")
    for suffix in (".present", ".gaps", ".codes", ".values"):
        tensors.pop(name + suffix, None)
    tensors[f"{name}.codes"] = torch.tensor(list(ENDLESS), dtype=torch.uint8)
    header["stored"][name][2] = "coded"


def _gaps(symbols: list[int]) -> Callable[[Header, Tensors], None]:
    from automc.compression.entropy import encode

    def change(header: Header, tensors: Tensors) -> None:
        name = first(header, "stored")
        tensors[f"{name}.gaps"] = torch.tensor(list(encode(np.array(symbols))), dtype=torch.uint8)
        header["stored"][name][2] = "gaps"

    return change


BOMBS: dict[str, Callable[[Header, Tensors], object]] = {
    "inputs of 10^18": lambda h, t: h.update(inputs=[[[10**9, 10**9], "float32"]]),
    "inputs of 10^10": lambda h, t: h.update(inputs=[[[10**10], "uint8"]]),
    "many inputs": lambda h, t: h.update(inputs=[[[2**20], "float32"]] * 10_000),
    "negative inputs": lambda h, t: h.update(inputs=[[[-1, -(2**40)], "float32"]]),
    "inputs of no type": lambda h, t: h.update(inputs=[[[2, 3, 6, 6], "load"]]),
    "inputs of a function": lambda h, t: h.update(inputs=[[[2, 3, 6, 6], "__import__"]]),
    "no inputs": lambda h, t: h.update(inputs=[]),
    "weights of 10^18": lambda h, t: _stored(h, shape=[10**9, 10**9]),
    "weights of 2^60 bits": lambda h, t: _stored(h, bits=2**60),
    "weights of -1 bits": lambda h, t: _stored(h, bits=-1),
    "weights of True bits": lambda h, t: _stored(h, bits=True),
    "codes from 10^400": lambda h, t: _stored(h, lowest=10**400),
    "an unknown form": lambda h, t: _stored(h, form="pickle"),
    "billions of zeros": _endless,
    "gaps beyond the end": _gaps([10**6]),
    "gaps that overflow": _gaps([2**62, 2**62, 2**62]),
    "gaps backwards": _gaps([5, -3, -3]),
    "more bits than there are": lambda h, t: h["bits"].update({first(h, "bits"): [60, 32, "kmeans"]}),
    "bits of text": lambda h, t: h["bits"].update({first(h, "bits"): ["8", 32, "uniform"]}),
    "a codebook of code": lambda h, t: h["bits"].update({first(h, "bits"): [8, 32, "os:system"]}),
    "ranks of 10^9": lambda h, t: h["factors"].update({"third": ["svd", [10**9]]}),
    "a factorisation of code": lambda h, t: h["factors"].update({"third": ["os:system", [2]]}),
    "a thousand ranks": lambda h, t: h["factors"].update({"third": ["svd", [2] * 1000]}),
    "no units kept": lambda h, t: h["kept"].update({first(h, "kept"): "00"}),
    "too few units": lambda h, t: h["kept"].update({first(h, "kept"): ""}),
    "too many units": lambda h, t: h["kept"].update({first(h, "kept"): "ff" * 10**6}),
    "a group of nobody": lambda h, t: h["kept"].update({"../../x": "ff"}),
    "blocks of nobody": lambda h, t: h.update(without=["x"]),
    "a name for nothing": lambda h, t: h["aliases"].update({"x": "y"}),
    "a ring of names": lambda h, t: h["aliases"].update({"x": "x"}),
    "another version": lambda h, t: h.update(version=10**9),
    "a list": lambda h, t: h.clear(),
    "a tensor too many": lambda h, t: t.update({"extra.weight": torch.zeros(3)}),
    "a tensor of another shape": lambda h, t: t.update({"head.bias": torch.zeros(10**6)}),
    "NaN": lambda h, t: t["head.bias"].fill_(float("nan")),
    "infinity": lambda h, t: t["head.bias"].fill_(float("inf")),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_saved_model_claims_is_held_against_the_model(bomb: str, tmp_path: Path) -> None:
    changed(tmp_path, BOMBS[bomb])
    with (
        watch.no_hang(),
        watch.little_memory(),
        watch.nothing_runs(),
        pytest.raises(ArtifactError, match=str(tmp_path)) as caught,
    ):
        automc.load(tmp_path, Net)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "model.safetensors/../x", "a\0b", "", "\ud800"])
def test_a_manifest_that_speaks_of_other_files_is_refused_and_none_is_looked_at(name: str, tmp_path: Path) -> None:
    automc.save(small(), tmp_path)
    manifest = json.loads((tmp_path / artifact.MANIFEST).read_text())
    entry = manifest["files"][artifact.REPORT]
    for files in (manifest["files"] | {name: entry}, {**manifest["files"], artifact.REPORT: entry | {"path": name}}):
        (tmp_path / artifact.MANIFEST).write_text(json.dumps(manifest | {"files": files}))
        with pytest.raises(
            ArtifactError, match=r"manifest.json must be of automc-artifact 2|must be automc's manifest"
        ):
            automc.load(tmp_path, Net)


def test_a_model_that_was_only_opened_and_sealed_again_is_loaded(tmp_path: Path) -> None:
    changed(tmp_path, lambda header, tensors: None)
    assert automc.load(tmp_path, Net)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**60, 2**64 - 1])
@pytest.mark.parametrize("name", ["saved model", "checkpoint", "bank", "trained network"])
def test_a_header_of_any_length_is_refused(name: str, length: int, tmp_path: Path) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    if name == "saved model":
        reseal_saved(path)
    with watch.no_hang(), watch.little_memory():
        try:
            assert not isinstance(reader.read(path), dict)
        except ArtifactError as error:
            assert path.name in str(error)


def test_a_blob_of_billions_is_not_written_out() -> None:
    with watch.little_memory(), pytest.raises(ArtifactError, match="damaged"):
        decode(ENDLESS, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format": "automc-policy", "version": 1, "groups": ' + '{"a":' * 2000 + "{}" + "}" * 2001,
        '{"format": "automc-policy", "version": ' + "1" * 5000 + "}",
        '{"format": "automc-policy", "version": 1, "groups": {"a": {"keep": 1e999}}}',
        '{"format": "automc-policy", "version": 1, "groups": {"a": {"keep": ' + "1" * 400 + "}}}",
        '{"format": "automc-policy", "version": 1, "groups": {"a": {"keep": NaN}}}',
        '{"format": "automc-policy", "version": 1, "groups": {"a": {"keep": 0.5}, "a": {"keep": 0.6}}}',
        '{"format": "automc-policy", "version": 1, "groups": {"a": {"keep": 0.5, "keep": 0.6}}}',
        '{"format": "automc-policy", "version": 1, "groups": {"\\ud800": {"keep": 0.5}}}',
        '{"format": "automc-policy", "version": 1, "recipe": {"images": ' + "9" * 300 + "}}",
        '{"format": "automc-policy", "version": 1, "recipe": {"seed": -1}}',
        '{"format": "automc-policy", "version": 1, "fingerprint": ["f"]}',
        '{"format": "automc-policy", "version": 1, "layer": {}}',
        '{"format": "automc-policy", "version": 1, "layers": {"a": {"pattern": "'
        + "1" * 5000
        + ':9", "sparsity": 0.5}}}',
        '{"format": "automc-policy", "version": 1, "layers": {"a": {"pattern": "1x\u0663", "sparsity": 0.5}}}',
    ],
)
def test_what_json_allows_and_a_policy_is_not_is_refused_shortly(text: str) -> None:
    with watch.no_hang(), pytest.raises(PolicyError) as caught:
        Policy.from_json(text)
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_a_policy_of_a_million_entries_is_refused_unread(tmp_path: Path) -> None:
    automc.save(small(), tmp_path)
    path = tmp_path / artifact.POLICY
    entries = ",".join(f'"l{i}":{{"keep":0.5}}' for i in range(10**6))
    path.write_text(f'{{"format":"automc-policy","version":1,"fingerprint":"f","groups":{{{entries}}}}}')
    reseal_saved(path)
    with watch.little_memory(), pytest.raises(ArtifactError, match=r"policy.json .*it has more than"):
        automc.load(tmp_path, Net)


def test_a_policy_of_many_layers_is_read_and_one_entry_that_stands_twice_is_named() -> None:
    many = {f"l{i}": {"weight_bits": 4} for i in range(20_000)}
    text = Policy("f").to_json()[:-2].replace('"layers": {}', f'"layers": {json.dumps(many)}') + "}"
    assert len(Policy.from_json(text).layers) == 20_000
    policy = Policy.from_json(text)
    with pytest.raises(PolicyError, match="'l7' stands twice"):
        Policy("f", layers=(*policy.layers, policy.layers[7]))


def test_json_is_read_as_python_reads_it_otherwise() -> None:
    said = {"a": [1, -2.5, 1e300, True, None, "ä\U0001f600\\ud800 \n"], "b": {"c": {}}, "": ""}
    assert parsed_json(json.dumps(said)) == parsed_json(json.dumps(said, ensure_ascii=False).encode()) == said
