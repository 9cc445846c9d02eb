from contextlib import nullcontext
from fractions import Fraction

import av
import numpy as np
import pytest
from recordings import imported, stamped, stamps, write_film

from dreamer4.actions import ActionSpace, Part
from dreamer4.data.importers import film
from dreamer4.data.importers.canvas import Canvas, as_rgb
from dreamer4.data.importers.film import at_rate, frame_rate, frames_between, frames_of
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.video import VideoImporter
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError


def test_every_frame_comes_once_in_order_and_without_loss_where_the_film_has_none(tmp_path):
    frames = [stamped(number) for number in range(100)]
    read = list(frames_of(write_film(tmp_path / "a.mp4", frames, codec="libx264rgb")))
    assert np.array_equal(np.stack(read), np.stack(frames))
    lossy = list(frames_of(write_film(tmp_path / "b.mp4", frames)))
    assert stamps(np.stack(lossy)) == list(range(100))


@pytest.mark.parametrize(("first", "count"), [(0, 5), (1, 1), (29, 40), (37, 63), (99, 1)])
def test_a_part_of_a_film_begins_at_exactly_the_asked_frame(tmp_path, first, count):
    """Key frames are every 30 frames: what lies before is decoded and not shown. 12 frames per second don't divide."""
    path = write_film(tmp_path / "a.mp4", (stamped(number) for number in range(100)), rate=12)
    read = list(frames_between(path, first / 12, count))
    assert stamps(np.stack(read)) == list(range(first, first + count))
    rounded = list(frames_between(path, round(first / 12, 3), count))
    assert stamps(np.stack(rounded)) == list(range(first, first + count))


def test_a_film_that_ends_before_the_asked_frames_is_an_error(tmp_path):
    path = write_film(tmp_path / "a.mp4", (stamped(number) for number in range(20)))
    with pytest.raises(DataError, match="ends 3 frames early"):
        list(frames_between(path, 0.5, 13))


@pytest.mark.parametrize("after", [5, 10, 20, 25, 60])
def test_another_rate_shows_the_latest_frame_and_keeps_the_time(after):
    """Negative control: without conversion nothing is dropped or repeated."""
    shown = list(at_rate((np.full(1, number) for number in range(40)), Fraction(20), Fraction(after)))
    assert len(shown) == 40 * after / 20
    assert [int(frame[0]) for frame in shown] == [int(k * 20 / after) for k in range(len(shown))]
    same = list(at_rate((np.full(1, number) for number in range(40)), Fraction(20), Fraction(20)))
    assert [int(frame[0]) for frame in same] == list(range(40))


def test_damaged_films_are_an_error_that_names_the_file(tmp_path):
    path = write_film(tmp_path / "a.mp4", (stamped(number) for number in range(60)))
    whole = path.read_bytes()
    cases = {"empty": b"", "text": b"hello" * 100, "cut": whole[: len(whole) // 2], "head": whole[:64]}
    for name, content in cases.items():
        broken = tmp_path / f"{name}.mp4"
        broken.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.mp4'"):
            list(frames_of(broken))
    with pytest.raises(DataError, match="damaged or no film"):
        list(frames_of(tmp_path / "absent.mp4"))


def test_a_film_that_was_cut_behind_its_table_of_contents_is_an_error(tmp_path):
    """With the table at the front a cut film opens and plays, up to the cut."""
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in range(80):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stamped(number), format="rgb24")))
        container.mux(stream.encode())
    assert len(list(frames_of(path))) == 80
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=r"fast\.mp4' (was cut|is damaged)"):
        list(frames_of(path))


def test_bit_flips_in_a_film_end_in_an_error_or_all_frames(tmp_path):
    """The decoder can't tell a flipped colour from a right one, but never hangs, crashes or loses frames silently."""
    path, random = write_film(tmp_path / "a.mp4", (stamped(number) for number in range(30))), np.random.default_rng(0)
    whole, caught = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(60):
        flipped = whole.copy()
        flipped[random.integers(len(whole), size=3)] ^= np.uint8(1 << random.integers(8))
        path.write_bytes(flipped.tobytes())
        try:
            assert len(list(frames_of(path))) == 30
        except DataError:
            caught += 1
    assert caught > 10


def test_sound_alone_is_no_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no pictures"):
        list(frames_of(tmp_path / "a.mp4"))


def test_letterbox_keeps_the_picture_whole_stretch_and_crop_fill_the_frame(tmp_path):
    wide = np.zeros((50, 200, 3), np.uint8)
    wide[:, 50:150] = 200
    boxed, stretched, cropped = (
        Canvas(100, 100, fit).place(wide, tmp_path) for fit in ("letterbox", "stretch", "crop")
    )
    assert (boxed[:37] == 0).all()
    assert (boxed[63:] == 0).all()
    assert boxed[50, 30:70].min() > 190
    assert stretched[:, 30:70].min() > 190
    assert stretched[:, :20].max() < 10
    assert cropped[:, 30:70].min() > 190
    assert (cropped.astype(int)[:, 10:-10] > 150).all()
    assert Canvas(50, 200).place(wide, tmp_path) is wide
    padded = Canvas(64, 200).place(wide, tmp_path)
    assert np.array_equal(padded[7:57], wide), "only bars are needed: no pixel is changed"


def test_impossible_frames_are_refused(tmp_path):
    with pytest.raises(DataError, match="impossible"):
        Canvas(0, 64)
    with pytest.raises(DataError, match="say --frame 10x10"):
        Canvas(10, 10, "exact").place(np.zeros((12, 10, 3), np.uint8), tmp_path)
    with pytest.raises(DataError, match="not images"):
        as_rgb(np.zeros((5, 17), np.float32), "the observations")
    assert as_rgb(np.ones((2, 8, 9), np.uint8), "grey").shape == (2, 8, 9, 3)


def test_films_in_a_folder_are_episodes_without_a_known_action(tmp_path):
    for name, count in (("b/two.mkv", 70), ("one.mp4", 30), ("notes.mp4.txt", 0)):
        if count:
            write_film(tmp_path / name, (stamped(number) for number in range(count)))
    importer = VideoImporter(tmp_path, Options())
    assert importer.sources() == ["b/two.mkv", "one.mp4"]
    assert importer.recording.frame == (64, 96, 3)
    ((two,), (one,)) = (imported(importer, source) for source in importer.sources())
    assert stamps(two.frames_THWC) == list(range(70))
    assert not two.act_known_T.any()
    assert one.length == 30


def test_films_take_the_action_space_of_the_labelled_recordings_they_will_be_mixed_with(tmp_path):
    write_film(tmp_path / "a.mp4", (stamped(number) for number in range(20)))
    space = ActionSpace((Part("keys", "binary", 4), Part("stick", "continuous", 2)))
    like = Recording("game", (32, 32, 3), space, ("win", "lose"))
    importer = VideoImporter(tmp_path / "a.mp4", Options(like=like, fps=Fraction(5)))
    assert importer.recording == Recording("game", (64, 96, 3), space, ("win", "lose"))
    (episode,) = imported(importer, "a.mp4")
    assert episode.act_out_TA.shape == (5, 6)
    assert stamps(episode.frames_THWC) == [0, 4, 8, 12, 16]


def test_films_of_several_sizes_need_a_word_from_the_user(tmp_path):
    write_film(tmp_path / "a.mp4", [stamped(0)] * 2)
    write_film(tmp_path / "b.mp4", [stamped(0, 80, 96)] * 2)
    with pytest.raises(DataError, match=r"b\.mp4' has frames of 80x96"):
        imported(VideoImporter(tmp_path, Options()), "b.mp4")
    assert imported(VideoImporter(tmp_path, Options(Canvas(64, 96))), "b.mp4")[0].frames_THWC.shape == (2, 64, 96, 3)


def test_the_rate_of_a_film_is_the_stated_one(tmp_path):
    assert frame_rate(write_film(tmp_path / "a.mp4", [stamped(0)] * 9, rate=12)) == 12


@pytest.mark.parametrize(("level", "noticed"), [(av.logging.ERROR, True), (av.logging.WARNING, False)])
def test_what_the_decoder_only_says_in_its_log_is_an_error(tmp_path, monkeypatch, level, noticed):
    """Negative controls: a warning, and an error that somebody else has between two frames."""
    path, decoded = write_film(tmp_path / "a.mp4", (stamped(t) for t in range(6))), film._frames

    def muttering(container, stream):
        for number, found in enumerate(decoded(container, stream)):
            if number == 4:
                av.logging.log(level, "h264", "co located POCs unavailable")
            yield found

    monkeypatch.setattr(film, "_frames", muttering)
    given, before = [], av.logging.get_level()
    with pytest.raises(DataError, match="frame 4, co located POCs") if noticed else nullcontext():
        for frame in film.frames_of(path):
            given.append(frame)
            av.logging.log(av.logging.ERROR, "h264", "of another film")
    assert len(given) == (4 if noticed else 6) and av.logging.get_level() == before
