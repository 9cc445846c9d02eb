import pytest
import torch

from dreamer4.actions import ActionSpace, Part
from dreamer4.heads import ContinueHead, Mlp, PolicyHead, ScalarHead, mtp_targets
from dreamer4.rng import generator

SPACE = ActionSpace((Part("keys", "binary", 2), Part("camera", "categorical", 5)))
FEATURES = torch.randn(2, 6, 8, generator=generator("features"))


def randomise(module: torch.nn.Module) -> None:
    """Zero output layers hide bugs."""
    noise = generator("weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)


def test_untrained_heads_know_nothing():
    """Invariant 37: reward exactly 0; the policy is uniform and a frame is as likely to be the last as not."""
    assert (ScalarHead(8, 16, 2, 3, 255).predict(FEATURES) == 0).all()
    policy = PolicyHead(8, 16, 2, 3, SPACE)(FEATURES)
    torch.testing.assert_close(policy.at(0).entropy(), torch.full((2, 6), 2 * 2.0).log() + torch.tensor(5.0).log())
    assert (ContinueHead(8, 16, 2, 3).predict(FEATURES) == 0.5).all()


def test_shapes_are_frames_by_offsets():
    assert ScalarHead(8, 16, 2, 3, 41)(FEATURES).shape == (2, 6, 3, 41)
    assert [x.shape for x in PolicyHead(8, 16, 2, 3, SPACE)(FEATURES).logits] == [(2, 6, 3, 2), (2, 6, 3, 5)]
    assert ContinueHead(8, 16, 2, 3)(FEATURES).shape == (2, 6, 3)
    assert Mlp(8, 16, 0, 4).trunk(FEATURES).shape == (2, 6, 16)


@pytest.mark.parametrize("offset", [0, 2])
def test_every_offset_has_its_own_output_layer(offset):
    head = ScalarHead(8, 16, 2, 3, 41)
    randomise(head)
    head.loss(FEATURES, torch.ones(2, 6, 3))[..., offset].sum().backward()
    assert head.mlp.output.weight.grad is not None
    reached = head.mlp.output.weight.grad.unflatten(0, (3, 41)).flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [n == offset for n in range(3)]


def test_prediction_is_the_one_of_the_asked_offset():
    head, continues = ScalarHead(8, 16, 2, 3, 41), ContinueHead(8, 16, 2, 3)
    randomise(head)
    randomise(continues)
    predictions = [head.predict(FEATURES, n) for n in range(3)]
    torch.testing.assert_close(torch.stack(predictions, -1), head.two_hot.decode(head(FEATURES)))
    assert not torch.allclose(predictions[0], predictions[1])
    torch.testing.assert_close(continues.predict(FEATURES, 2), continues(FEATURES)[..., 2].sigmoid())


def test_a_head_learns_its_targets():
    """The cross entropy falls from ln 255 to the entropy of the targets' own encoding, which is its minimum."""
    head = ScalarHead(8, 32, 2, 1, 255)
    targets = torch.tensor([-3.0, 0.0, 0.5, 1.0, 20.0, 1e4]).expand(2, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = head.loss(FEATURES, targets[..., None]).mean()
        loss.backward()
        optimizer.step()
    least = torch.special.entr(head.two_hot.encode(targets)).sum(-1).mean()
    torch.testing.assert_close(loss, least, atol=0.05, rtol=0)


def test_target_of_frame_t_and_offset_n_is_frame_t_plus_n():
    """Invariant 38."""
    values = torch.arange(6.0).expand(2, 6)
    known, segment = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.long)
    targets, mask = mtp_targets(values, known, segment, 4)
    for t in range(6):
        for n in range(4):
            assert mask[0, t, n] == (t + n <= 5)
            assert targets[0, t, n] == (t + n if t + n <= 5 else 0)


def test_unknown_values_are_masked_wherever_they_are_the_target():
    """Invariant 38: the first frame has no reward, the last one no action."""
    known = torch.ones(1, 5, dtype=torch.bool)
    known[0, 0] = known[0, 4] = False
    actions = torch.randn(1, 5, 3, generator=generator("actions"))
    targets, mask = mtp_targets(actions, known, torch.zeros(1, 5, dtype=torch.long), 2)
    assert targets.shape == (1, 5, 2, 3)
    assert mask[0].tolist() == [[False, True], [True, True], [True, True], [True, False], [False, False]]
    assert torch.equal(targets[0, 1, 1], actions[0, 2])


def test_an_episode_does_not_predict_the_next_one():
    segment = torch.tensor([[0, 0, 1, 1]])
    _, mask = mtp_targets(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), segment, 3)
    assert mask[0].int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]


def test_padding_never_reaches_a_gradient():
    """Invariant 38. Negative control: the same mean without the mask is not a number."""
    head = ScalarHead(8, 16, 1, 2, 41)
    rewards = torch.ones(2, 6)
    known = torch.ones(2, 6, dtype=torch.bool)
    rewards[:, 0], known[:, 0] = torch.nan, False
    segment = torch.zeros(2, 6, dtype=torch.long)
    targets, mask = mtp_targets(rewards, known, segment, 2)

    def gradient(targets, mask):
        head.zero_grad()
        torch.where(mask, head.loss(FEATURES, targets), 0.0).sum().backward()
        return head.mlp.output.weight.grad.clone()

    clean = gradient(targets, mask)
    assert clean.isfinite().all()
    garbage = torch.where(mask, targets, 1e3)
    assert torch.equal(gradient(garbage, mask), clean)
    assert not torch.equal(gradient(garbage, torch.ones_like(mask)), clean)
