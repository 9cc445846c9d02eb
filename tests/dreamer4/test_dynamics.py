"""The dynamics model: causality, the firewall around agent tokens, actions, levels, and one clip learned by heart."""

import pytest
import torch
from factories import MIXED_SPACE, changed, frames_that_differ, level_inputs, lively, normal, tiny_dynamics
from torch import Tensor

from dreamer4.actions import ActionSpace
from dreamer4.dynamics import ActionEncoder, Dynamics, DynamicsConfig, DynamicsOutput, check_shortcut
from dreamer4.errors import ConfigError, DataError
from dreamer4.imagination import ImaginationConfig, WorldStream
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig, corrupt, sample_levels, shortcut_error, shortcut_targets


@torch.no_grad()
def run(model: Dynamics, inputs: dict[str, Tensor], **more) -> DynamicsOutput:
    return model(**{**inputs, **more})


def tasks(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.long)


# Causality


@pytest.mark.parametrize("name", ["noised_BTSD", "tau_idx_BT", "step_idx_BT", "act_in_BTA", "act_in_known_BT"])
def test_no_input_of_a_frame_reaches_an_earlier_frame(name: str):
    """Invariants 1 and 13: every input changes its own frame and later ones only, agent features included."""
    model = tiny_dynamics(window=8)
    inputs = {**level_inputs(model, 2, 5), "task_BT": tasks(2, 5)}
    before = run(model, inputs)
    for t in range(5):
        other = changed(inputs[name], slice(None), t)
        after = run(model, {**inputs, name: other % 3 if name == "act_in_BTA" else other})
        assert frames_that_differ(before.clean_BTSD, after.clean_BTSD) == list(range(t, 5))
        assert frames_that_differ(before.features_BTM, after.features_BTM) == list(range(t, 5))


def test_a_task_reaches_its_own_and_later_features_only():
    """Invariant 1, for the agent input."""
    model = tiny_dynamics(window=8)
    inputs = {**level_inputs(model, 2, 5), "task_BT": tasks(2, 5)}
    before = run(model, inputs).features_BTM
    for t in range(5):
        after = run(model, {**inputs, "task_BT": changed(inputs["task_BT"], slice(None), t)}).features_BTM
        assert frames_that_differ(before, after) == list(range(t, 5))


@pytest.mark.parametrize("depth", [2, 4])
def test_the_reach_is_window_minus_one_frames_per_time_layer(depth: int):
    """Invariant 3."""
    model = tiny_dynamics(depth=depth, window=3).double()
    reach = depth // 2 * 2
    inputs = level_inputs(model, 1, reach + 4)
    inputs["noised_BTSD"] = inputs["noised_BTSD"].double()
    inputs["act_in_BTA"] = inputs["act_in_BTA"].double()
    after = {**inputs, "noised_BTSD": changed(inputs["noised_BTSD"], 0, 1)}
    touched = frames_that_differ(run(model, inputs).clean_BTSD, run(model, after).clean_BTSD)
    assert touched == list(range(1, reach + 2))


def test_no_frame_of_an_image_row_influences_another():
    """Invariant 31."""
    model, inputs = tiny_dynamics(), level_inputs(tiny_dynamics(), 2, 5)
    segments = torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.long)])
    before = run(model, inputs, segment_BT=segments).clean_BTSD
    after = run(model, {**inputs, "noised_BTSD": changed(inputs["noised_BTSD"], slice(None), 2)}, segment_BT=segments)
    assert frames_that_differ(before[:1], after.clean_BTSD[:1]) == [2]
    assert frames_that_differ(before[1:], after.clean_BTSD[1:]) == [2, 3, 4]


# The firewall around agent tokens


def test_nothing_about_the_agent_reaches_the_world():
    """Invariants 6 and 42: equal to the bit for any task and any agent parameters; near equal without agent tokens."""
    model = tiny_dynamics()
    inputs = level_inputs(model, 2, 6)
    alone, first = run(model, inputs), run(model, inputs, task_BT=tasks(2, 6))
    second = run(model, inputs, task_BT=tasks(2, 6) + 1)
    with torch.no_grad():
        model.agent_base += 5
        model.task_embedding.weight *= -3
    third = run(model, inputs, task_BT=tasks(2, 6))
    assert alone.features_BTM is None
    assert torch.equal(first.clean_BTSD, second.clean_BTSD) and torch.equal(first.clean_BTSD, third.clean_BTSD)
    assert not torch.allclose(first.features_BTM, second.features_BTM, atol=1e-3)
    assert not torch.allclose(first.features_BTM, third.features_BTM, atol=1e-3)
    # Sums over one more masked key may be taken in another order, so this is not to the bit.
    assert torch.allclose(alone.clean_BTSD, first.clean_BTSD, atol=1e-6)


def test_a_model_without_the_firewall_is_told_apart():
    """Invariant 6, negative control."""
    model = tiny_dynamics()
    inputs = level_inputs(model, 2, 6)
    model.mask_SS.fill_(True)
    first, second = (run(model, inputs, task_BT=tasks(2, 6) + task).clean_BTSD for task in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_no_gradient_of_the_world_reaches_the_task():
    """Invariant 7: and features do depend on latents and task."""
    model, inputs = tiny_dynamics(), level_inputs(tiny_dynamics(), 2, 5)
    inputs["noised_BTSD"].requires_grad_()
    output = model(**inputs, task_BT=tasks(2, 5))
    agent = [model.task_embedding.weight, model.agent_base]
    world = torch.autograd.grad(output.clean_BTSD.square().sum(), agent, retain_graph=True, allow_unused=True)
    assert all(gradient is None or gradient.abs().max() == 0 for gradient in world)
    latents, task = torch.autograd.grad(
        output.features_BTM.square().sum(), [inputs["noised_BTSD"], model.task_embedding.weight]
    )
    assert latents.abs().max() > 1e-3 and task[0].abs().max() > 1e-3


def test_a_longer_finetuned_agent_leaves_pretrained_outputs_alone():
    """Invariant 42: pretrained weights in a model with more agent tokens and tasks predict the same world."""
    small = tiny_dynamics()
    large = tiny_dynamics(seed=1, agent_tokens=3, tasks=5)
    own = {name: w for name, w in small.state_dict().items() if not name.startswith(("agent_base", "task_embedding"))}
    large.load_state_dict(own, strict=False)
    inputs = level_inputs(small, 2, 5)
    before, after = run(small, inputs), run(large, inputs, task_BT=tasks(2, 5) + 4)
    assert torch.equal(before.clean_BTSD, run(large, inputs).clean_BTSD)
    assert torch.allclose(before.clean_BTSD, after.clean_BTSD, atol=1e-6)
    assert after.features_BTM.shape == (2, 5, 3 * 16) == (2, 5, large.config.feature_width)


# Actions


def encoder(space: ActionSpace = MIXED_SPACE) -> ActionEncoder:
    return lively(ActionEncoder(space, tokens=2, width=8))


def known(actions: Tensor) -> Tensor:
    return torch.ones(actions.shape[:-1], dtype=torch.bool)


@torch.no_grad()
def test_parts_of_an_action_add_up():
    """Invariant 13: the effect of changing two parts is the sum of the effects of changing each."""
    encode = encoder()
    rest, both = (MIXED_SPACE.random(1, generator("parts", i))[None] for i in (0, 1))
    starts = {"camera": slice(0, 1), "keys": slice(1, 4), "stick": slice(4, 6)}
    base, effects = encode(rest, known(rest)), 0
    for columns in starts.values():
        one = rest.clone()
        one[..., columns] = both[..., columns]
        effects = effects + encode(one, known(one)) - base
    assert torch.allclose(base + effects, encode(both, known(both)), atol=1e-5)
    assert not torch.allclose(base, encode(both, known(both)), atol=1e-2)


@torch.no_grad()
def test_an_unknown_action_is_the_learned_embedding_exactly():
    """Invariant 13: whatever numbers stand in its place, those that are none included."""
    encode, actions = encoder(), MIXED_SPACE.random(4, generator("unknown"))[None]
    actions[0, 1], actions[0, 2] = 99.0, torch.nan
    mask = torch.tensor([[True, False, False, False]])
    tokens = encode(actions, mask)
    assert all(torch.equal(tokens[0, t], encode.base) for t in (1, 2, 3))
    assert not torch.allclose(tokens[0, 0], encode.base, atol=1e-2)


def test_an_unknown_action_that_is_no_number_leaves_gradients_finite():
    encode, actions = encoder(), MIXED_SPACE.random(2, generator("unknown"))[None]
    actions[0, 1] = torch.nan
    encode(actions, torch.tensor([[True, False]])).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encode.parameters())


def test_each_of_minecrafts_components_changes_the_output():
    """Invariant 13: 23 keys and the mouse."""
    space = ActionSpace.from_json(
        [{"name": "keyboard", "kind": "binary", "size": 23}, {"name": "mouse", "kind": "categorical", "size": 121}]
    )
    model = tiny_dynamics(actions=space.to_json())
    inputs = level_inputs(model, 1, 1)
    inputs["act_in_BTA"] = torch.zeros(1, 1, 24)
    before = run(model, inputs).clean_BTSD
    for column in range(24):
        after = run(model, {**inputs, "act_in_BTA": changed(inputs["act_in_BTA"], 0, 0, column)}).clean_BTSD
        assert not torch.equal(before, after)


def test_unlabelled_video_equals_labelled_video_with_actions_unknown():
    """Invariant 13."""
    model = tiny_dynamics()
    inputs = level_inputs(model, 2, 5)
    unknown = torch.zeros(2, 5, dtype=torch.bool)
    first = run(model, {**inputs, "act_in_known_BT": unknown}).clean_BTSD
    second = run(model, {**inputs, "act_in_known_BT": unknown, "act_in_BTA": torch.zeros(2, 5, 1)}).clean_BTSD
    assert torch.equal(first, second)
    assert not torch.equal(first, run(model, inputs).clean_BTSD)


# Tables and shapes


@torch.no_grad()
def test_a_block_is_actions_then_level_then_latents_then_registers_then_agent():
    """Paper.md 5.1: what goes in at a slot, and from which slots predictions and features are read."""
    model, seen = tiny_dynamics(action_tokens=3, agent_tokens=2), []
    model.transformer.register_forward_hook(lambda _, arguments, output: seen.extend([arguments[0], output]))
    inputs = level_inputs(model, 2, 4)
    output = run(model, inputs, task_BT=tasks(2, 4) + 1)
    given, returned = seen
    action, level, latents, registers, agent = given.split([3, 1, 2, 2, 2], dim=2)
    assert torch.equal(action, model.action_encoder(inputs["act_in_BTA"], inputs["act_in_known_BT"]))
    assert torch.equal(level[:, :, 0, :8], model.signal_embedding(inputs["tau_idx_BT"]))
    assert torch.equal(level[:, :, 0, 8:], model.step_embedding(inputs["step_idx_BT"]))
    assert torch.equal(latents, model.latent_in(inputs["noised_BTSD"]) + model.slot_embedding)
    assert torch.equal(registers, model.registers.expand(2, 4, -1, -1))
    task = model.task_embedding.weight[1].unflatten(0, (2, 16))
    assert torch.equal(agent, (model.agent_base + task).expand(2, 4, -1, -1))
    assert torch.equal(output.clean_BTSD, model.latent_out(returned[:, :, 4:6]))
    assert torch.equal(output.features_BTM, model.feature_norm(returned[:, :, 8:]).flatten(2))


def test_there_is_no_row_for_the_untrained_level():
    """Invariant 18: exactly k_max levels and log2 k_max + 1 steps."""
    model = tiny_dynamics(k_max=64)
    assert model.signal_embedding.num_embeddings == 64
    assert model.step_embedding.num_embeddings == 7
    inputs = level_inputs(model, 1, 2)
    with pytest.raises(IndexError):
        run(model, {**inputs, "tau_idx_BT": torch.full((1, 2), 64)})


def test_a_fresh_model_predicts_zero():
    model = Dynamics(tiny_dynamics().config)
    assert run(model, level_inputs(model, 1, 3)).clean_BTSD.abs().max() == 0


def test_every_parameter_gets_a_gradient():
    model, inputs = tiny_dynamics(), level_inputs(tiny_dynamics(), 4, 6)
    output = model(**inputs, task_BT=torch.arange(4)[:, None].expand(4, 6) % 2)
    (output.clean_BTSD.square().mean() + output.features_BTM.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_autocast_stays_near_fp32_and_features_are_fp32():
    """Invariant 29, for the network."""
    model, inputs = tiny_dynamics(), level_inputs(tiny_dynamics(), 2, 6)
    expected = run(model, inputs, task_BT=tasks(2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model, inputs, task_BT=tasks(2, 6))
    assert output.features_BTM.dtype == torch.float32
    for a, b in ((output.clean_BTSD, expected.clean_BTSD), (output.features_BTM, expected.features_BTM)):
        assert (a - b).norm() / b.norm() < 0.05


def test_latents_of_another_tokenizer_are_refused_with_both_shapes():
    model = tiny_dynamics()
    inputs = {**level_inputs(model, 1, 2), "noised_BTSD": torch.zeros(1, 2, 3, 6)}
    with pytest.raises(DataError, match=r"latents of \(3, 6\) don't fit a dynamics model for \(2, 6\)"):
        run(model, inputs)


def test_the_objectives_grid_has_to_be_the_tables():
    """Invariant 18."""
    check_shortcut(DynamicsConfig(k_max=64), ShortcutConfig(k_max=64))
    with pytest.raises(ConfigError, match=r"dynamics\.k_max \(8\) must equal shortcut\.k_max \(64\)"):
        check_shortcut(DynamicsConfig(k_max=8), ShortcutConfig(k_max=64))


# One clip by heart


def clip_by_heart() -> tuple[Tensor, Tensor, Tensor]:
    """Latents `[1, 8, 2, 4]` that follow the actions: each of two actions moves the state its own way."""
    actions = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])[None, :, None]
    moves = torch.stack([torch.roll(torch.eye(4), 1, 0), torch.diag(torch.tensor([-1.0, 1, -1, 1])).roll(2, 0)])
    frames = [0.7 * torch.tensor([[1.0, -1, 1, 1], [-1, -1, 1, -1]])]
    for t in range(1, 8):
        frames.append(frames[-1] @ moves[int(actions[0, t, 0])])
    mask = torch.arange(8)[None] > 0
    return torch.stack(frames)[None], actions, mask


def test_one_clip_is_learned_by_heart():
    """Invariant 30: samples of 1, 2, 4 and 8 steps reconstruct it; shuffled actions raise the loss."""
    torch.manual_seed(0)  # of the initial weights
    config = ShortcutConfig(k_max=8, context_noise=0.125)
    latents, actions, mask = clip_by_heart()
    sizes = {"width": 32, "depth": 2, "heads": 2, "hidden": 64, "time_every": 2, "window": 8, "registers": 1}
    model = Dynamics(DynamicsConfig(latents=2, channels=4, k_max=8, **sizes))
    batch = 16
    clean, act_in = latents.expand(batch, -1, -1, -1), actions.expand(batch, -1, -1)
    known_BT = mask.expand(batch, -1)

    def error(step: int, act_in_BTA: Tensor) -> Tensor:
        draw = generator("by heart", step)
        levels = sample_levels(config, batch, 8, draw)
        noised = corrupt(clean, torch.randn(clean.shape, generator=draw), levels.tau)

        def denoise(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
            return model(z, tau_idx, step_idx, act_in_BTA, known_BT).clean_BTSD

        target = shortcut_targets(denoise, clean, noised, levels)
        return shortcut_error(denoise(noised, levels.tau_idx, levels.step_idx), target, levels, ramp=True).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=400)
    for step in range(400):
        error(step, act_in).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    with torch.no_grad():
        right = torch.stack([error(1000 + i, act_in) for i in range(4)]).mean()
        wrong = torch.stack([error(1000 + i, act_in.flip(1)) for i in range(4)]).mean()
        assert wrong > 3 * right
        for steps in (1, 2, 4, 8):
            stream = WorldStream(model, config, ImaginationConfig(sampling_steps=steps), 1, None)
            draw = generator("samples", steps)
            stream.observe(latents[:, :1], actions[:, :1], mask[:, :1], normal(1, 1, 2, 4))
            frames = [stream.generate(actions[:, t], draw)[0] for t in range(1, 8)]
            assert (torch.cat(frames, dim=1) - latents[:, 1:]).abs().mean() < 0.15
