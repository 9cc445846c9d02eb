"""Weights laid out once: the numbers of the plain layers, names as before, and never those of former weights."""

import torch
from factories import normal, tiny_transformer

from dreamer4.attention import rope_angles
from dreamer4.packing import MOST_COPIES, PackedLinear, pack
from dreamer4.transformer import Transformer


@torch.no_grad()
def outputs(model: Transformer, rows: int = 2) -> torch.Tensor:
    return model(normal(rows, 5, 3, 16), rope_angles(torch.arange(3), model.config.head_size, 10_000.0))


def packed_transformer() -> Transformer:
    model = tiny_transformer()
    assert pack(model)
    return model


def test_packed_products_are_the_plain_ones():
    plain, packed = tiny_transformer(), packed_transformer()
    for rows in range(1, MOST_COPIES + 3):  # more numbers of rows than copies are kept of
        assert torch.allclose(outputs(packed, rows), outputs(plain, rows), atol=1e-6)
    kept = [len(module.packs) for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len(kept) == 8 and set(kept) == {MOST_COPIES}


def test_the_same_inputs_give_the_same_bits():
    assert torch.equal(outputs(packed_transformer()), outputs(packed_transformer()))


def test_names_and_parameters_stay():
    plain, packed = tiny_transformer(), packed_transformer()
    outputs(packed)
    assert packed.state_dict().keys() == plain.state_dict().keys()


def test_new_weights_are_laid_out_anew():
    packed, other = packed_transformer(), tiny_transformer(seed=1)
    before = outputs(packed)
    packed.load_state_dict(other.state_dict())
    assert torch.allclose(outputs(packed), outputs(other), atol=1e-6)
    assert not torch.allclose(outputs(packed), before, atol=1e-2)


def test_training_and_other_precisions_go_the_plain_way():
    packed, x = packed_transformer(), normal(2, 5, 3, 16)
    packed(x, rope_angles(torch.arange(3), packed.config.head_size, 10_000.0)).sum().backward()
    assert all(p.grad is not None for p in packed.parameters())
    assert not pack(tiny_transformer().double())
