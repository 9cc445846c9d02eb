import shutil

import numpy as np
import pytest
from worlds import LATENT, World

from dreamer4.data.latent_checks import check_latents
from dreamer4.data.latents import finish_latents, write_latents


def test_whole_latents_have_no_fault(world: World, tmp_path):
    assert check_latents(copied(world, tmp_path), world.dataset, LATENT) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.5])
def test_latents_that_no_tokenizer_gives_are_found_by_file_and_row(world: World, tmp_path, value):
    folder, shard = copied(world, tmp_path), world.dataset.manifest.shards[1]
    latents = np.zeros((shard.frames, *LATENT), np.float32)
    latents[3, 0, 1] = value
    write_latents(folder, 1, latents, "made up")
    finish_latents(folder, world.dataset, "made up")
    (fault,) = check_latents(folder, world.dataset, LATENT)
    assert (fault.kind, fault.file, fault.row) == ("latents", f"{folder}/{shard.file}", 3)


def test_flipped_bits_missing_files_and_other_shapes_are_found(world: World, tmp_path):
    folder = copied(world, tmp_path)
    (fault,) = check_latents(folder, world.dataset, (LATENT[0], LATENT[1] + 1))
    assert "the world model takes" in fault.text
    path = sorted(folder.glob("*.arrow"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (fault,) = check_latents(folder, world.dataset, LATENT)
    assert fault.row == 0 and "checksum" in fault.text and path.name in fault.text
    path.unlink()
    (fault,) = check_latents(folder, world.dataset, LATENT)
    assert path.name in fault.text


def copied(world: World, folder):
    place = world.latents.rows.folder.name.removeprefix("file://")
    return shutil.copytree(place, folder / "latents")
