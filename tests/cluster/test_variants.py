from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.config import CONTROLS, IMITATION
from cluster.presets import laptop
from cluster.variants import IMITATIONS, VARIANTS, trained_by, training_of

RETURNS = np.array([0.0, 0.9, 0.5, 0.0, 0.7, 0.8, 0.7])
DATASET: Any = SimpleNamespace(returns_E=RETURNS, success_E=RETURNS > 0)
TRAINING = np.array([True, False, True, True, True, True, True])


def chosen(of: str, share: float = 0.5) -> list[int]:
    imitation = next(one for one in IMITATIONS.values() if one.of == of)
    return np.flatnonzero(imitation.chosen(DATASET, TRAINING, share)).tolist()


def test_clones_imitate_training_episodes_only_all_of_them_the_successful_or_the_best():
    assert chosen("all") == [0, 2, 3, 4, 5, 6]
    assert chosen("success") == [2, 4, 5, 6]
    assert chosen("return") == [4, 5, 6] and chosen("return", 1 / 3) == [4, 5]
    assert chosen("return", 0.01) == [5], "at least one"


def test_the_best_are_not_filled_up_with_the_worst():
    assert chosen("return", 1.0) == [2, 4, 5, 6], "the two that got nothing are left out"
    alike: Any = SimpleNamespace(returns_E=np.zeros(7))
    kept = IMITATIONS["filtered_bc_return"].chosen(alike, TRAINING, 0.5)
    assert np.flatnonzero(kept).tolist() == [0, 2, 3], "there is no worst one: the earlier"


def test_every_policy_is_trained_by_a_stage_or_by_nothing():
    stages = [trained_by(name) for name in ("random", "demonstrator", "bc", "pmpo", "iql@0.01", "horizon_1")]
    assert stages == [None, None, "agent", "policy", "iql", "horizon_1"]


def test_every_control_is_known_to_the_stages_and_trains_by_some_section():
    assert set(CONTROLS) == {*IMITATIONS, "iql", *VARIANTS} - {"policy"} and set(IMITATION) == set(IMITATIONS)
    config = replace(laptop(), scratch_bc_training=replace(laptop().agent_training, steps=77))
    assert training_of(config, "scratch_bc_return").steps == 77
    assert training_of(config, "filtered_bc_return") is config.filtered_bc_training
    assert training_of(config, "iql") is config.iql_training and training_of(config, "agent") is config.agent_training
