import pytest
import torch
from torch import Tensor

from dreamer4.actions import ActionSpace
from dreamer4.distributions import ActionDistribution
from dreamer4.pmpo import PMPOCounts, pmpo_counts, pmpo_loss
from dreamer4.returns import lambda_returns
from dreamer4.rng import generator

LOG_PROB, ADVANTAGE = torch.tensor([[-1.0, -2.0, -3.0, -4.0]]), torch.tensor([[2.0, -1.0, 0.0, 0.5]])
NO_KL = torch.zeros(1, 4)


def loss_and_gradient(log_prob: Tensor, advantage: Tensor, **options) -> tuple[Tensor, Tensor]:
    log_prob = log_prob.clone().requires_grad_()
    loss = pmpo_loss(log_prob, advantage, torch.zeros_like(log_prob), **options).loss
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return loss.detach(), gradient


def batch(shape: tuple[int, ...] = (4, 6)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noise = generator("pmpo")
    log_prob = -torch.rand(shape, generator=noise, dtype=torch.float64) * 3
    advantage = torch.randn(shape, generator=noise, dtype=torch.float64)
    kl, weight = torch.rand((2, *shape), generator=noise, dtype=torch.float64)
    return log_prob, advantage, kl, weight


def test_known_loss():
    """Invariant 45: an advantage of 0 counts as positive."""
    loss, gradient = loss_and_gradient(LOG_PROB, ADVANTAGE)
    torch.testing.assert_close(loss, torch.tensor(1 / 3))
    torch.testing.assert_close(gradient, torch.tensor([[-1 / 6, 1 / 2, -1 / 6, -1 / 6]]))


def test_terms_are_those_of_equation_11():
    log_prob, advantage, kl, _ = batch()
    terms = pmpo_loss(log_prob, advantage, kl, alpha=0.7, beta=0.2)
    torch.testing.assert_close(terms.positive, -0.7 * log_prob[advantage >= 0].mean())
    torch.testing.assert_close(terms.negative, 0.3 * log_prob[advantage < 0].mean())
    torch.testing.assert_close(terms.kl, 0.2 * kl.mean())
    torch.testing.assert_close(terms.loss, terms.positive + terms.negative + terms.kl)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_a_set_without_members_contributes_nothing(sign):
    """Invariant 45."""
    loss, gradient = loss_and_gradient(LOG_PROB, torch.full((1, 4), sign))
    assert float(loss) == pytest.approx(-1.25 if sign < 0 else 1.25)
    torch.testing.assert_close(gradient, torch.full((1, 4), 0.125 if sign < 0 else -0.125))


def test_only_signs_of_advantages_matter():
    """Invariant 46. Negative control: weighting by the advantage (plain policy gradient) does depend on scale."""
    log_prob, advantage, _, _ = batch()
    loss, gradient = loss_and_gradient(log_prob, advantage)
    for scale in (1e-6, 1e6):
        scaled_loss, scaled_gradient = loss_and_gradient(log_prob, scale * advantage)
        assert torch.equal(loss, scaled_loss)
        assert torch.equal(gradient, scaled_gradient)
    assert not torch.allclose((log_prob * advantage).mean(), (log_prob * 10 * advantage).mean())


def test_copies_of_negative_samples_change_nothing():
    """Invariant 46: each set has its own average. Negative control: one average over both sets does change."""
    copies = (torch.tensor([[-2.0, -2.0]]), torch.tensor([[-1.0, -1.0]]))
    more_log_prob, more_advantage = torch.cat([LOG_PROB, copies[0]], 1), torch.cat([ADVANTAGE, copies[1]], 1)
    before = pmpo_loss(LOG_PROB, ADVANTAGE, NO_KL)
    after = pmpo_loss(more_log_prob, more_advantage, torch.zeros(1, 6))
    torch.testing.assert_close(after.negative, before.negative)
    torch.testing.assert_close(after.positive, before.positive)
    joint, more_joint = ((a.sign() * p).mean() for a, p in ((ADVANTAGE, LOG_PROB), (more_advantage, more_log_prob)))
    assert joint != more_joint


def test_one_step_makes_good_actions_likelier_and_bad_ones_less_likely():
    """Invariant 47."""
    space = ActionSpace.discrete(4)
    logits = torch.randn(1, 8, 4, generator=generator("logits")).requires_grad_()
    prior = ActionDistribution(space, [logits.detach().clone()])
    actions = prior.sample(generator("actions"))
    advantage = torch.tensor([[1.0, -1.0] * 4])
    policy = ActionDistribution(space, [logits])
    pmpo_loss(policy.log_prob(actions), advantage, policy.kl(prior)).loss.backward()
    assert logits.grad is not None
    stepped = ActionDistribution(space, [logits.detach() - 0.1 * logits.grad])
    change = stepped.log_prob(actions) - prior.log_prob(actions)
    assert (change.sign() == advantage.sign()).all()


def test_no_gradient_flows_into_advantages_and_weights():
    """Invariant 49."""
    log_prob, advantage, kl, weight = (x.requires_grad_() for x in batch())
    pmpo_loss(log_prob, advantage, kl, weight).loss.backward()
    assert log_prob.grad is not None
    assert kl.grad is not None
    assert advantage.grad is None
    assert weight.grad is None


def test_steps_beyond_the_end_of_an_episode_do_not_count():
    log_prob, advantage, kl, _ = batch()
    weight = torch.ones_like(log_prob)
    weight[:, 3:] = 0
    whole = pmpo_loss(log_prob, advantage, kl, weight)
    cut = pmpo_loss(log_prob[:, :3], advantage[:, :3], kl[:, :3])
    for name in ("loss", "positive", "negative", "kl"):
        torch.testing.assert_close(getattr(whole, name), getattr(cut, name))
    assert not torch.allclose(pmpo_loss(log_prob, advantage, kl).loss, cut.loss), "negative control"


def test_fractional_weights_are_shares_of_a_step():
    log_prob, advantage, kl, weight = batch()
    terms = pmpo_loss(log_prob, advantage, kl, weight)
    good = advantage >= 0
    torch.testing.assert_close(terms.positive, -0.5 * (weight * log_prob)[good].sum() / weight[good].sum())
    torch.testing.assert_close(terms.kl, 0.3 * (weight * kl).sum() / weight.sum())
    torch.testing.assert_close(pmpo_loss(log_prob, advantage, kl, 1e-3 * weight).loss, terms.loss)


def test_two_ranks_make_the_loss_of_one():
    """Invariant 52. Negative control: averaging the losses of ranks that count for themselves is another loss."""
    log_prob, advantage, kl, weight = batch()
    log_prob.requires_grad_()
    whole = pmpo_loss(log_prob, advantage, kl, weight).loss
    (whole_gradient,) = torch.autograd.grad(whole, log_prob)

    halves = [tuple(x[rows] for x in (log_prob, advantage, kl, weight)) for rows in (slice(0, 1), slice(1, 4))]
    own_counts = [pmpo_counts(advantage, weight) for _, advantage, _, weight in halves]
    counts = PMPOCounts(*(torch.stack(column).sum() for column in zip(*own_counts, strict=True)))
    ranks = [pmpo_loss(*half, counts=counts).loss for half in halves]
    torch.testing.assert_close(sum(ranks), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(ranks), log_prob)[0], whole_gradient)
    apart = [pmpo_loss(*half).loss for half in halves]
    assert not torch.allclose(sum(apart) / 2, whole)


class Chain:
    """States 0 to 4, actions left and right; arriving at state 4 gives reward 1 and ends the episode."""

    space = ActionSpace.discrete(2)
    prior_logits = torch.tensor([0.5, -0.5]).expand(5, 2)

    def rollout(self, logits: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States `[B, H + 1]`, actions `[B, H, 1]`, rewards and continues `[B, H]`."""
        state = torch.randint(4, (256,), generator=noise)
        states, actions = [state], []
        for _ in range(8):
            action = ActionDistribution(self.space, [logits[state]]).sample(noise)
            state = torch.where(state == 4, 4, (state + 2 * action[:, 0].long() - 1).clamp(0, 4))
            states.append(state)
            actions.append(action)
        states_BT = torch.stack(states, 1)
        arrived = (states_BT[:, 1:] == 4) & (states_BT[:, :-1] != 4)
        return states_BT, torch.stack(actions, 1), arrived.float(), (states_BT[:, 1:] != 4).float()

    def improve(self, beta: float) -> Tensor:
        """Probability of going right in states 0 to 3 after training."""
        logits, value = self.prior_logits.clone().requires_grad_(), torch.zeros(5)
        optimizer = torch.optim.Adam([logits], lr=0.03)
        for step in range(60):
            states, actions, reward, keeps = self.rollout(logits.detach(), generator("chain", step))
            advantage = lambda_returns(reward, keeps, value[states], 0.9, 0.95) - value[states[:, :-1]]
            alive = (states[:, :-1] != 4).float()
            here = ActionDistribution(self.space, [logits[states[:, :-1]]])
            prior = ActionDistribution(self.space, [self.prior_logits[states[:, :-1]]])
            loss = pmpo_loss(here.log_prob(actions), advantage, here.kl(prior), alive, beta=beta).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for s in range(4):
                visits = (states[:, :-1] == s).float()
                value[s] += 0.2 * (advantage * visits).sum() / visits.sum().clamp_min(1)
        return logits.detach().softmax(-1)[:4, 1]

    def mean_return(self, logits: Tensor) -> float:
        return float(self.rollout(logits, generator("evaluation"))[2].sum(1).mean())


def test_policy_gets_better_than_its_prior_in_a_chain():
    """Invariant 53. Negative control: with an overwhelming weight on the prior nothing changes."""
    chain = Chain()
    prior = chain.prior_logits.softmax(-1)[:4, 1]
    improved = chain.improve(beta=0.3)
    assert (improved > prior + 0.2).all()
    held = chain.improve(beta=1e4)
    assert (held - prior).abs().max() < 0.02
    logits = torch.log(torch.stack([1 - improved, improved], -1))
    assert chain.mean_return(torch.cat([logits, logits[-1:]])) > chain.mean_return(chain.prior_logits) + 0.2
