import math

import pytest
import torch
from torch import nn

from dreamer4.errors import ConfigError, NonFiniteError
from dreamer4.transformer import Transformer, TransformerConfig
from learners.optim import OptimConfig, Optimizer, check_finite


def quadratic(optimizer: Optimizer, module: nn.Linear, index: int, scale: float = 1.0) -> float:
    norm = optimizer.gradients(scale * module(torch.ones(1, 2)).square().sum())
    optimizer.apply(index)
    return float(norm)


def linear(bias: bool = True) -> nn.Linear:
    module = nn.Linear(2, 2, bias=bias)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 2, parameter.numel()).reshape(parameter.shape))
    return module


def test_constant_schedule_warms_up_linearly_and_stays():
    config = OptimConfig(lr=0.8, warmup_steps=4)
    assert [config.lr_at(i, 100) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert config.lr_at(10_000, 100) == 0.8


def test_the_first_update_has_the_full_rate_without_warm_up():
    assert OptimConfig(lr=0.8, warmup_steps=0).lr_at(0, 100) == 0.8


def test_cosine_schedule_falls_from_lr_to_its_final_share():
    config = OptimConfig(lr=2.0, warmup_steps=0, schedule="cosine", final_share=0.1)
    rates = [config.lr_at(i, 100) for i in range(101)]
    assert rates[0] == pytest.approx(2.0) and rates[100] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates == sorted(rates, reverse=True)
    assert config.lr_at(500, 100) == pytest.approx(0.2), "steps beyond the end must not rise again"


def test_cosine_schedule_warms_up_too():
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine")
    assert config.lr_at(0, 1000) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "linear"}, "'linear'"),
        ({"lr": 0.0}, "lr"),
        ({"clip": -1.0}, "clip"),
        ({"muon_lr": 0.0}, "muon_lr must be positive"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**change)


def test_betas_from_a_config_file_become_a_tuple():
    assert OptimConfig(betas=[0.9, 0.95]) == OptimConfig(betas=(0.9, 0.95))


def test_gradients_returns_the_norm_before_clipping_and_clips():
    module = linear(bias=False)
    optimizer = Optimizer(OptimConfig(clip=0.5), [module], 10)
    norm = optimizer.gradients(module(torch.ones(1, 2)).square().sum())
    clipped = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
    assert float(norm) > 0.5
    assert float(clipped) == pytest.approx(0.5, rel=1e-4)


def test_gradients_do_not_accumulate_over_updates():
    module = linear()
    optimizer = Optimizer(OptimConfig(), [module], 10)
    first = optimizer.gradients(module(torch.ones(1, 2)).square().sum())
    assert float(optimizer.gradients(module(torch.ones(1, 2)).square().sum())) == float(first)


def test_only_matrices_decay():
    module = linear()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = Optimizer(OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5), [module], 10)
    optimizer.gradients(0.0 * module(torch.ones(1, 2)).sum())  # a gradient of 0 leaves the decay alone
    optimizer.apply(0)
    assert torch.allclose(module.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias, before["bias"])


def test_parameters_without_a_gradient_stay_as_they_are():
    """Decay included: agent tokens belong to the world model before they are used."""
    used, idle = linear(), linear()
    optimizer = Optimizer(OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5), [used, idle], 10)
    quadratic(optimizer, used, 0)
    assert torch.equal(idle.weight, linear().weight)
    assert not torch.equal(used.weight, linear().weight)


def test_frozen_parameters_are_not_taken():
    frozen, free = linear().requires_grad_(False), linear()
    optimizer = Optimizer(OptimConfig(), [frozen, free], 10)
    assert {id(p) for p in optimizer.parameters} == {id(p) for p in free.parameters()}


def test_restored_moments_continue_exactly_and_fresh_ones_do_not():
    config = OptimConfig(lr=0.05, warmup_steps=2)
    whole = linear()
    optimizer = Optimizer(config, [whole], 10)
    for i in range(6):
        quadratic(optimizer, whole, i)

    first = linear()
    former = Optimizer(config, [first], 10)
    for i in range(3):
        quadratic(former, first, i)
    ends = []
    for state in (former.state(), {}):
        second = linear()
        second.load_state_dict(first.state_dict())
        later = Optimizer(config, [second], 10)
        later.restore({index: {k: v.clone() for k, v in moments.items()} for index, moments in state.items()})
        for i in range(3, 6):
            quadratic(later, second, i)
        ends.append(second.weight)
    assert torch.equal(ends[0], whole.weight)
    assert not torch.equal(ends[1], whole.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_name_stage_term_step_and_setting(bad):
    with pytest.raises(
        NonFiniteError, match=r"^dynamics: 'shortcut' is -?(nan|inf) at step 17;.*dynamics_training\.optim"
    ):
        check_finite("dynamics", 17, {"fine": 1.0, "shortcut": bad})
    with pytest.raises(NonFiniteError, match=r"\(policy\.policy_optim\.lr\)"):
        check_finite("policy", 17, {"value": bad}, "policy.policy_optim.lr")


def test_finite_values_pass():
    check_finite("dynamics", 0, {"shortcut": 1e30, "other": -1.0})


def test_a_fused_optimiser_goes_on_where_a_plain_one_was():
    """And the other way round: the same rule but for rounding, and one layout of its state."""

    def trained(kinds: list[bool]) -> list[torch.Tensor]:
        module, state = linear(), None
        for index, fused in enumerate(kinds):
            optimizer = Optimizer(OptimConfig(lr=0.1, warmup_steps=2), [module], 10, fused)
            if state is not None:
                optimizer.restore(state)
            quadratic(optimizer, module, index)
            state = optimizer.state()
        return [p.detach() for p in module.parameters()]

    plain = trained(4 * [False])
    for kinds in ([True, True, True, True], [False, True, False, True]):
        torch.testing.assert_close(trained(kinds), plain)
    forgetful = linear()
    for index in range(4):
        quadratic(Optimizer(OptimConfig(lr=0.1, warmup_steps=2), [forgetful], 10), forgetful, index)
    assert not torch.allclose(forgetful.weight, plain[0])


# Muon


class Net(nn.Module):
    """An input, two transformer layers, and an output; only the layers' four matrices each are Muon's."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.layers = Transformer(TransformerConfig(8, 2, 2, 1, 12, 2, 4))
        self.last = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)[:, :, None]
        return self.last(self.layers(x, torch.zeros(1, 2), None))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


MUON = OptimConfig(lr=1e-3, muon_lr=1e-2, warmup_steps=2, weight_decay=0.0)


def learn(optimizer: Optimizer, model: Net, indices: range) -> None:
    for index in indices:
        x = torch.sin(torch.arange(24.0).reshape(2, 4, 3) + index)
        optimizer.gradients((model(x) - 1).square().mean())
        optimizer.apply(index)


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest():
    model = net()
    taken = [parameters(rule) for rule, _ in Optimizer(MUON, [model], 10).rules]
    matrices = {id(p) for p in model.layers.parameters() if p.ndim == 2}
    assert len(matrices) == 8 and taken[1] == matrices
    assert taken[0] == {id(p) for p in model.parameters()} - matrices


def parameters(rule: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in rule.param_groups for p in group["params"]}


def test_muon_moves_a_matrix_equally_far_in_all_directions_of_its_gradient_and_adamw_does_not():
    spreads = []
    for config in (MUON, OptimConfig(lr=1e-2, warmup_steps=2, weight_decay=0.0)):
        model = net()
        matrix = next(p for p in model.layers.parameters() if p.ndim == 2)  # three inputs: a gradient of rank 3
        before = matrix.detach().clone()
        learn(Optimizer(config, [model], 10), model, range(1))
        values = torch.linalg.svdvals(matrix.detach() - before)
        spreads.append(float(values[2] / values[0]))
    assert spreads[0] > 0.5 and spreads[1] < 0.001


def test_muon_warms_up_and_decays_with_adamw():
    model = net()
    optimizer = Optimizer(MUON, [model], 10)
    learn(optimizer, model, range(1))
    assert [rule.param_groups[0]["lr"] for rule, _ in optimizer.rules] == pytest.approx([0.5e-3, 0.5e-2])


def test_muons_restored_momentum_continues_exactly_and_a_fresh_one_does_not():
    whole, first = net(), net()
    learn(Optimizer(MUON, [whole], 10), whole, range(6))
    former = Optimizer(MUON, [first], 10)
    learn(former, first, range(3))
    ends = []
    for state in (former.state(), {i: one for i, one in former.state().items() if "exp_avg" in one}):
        second = net()
        second.load_state_dict(first.state_dict())
        later = Optimizer(MUON, [second], 10)
        later.restore({i: {name: value.clone() for name, value in one.items()} for i, one in state.items()})
        learn(later, second, range(3, 6))
        ends.append(torch.cat([p.detach().flatten() for p in second.parameters()]))
    goal = torch.cat([p.detach().flatten() for p in whole.parameters()])
    assert torch.equal(ends[0], goal) and not torch.equal(ends[1], goal)


def test_a_module_without_layers_is_adamws_whatever_muons_rate():
    assert len(Optimizer(MUON, [linear()], 10).rules) == 1
