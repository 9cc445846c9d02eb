import json

import numpy as np
import pytest
from counter_env import Counter, play
from gymnasium import spaces
from recordings import imported, stamped, stamps, write_film

from dreamer4.actions import ActionSpace, Part
from dreamer4.data.importers.gymnasium import GymnasiumImporter
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.record import RecordEpisodes
from dreamer4.data.importers.spaces import action_rows, action_space, space_from_json, space_to_json
from dreamer4.errors import DataError

NESTED = spaces.Dict(
    {
        "grip": spaces.MultiBinary(2),
        "hand": spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(-1, 1, (2,), np.float32))),
        "modes": spaces.MultiDiscrete([2, 4]),
    }
)


def test_what_the_wrapper_records_is_imported_without_loss(tmp_path):
    """Reward k arrives with frame k, because action k - 1 has caused it."""
    acts = play(RecordEpisodes(Counter(), tmp_path))
    importer = GymnasiumImporter(tmp_path, Options())
    (episode,) = imported(importer, "rl-video-episode-0")
    assert importer.recording.actions == ActionSpace((Part("action", "categorical", 4),))
    assert np.array_equal(episode.frames_THWC, np.stack([stamped(number) for number in range(71)]))
    assert episode.act_out_TA[:-1, 0].tolist() == acts
    assert episode.act_known_T.tolist() == [True] * 70 + [False]
    assert episode.reward_T == pytest.approx(np.arange(71) / 10)
    assert (episode.terminal, episode.truncated, episode.success) == (True, False, True)


def test_ends_at_a_limit_are_no_ends_of_the_game(tmp_path):
    play(RecordEpisodes(Counter(9, truncates=True), tmp_path))
    (episode,) = imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-0")
    assert (episode.terminal, episode.truncated) == (False, True)


def test_unfinished_episodes_leave_nothing_and_existing_ones_are_kept(tmp_path):
    env = RecordEpisodes(Counter(5), tmp_path)
    play(env)
    env.reset()
    env.step(0)
    env.close()
    play(RecordEpisodes(Counter(5), tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl-video-episode-0.npz", "rl-video-episode-1.npz"]


def test_nested_action_spaces_become_parts_in_order(tmp_path):
    acts = play(RecordEpisodes(Counter(6, space=NESTED), tmp_path))
    importer = GymnasiumImporter(tmp_path, Options())
    assert importer.recording.actions.parts == (
        Part("grip", "binary", 2),
        Part("hand.0", "categorical", 3),
        Part("hand.1", "continuous", 2),
        Part("modes.0", "categorical", 2),
        Part("modes.1", "categorical", 4),
    )
    (episode,) = imported(importer, "rl-video-episode-0")
    importer.recording.actions.check(episode.act_out_TA[:-1])
    first = acts[0]
    row = [*first["grip"], first["hand"][0] - 1, *first["hand"][1], *first["modes"]]
    assert episode.act_out_TA[0] == pytest.approx(np.array(row, np.float32))


def test_spaces_survive_json_and_unknown_ones_are_refused():
    assert action_space(space_from_json(json.dumps(space_to_json(NESTED)))) == action_space(NESTED)
    with pytest.raises(DataError, match="of space Text"):
        action_space(spaces.Text(5))
    with pytest.raises(DataError, match="not an action space"):
        space_from_json('{"type": "Discrete"}')
    with pytest.raises(DataError, match="2 rows where 3 are wanted"):
        action_rows(spaces.Discrete(3), np.zeros(2), 3)


def test_a_film_of_record_video_belongs_to_the_actions_beside_it(tmp_path):
    play(RecordEpisodes(Counter(40), tmp_path, frames=False))
    write_film(tmp_path / "rl-video-episode-0.mp4", (stamped(number) for number in range(41)))
    importer = GymnasiumImporter(tmp_path, Options())
    (episode,) = imported(importer, "rl-video-episode-0")
    assert stamps(episode.frames_THWC) == list(range(41))
    assert episode.act_known_T.sum() == 40


@pytest.mark.parametrize("frames", [40, 42])
def test_a_film_of_another_length_than_its_actions_is_an_error(tmp_path, frames):
    """Negative control of the test above."""
    play(RecordEpisodes(Counter(40), tmp_path, frames=False))
    write_film(tmp_path / "rl-video-episode-0.mp4", (stamped(number) for number in range(frames)))
    with pytest.raises(DataError, match="has 40 actions, so 41 frames are wanted"):
        imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-0")


def test_a_film_alone_has_no_known_action(tmp_path):
    write_film(tmp_path / "rl-video-episode-0.mp4", (stamped(number) for number in range(20)))
    (episode,) = imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-0")
    assert not episode.act_known_T.any()


def test_damaged_files_and_pickles_are_errors_that_name_the_file(tmp_path):
    play(RecordEpisodes(Counter(5), tmp_path))
    path = tmp_path / "rl-video-episode-0.npz"
    whole = path.read_bytes()
    for content in (b"", b"PK" + whole[100:], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"episode-0\.npz'"):
            imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-0")
    np.savez(path, header=np.array([{"format": "dreamer4-gymnasium"}], dtype=object))
    with pytest.raises(DataError, match="lacks 'header' or holds it damaged"):
        imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-0")


def test_episodes_of_another_action_space_are_refused(tmp_path):
    play(RecordEpisodes(Counter(5), tmp_path))
    play(RecordEpisodes(Counter(5, space=spaces.Discrete(9)), tmp_path))
    with pytest.raises(DataError, match="another action space"):
        imported(GymnasiumImporter(tmp_path, Options()), "rl-video-episode-1")


def test_environments_that_do_not_render_pictures_are_refused(tmp_path):
    env = Counter()
    env.render_mode = "human"
    with pytest.raises(DataError, match="render_mode='rgb_array'"):
        RecordEpisodes(env, tmp_path)
