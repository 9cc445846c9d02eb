"""What imitation, offline RL and PMPO reach on a key-door-goal task whose model is exact: the task without the model.

Recordings are those of `dreamer4 data collect`, as coordinates instead of pixels. PMPO is `learners.policy`, on
rollouts of the simulator itself from recorded states; so what it reaches is what a perfect world model would give.
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from minigrid.core.constants import DIR_TO_VEC

from dreamer4.actions import ActionSpace
from dreamer4.envs.planners import Demonstrator, Mixture
from dreamer4.envs.registry import make
from dreamer4.heads import PolicyHead
from dreamer4.rng import generator, numpy_generator, seed_of
from dreamer4.types import Clip, Rollout
from learners.iql import IQLModel, IQLTraining
from learners.optim import OptimConfig
from learners.policy import PolicyLearner, PolicyTraining

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
AX, AY, DIRECTION, KX, KY, CARRIED, DX, DY, DOOR = range(9)  # columns of a state; DOOR: 0 locked, 1 closed, 2 open
AHEAD = np.array(DIR_TO_VEC)


def read_state(env: gym.Env[Any, Any]) -> np.ndarray:
    """The coordinates `[9]` of minigrid's environment."""
    base: Any = env.unwrapped
    items = {item.type: (i % base.width, i // base.width, item) for i, item in enumerate(base.grid.grid) if item}
    kx, ky, _ = items.get("key", (0, 0, None))
    dx, dy, door = items["door"]
    opened = 0 if door.is_locked else 2 if door.is_open else 1
    return np.array([*base.agent_pos, base.agent_dir, kx, ky, base.carrying is not None, dx, dy, opened], np.int64)


class Simulator:
    """minigrid's DoorKey for many states at once; `size` cells wide, `limit` steps long."""

    def __init__(self, size: int, limit: int):
        self.size, self.limit = size, limit

    def step(self, state_B9: np.ndarray, action_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The following states, and bool `[B]` whether the goal was reached."""
        s, a, last = state_B9.copy(), action_B, self.size - 1
        fx, fy = (state_B9[:, [AX, AY]] + AHEAD[s[:, DIRECTION]]).T
        door = (fx == s[:, DX]) & (fy == s[:, DY])
        wall = (fx == 0) | (fx == last) | (fy == 0) | (fy == last) | ((fx == s[:, DX]) & ~door)
        carried = s[:, CARRIED] == 1
        key = ~carried & (fx == s[:, KX]) & (fy == s[:, KY])
        goal = (fx == last - 1) & (fy == last - 1)
        s[:, DIRECTION] = (s[:, DIRECTION] + (a == RIGHT) - (a == LEFT)) % 4
        moves = (a == FORWARD) & ~wall & ~key & (~door | (s[:, DOOR] == 2))
        s[moves, AX], s[moves, AY] = fx[moves], fy[moves]
        taken = (a == PICKUP) & key
        s[taken, CARRIED], s[taken, KX], s[taken, KY] = 1, 0, 0
        dropped = (a == DROP) & carried & ~wall & ~door & ~goal
        s[dropped, CARRIED], s[dropped, KX], s[dropped, KY] = 0, fx[dropped], fy[dropped]
        turned = (a == TOGGLE) & door
        unlocked, swung = turned & (s[:, DOOR] == 0) & carried, turned & (state_B9[:, DOOR] > 0)
        s[unlocked, DOOR] = 2
        s[swung, DOOR] = 3 - s[swung, DOOR]
        return s, moves & goal

    def features(self, state_B9: np.ndarray) -> torch.Tensor:
        """One-hot coordinates `[..., M]`."""
        n = self.size**2
        cells = [state_B9[..., x] + self.size * state_B9[..., x + 1] for x in (AX, KX, DX)]
        key = np.where(state_B9[..., CARRIED] == 1, n, cells[1])
        parts = [(cells[0], n), (state_B9[..., DIRECTION], 4), (key, n + 1), (cells[2], n), (state_B9[..., DOOR], 3)]
        return torch.from_numpy(np.concatenate([np.eye(k, dtype=np.float32)[p] for p, k in parts], axis=-1))


@dataclass(frozen=True)
class Recordings:
    """Transitions of all episodes, end to end."""

    state_N9: np.ndarray
    action_N: np.ndarray
    reward_N: np.ndarray
    following_N9: np.ndarray
    terminal_N: np.ndarray
    episode_N: np.ndarray
    return_E: np.ndarray

    def of(self, chosen_E: np.ndarray) -> "Recordings":
        kept = chosen_E[self.episode_N]
        return replace(
            self, **{name: value[kept] for name, value in vars(self).items() if name.endswith(("_N", "_N9"))}
        )


def record(name: str, mixture: Mixture, episodes: int, seed: int) -> Recordings:
    env, rows, returns = make(name).unwrapped, [], []
    for episode in range(episodes):
        env.reset(seed=2**31 + seed_of(seed, "recording", episode) % 2**31)
        player = Demonstrator(name, env, mixture, numpy_generator(seed, "demonstrator", episode))
        over, total = False, 0.0
        while not over:
            before, action = read_state(env), player.act()
            _, reward, terminated, truncated, _ = env.step(action)
            rows.append((before, action, reward, read_state(env), terminated, episode))
            over, total = terminated or truncated, total + float(reward)
        returns.append(total)
    state, action, reward, following, terminal, episode = (np.array(column) for column in zip(*rows, strict=True))
    return Recordings(state, action, reward, following, terminal, episode, np.array(returns))


def starts(name: str, count: int) -> np.ndarray:
    """First states of the evaluation's episodes."""
    env, states = make(name).unwrapped, []
    for episode in range(count):
        env.reset(seed=1_000_000 + episode)
        states.append(read_state(env))
    return np.stack(states)


@torch.no_grad()
def play(simulator: Simulator, policy: PolicyHead, state_B9: np.ndarray, seed: int, sample: bool) -> dict[str, float]:
    """Plays every start to its end; success and mean return."""
    noise, won, total = generator(seed, "play"), np.zeros(len(state_B9), bool), np.zeros(len(state_B9))
    for step in range(1, simulator.limit + 1):
        chosen = policy(simulator.features(state_B9)).at(0)
        action = (chosen.sample(noise) if sample else chosen.mode())[:, 0].long().numpy()
        state_B9, goal = simulator.step(state_B9, action)
        total += (goal & ~won) * (1 - 0.9 * step / simulator.limit)
        won |= goal
    return {"success": float(won.mean()), "return": float(total.mean())}


def clone(simulator: Simulator, data: Recordings, head: PolicyHead, steps: int, seed: int) -> PolicyHead:
    """Behaviour cloning; `head` is where it starts and is left as it is."""
    head = copy.deepcopy(head)
    x, a = simulator.features(data.state_N9), torch.from_numpy(data.action_N).float()[:, None]
    optimizer, noise = torch.optim.AdamW(head.parameters(), lr=1e-3), generator(seed, "clone")
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=noise)
        loss = -head(x[rows]).at(0).log_prob(a[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def imagine(
    simulator: Simulator, policy: PolicyHead, data: Recordings, shape: tuple[int, int], reward: float, seed: int, i: int
) -> Rollout:
    """Rollout number `i` of the true simulator: so many recorded states, continued for so many steps."""
    batch, horizon = shape
    random, noise = numpy_generator(seed, "contexts", i), generator(seed, "imagination", i)
    state = data.state_N9[random.integers(len(data.state_N9), size=batch)]
    features, actions, log_probs, goals = [simulator.features(state)], [], [], []
    for _ in range(horizon):
        chosen = policy(features[-1]).at(0)
        action = chosen.sample(noise)
        state, goal = simulator.step(state, action[:, 0].long().numpy())
        features.append(simulator.features(state))
        actions.append(action)
        log_probs.append(chosen.log_prob(action))
        goals.append(goal)
    goal_BT = np.stack(goals, axis=1).astype(np.float32)
    return Rollout(
        features_BTM=torch.stack(features, 1).numpy(),
        act_out_BTA=torch.stack(actions, 1).numpy(),
        log_prob_BT=torch.stack(log_probs, 1).numpy(),
        reward_BT=goal_BT * np.float32(reward),
        continue_BT=1 - goal_BT,
        task_B=np.zeros(batch, np.int64),
        index=i,
        version=i,
    )


def improve(
    simulator: Simulator, prior: PolicyHead, data: Recordings, training: PolicyTraining, horizon: int, seed: int
) -> PolicyHead:
    """PMPO with `batch` rollouts of 16 steps per update, or as many steps in shorter ones."""
    policy, batch = copy.deepcopy(prior), training.batch * 16 // horizon
    reward = float(data.reward_N[data.reward_N > 0].mean())  # a model without a clock can know no more
    learner = PolicyLearner(policy, simulator.features(data.state_N9[:1]).shape[-1], training, seed)
    for i in range(training.steps):
        learner.step(i, [imagine(simulator, policy, data, (batch, horizon), reward, seed, i)])
    return policy


def iql(
    simulator: Simulator, prior: PolicyHead, data: Recordings, training: IQLTraining, discount: float, seed: int
) -> PolicyHead:
    """Implicit Q-learning on the recorded transitions, from the cloned policy."""
    x, y = simulator.features(data.state_N9), simulator.features(data.following_N9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "iql weights"))
        model = IQLModel(copy.deepcopy(prior), x.shape[-1], training)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, noise = torch.optim.AdamW(trained, lr=training.optim.lr), generator(seed, "iql")
    for _ in range(training.steps):
        rows = torch.randint(len(x), (training.batch * training.length,), generator=noise)
        clip = pairs(data, rows.numpy())
        losses = model.losses(torch.stack([x[rows], y[rows]], dim=1), clip, training, discount)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        model.follow(training.target_rate)
    return model.policy


def pairs(data: Recordings, rows_N: np.ndarray) -> Clip:
    """Transitions as clips of two frames."""

    def two(second_N: np.ndarray, first: float = 0) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.full(len(rows_N), first), second_N], axis=1)).float()

    nothing = torch.zeros(len(rows_N), 2, dtype=torch.int64)
    known = torch.ones(len(rows_N), 2, dtype=torch.bool)
    action_BTA = two(data.action_N[rows_N]).flip(1)[..., None]
    reward, goes_on = two(data.reward_N[rows_N]), two(1 - data.terminal_N[rows_N], 1)
    return Clip(action_BTA, known, action_BTA, known, reward, known, goes_on, nothing, nothing)


def experiment(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Success and return of every method."""
    name, seed = options.env, options.seed
    limit = gym.spec(name).kwargs["max_steps"] if options.limit is None else options.limit
    gym.registry[name].kwargs["max_steps"] = limit
    simulator = Simulator(gym.spec(name).kwargs["size"], limit)
    mixture = Mixture(options.careful_share, options.epsilon, options.epsilon, options.dawdling, options.lost_share)
    data, first = record(name, mixture, options.recordings, seed), starts(name, options.episodes)
    returns = data.return_E
    results = {"demonstrator": {"success": float((returns > 0).mean()), "return": float(returns.mean())}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "policy weights"))
        head = PolicyHead(simulator.features(first).shape[-1], 128, 2, 1, ActionSpace.discrete(7))
    start = time.process_time()

    def note(label: str, policy: PolicyHead) -> None:
        nonlocal start
        sampled, greedy = (play(simulator, policy, first, seed, sample) for sample in (True, False))
        spent = time.process_time() - start
        results[label] = {**sampled, "greedy_success": greedy["success"], "cpu_seconds": spent}
        print(f"{label:24}", {key: round(value, 3) for key, value in results[label].items()}, flush=True)
        start = time.process_time()

    print(f"{'demonstrator':24}", results["demonstrator"], f"in {len(data.action_N)} steps, at most {limit} each")
    bc = clone(simulator, data, head, options.clone_steps, seed)
    note("BC", bc)
    good = returns > 0
    chosen = {"filtered BC, success": good}
    for share in (0.3, 0.1, 0.03):
        chosen[f"filtered BC, best {share:g}"] = returns >= np.sort(returns)[-max(1, round(share * len(returns)))]
    for label, kept in chosen.items():
        note(label, clone(simulator, data.of(kept & good), bc, options.clone_steps // 2, seed))
    for temperature in options.temperatures:
        training = IQLTraining(options.iql_steps, 32, 4, temperature=temperature, hidden=128)
        note(f"IQL, temperature {temperature:g}", iql(simulator, bc, data, training, options.discount, seed))
    rate = OptimConfig(lr=options.lr)
    training = PolicyTraining(
        options.updates, discount=options.discount, beta=options.beta, policy_optim=rate, value_optim=rate
    )
    for horizon in options.horizons:
        note(f"PMPO, horizon {horizon}", improve(simulator, bc, data, training, horizon, seed))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="MiniGrid-DoorKey-6x6-Hurry-v0")
    parser.add_argument("--limit", type=int, help="of steps, instead of the environment's")
    parser.add_argument("--recordings", type=int, default=2000)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--dawdling", type=int, default=2)
    parser.add_argument("--careful-share", type=float, default=0.0)
    parser.add_argument("--lost-share", type=float, default=0.0)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--clone-steps", type=int, default=800)
    parser.add_argument("--iql-steps", type=int, default=2000)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.03, 0.01, 0.003])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--horizons", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--discount", type=float, default=0.97)
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = experiment(options)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
