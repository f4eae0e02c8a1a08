"""A flipped bit, and an end that is missing: every one is noticed, in every file that carries a digest."""

import random
from pathlib import Path

import pytest
import torch

import automc
from automc import artifact
from automc.errors import ArtifactError, AutomcError
from tests.faults.files.readers import GONE, READERS, Net, Reader, small

SEALED = ("checkpoint", "bank", "trained network")
EVERY = 64
SAVED = (artifact.MODEL, artifact.POLICY, artifact.REPORT, artifact.MANIFEST)


def noticed(reader: Reader, path: Path) -> bool:
    """Whether a changed file is refused, or made anew."""
    try:
        return bool(reader.read(path) == GONE)
    except AutomcError as error:
        assert path.name in str(error) or path.parent.name in str(error)
        return True


def flips(data: bytes, count: int) -> list[tuple[int, int]]:
    """So many different bits, by byte and place."""
    drawn = random.Random(len(data)).sample(range(8 * len(data)), count)
    return [divmod(bit, 8) for bit in drawn]


@pytest.mark.parametrize("name", SEALED)
def test_two_hundred_flipped_bits_are_all_noticed(name: str, tmp_path: Path) -> None:
    path = READERS[name].make(tmp_path)
    whole = path.read_bytes()
    for at, bit in flips(whole, 200):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(bytes(changed))
        assert noticed(READERS[name], path), (at, bit)
    path.write_bytes(whole)
    assert not noticed(READERS[name], path)


@pytest.mark.parametrize("file", SAVED)
def test_two_hundred_bits_of_each_file_of_a_saved_model_are_noticed_when_it_is_loaded(
    file: str, tmp_path: Path
) -> None:
    automc.save(small(), tmp_path, report={"reference": "digits"})
    path = tmp_path / file
    whole = path.read_bytes()
    for at, bit in flips(whole, min(200, 8 * len(whole))):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(bytes(changed))
        with pytest.raises(ArtifactError, match=str(tmp_path)):
            automc.load(tmp_path, Net)
    path.write_bytes(whole)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(automc.load(tmp_path, Net)(x), small()(x))


@pytest.mark.parametrize("name", [*SEALED, "saved model", "saved policy", "report", "manifest", "latency table"])
def test_a_file_cut_at_every_64th_byte_is_noticed(name: str, tmp_path: Path) -> None:
    path = READERS[name].make(tmp_path)
    whole = path.read_bytes()
    for cut in range(0, len(whole.rstrip()), EVERY):
        path.write_bytes(whole[:cut])
        assert noticed(READERS[name], path), cut
