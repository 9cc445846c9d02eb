"""The causal tokenizer: what its latents may know, masking, padding, packing, streaming and health."""

import pytest
import torch
import torch.nn.functional as F
from factories import changed, frames_that_differ, normal, random_video, tiny_tokenizer
from torch import Tensor

from dreamer4.errors import ConfigError, DataError
from dreamer4.patches import moved, pack, padding, patchify, unpack, unpatchify
from dreamer4.rng import generator
from dreamer4.tokenizer import Tokenizer, TokenizerConfig


@torch.no_grad()
def encode(model: Tokenizer, video: Tensor, **arguments) -> Tensor:
    return model.encode(video, **arguments)


@torch.no_grad()
def decode(model: Tokenizer, latents: Tensor, **arguments) -> Tensor:
    return model.decode(latents, **arguments)


# Causality and streaming


def test_a_pixel_changes_the_latents_of_its_frame_and_of_later_frames_only():
    """Invariant 2."""
    model, video = tiny_tokenizer(window=8), random_video(2, 5)
    before = encode(model, video)
    for t in range(5):
        after = encode(model, changed(video, slice(None), t, 3, 3))
        assert frames_that_differ(before, after) == list(range(t, 5))


def test_a_latent_changes_its_frame_and_later_frames_only():
    """Invariant 2."""
    model, latents = tiny_tokenizer(window=8), torch.tanh(normal(2, 5, 2, 6))
    with torch.no_grad():
        before = model.decode_tokens(unpack(latents, 2))
        for t in range(5):
            after = model.decode_tokens(unpack(changed(latents, slice(None), t, 1, 2), 2))
            assert frames_that_differ(before, after) == list(range(t, 5))


def test_an_episode_does_not_see_the_one_before_it_in_the_row():
    model, video = tiny_tokenizer(), random_video(1, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    latents = encode(model, video, segment_BT=segments)
    assert torch.allclose(latents[:, 3:], encode(model, video[:, 3:]), atol=1e-5)
    images = decode(model, latents, segment_BT=segments)
    assert torch.allclose(images[:, 3:], decode(model, latents[:, 3:]), atol=1e-5)
    assert not torch.allclose(latents[:, 3:], encode(model, video)[:, 3:], atol=1e-2)


@pytest.mark.parametrize("chunks", [[1] * 11, [4, 1, 6]])
def test_streaming_equals_coding_the_clip(chunks: list[int]):
    """Invariant 16, beyond the reach of both transformers."""
    model, video = tiny_tokenizer(), random_video(2, 11)
    assert model.encoder.config.reach < 11
    latents = encode(model, video)
    images = decode(model, latents)
    encoder, decoder = model.init_cache(2), model.init_decoder_cache(2)
    pieces = [encode(model, piece, cache=encoder) for piece in video.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), latents, atol=1e-5)
    pieces = [decode(model, piece, cache=decoder) for piece in latents.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), images, atol=1e-5)


def test_single_frames_have_other_latents_than_clips():
    """Paper.md 4.3, the negative control of streaming: deployment has to use the cache."""
    model, video = tiny_tokenizer(), random_video(1, 6)
    assert not torch.allclose(encode(model, video)[:, 5:], encode(model, video[:, 5:]), atol=1e-2)


def test_a_reset_row_is_coded_like_the_beginning_of_a_clip():
    model, video = tiny_tokenizer(), random_video(2, 7)
    cache = model.init_cache(2)
    encode(model, video[:, :4], cache=cache)
    cache.reset(torch.tensor([False, True]))
    latents = encode(model, video[:, 4:], cache=cache)
    assert torch.allclose(latents[:1], encode(model, video[:1])[:, 4:], atol=1e-5)
    assert torch.allclose(latents[1:], encode(model, video[1:, 4:]), atol=1e-5)


# What reaches what


def test_latents_notice_every_patch():
    """Invariant 8."""
    model = tiny_tokenizer()
    patches = normal(1, 1, model.config.patches, model.config.values)
    with torch.no_grad():
        before = model.encode_tokens(patches)
        for p in range(model.config.patches):
            after = model.encode_tokens(changed(patches, 0, 0, p))
            assert (before != after).any(-1).all()


def test_all_pixels_pass_through_the_bottleneck():
    """Invariant 8: with the bottleneck shut, reconstructions of different videos are the same to the bit."""
    model, videos = tiny_tokenizer(), [random_video(1, 3, seed=seed) for seed in (0, 1)]
    first, second = (decode(model, encode(model, video)) for video in videos)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.nn.init.zeros_(model.bottleneck.weight)
    first, second = (decode(model, encode(model, video)) for video in videos)
    assert torch.equal(first, second)


def test_a_patch_query_changes_no_latent_token():
    """Invariant 8."""
    model, seen = tiny_tokenizer(), []
    model.decoder.register_forward_hook(lambda *hooked: seen.append(hooked[2][:, :, model.config.patches :]))
    latents = torch.tanh(normal(1, 2, 2, 6))
    before = decode(model, latents)
    with torch.no_grad():
        model.patch_queries[3] += 1
    assert not torch.equal(before, decode(model, latents))
    assert torch.equal(*seen)


def test_a_latent_token_of_the_encoder_changes_no_patch():
    """Invariant 8."""
    model, seen = tiny_tokenizer(), []
    model.encoder.register_forward_hook(lambda *hooked: seen.append(hooked[2][:, :, : model.config.patches]))
    video = random_video(1, 2)
    before = encode(model, video)
    with torch.no_grad():
        model.latent_tokens[1] += 1
    assert not torch.equal(before, encode(model, video))
    assert torch.equal(*seen)


# Latents and frames


def test_latents_are_bounded_and_have_the_shape_that_the_dynamics_reads():
    """Invariant 33."""
    model, video = tiny_tokenizer(), random_video(2, 3)
    latents = encode(model, video)
    assert latents.shape == (2, 3, *model.latent_shape) == (2, 3, 2, 6)
    assert 0.1 < latents.abs().max() < 1


def test_packing_is_a_bijection_that_keeps_neighbouring_latents_together():
    """Invariant 33, at the paper's sizes: 512 x 16 becomes 256 x 32."""
    latents = torch.arange(512 * 16.0).reshape(1, 1, 512, 16)
    packed = pack(latents, 2)
    assert packed.shape == (1, 1, 256, 32)
    assert torch.equal(packed[0, 0, 7, :16], latents[0, 0, 14])
    assert torch.equal(packed[0, 0, 7, 16:], latents[0, 0, 15])
    assert torch.equal(unpack(packed, 2), latents)


def test_decoding_unpacks_what_encoding_packed():
    model, video = tiny_tokenizer(), random_video(1, 2)
    with torch.no_grad():
        latents = model.encode_tokens(model.patches_of(model.normalise(video)))
        image = model.image_of(model.decode_tokens(latents))
    assert torch.equal(pack(latents, 2), encode(model, video))
    assert torch.equal(image, decode(model, encode(model, video)))


@pytest.mark.parametrize("frame", [(360, 640, 3), (40, 40, 3), (10, 8, 1), (7, 5, 2)])
def test_frames_survive_patches_and_padding(frame: tuple[int, int, int]):
    """Invariant 34: with no more padding than whole patches need."""
    config, video = TokenizerConfig(frame=frame, patch=16), random_video(1, 2, frame).float()
    patches = patchify(video, 16, config.canvas)
    assert config.grid == (-(-frame[0] // 16), -(-frame[1] // 16))
    assert patches.shape == (1, 2, config.patches, config.values)
    assert torch.equal(unpatchify(patches, frame, 16, config.canvas), video)


def test_the_papers_frames_get_twelve_rows_of_zeros_above_and_below():
    """Invariant 34: 360 to 384."""
    config = TokenizerConfig(frame=(360, 640, 3), patch=16, padded=(384, 640), latents=512, channels=16)
    assert (config.grid, config.patches) == ((24, 40), 960)
    assert padding(360, 384) == (12, 12)
    patches = patchify(torch.ones(1, 1, 360, 640, 3), 16, config.canvas)
    whole = unpatchify(patches, (384, 640, 3), 16, config.canvas)
    assert whole[0, 0, :, 0, 0].tolist() == [0.0] * 12 + [1.0] * 360 + [0.0] * 12
    assert torch.equal(unpatchify(patches, config.frame, 16, config.canvas), torch.ones(1, 1, 360, 640, 3))


def test_a_patch_holds_its_own_pixels():
    video = torch.arange(8 * 12.0).reshape(1, 1, 8, 12, 1)
    assert torch.equal(patchify(video, 4, (8, 12))[0, 0, 4], video[0, 0, 4:8, 4:8].flatten())


def test_bytes_and_unit_floats_are_the_same_frames():
    model, video = tiny_tokenizer(), random_video(1, 2)
    assert torch.equal(encode(model, video), encode(model, video.float() / 255))


def test_decoded_video_is_in_the_unit_interval():
    video = decode(tiny_tokenizer(), 0.99 * normal(1, 3, 2, 6).sign())
    assert video.shape == (1, 3, 10, 8, 3)
    assert 0 <= video.min() < video.max() <= 1


def test_standardised_units_are_spreads_of_each_pixel():
    model, video = tiny_tokenizer(standardize=True), random_video(4, 5)
    frames = video.float() / 255
    mean, std = frames.mean(dim=(0, 1)), frames.std(dim=(0, 1))
    model.set_pixel_statistics(mean, std)
    units = model.normalise(video)
    assert torch.allclose(units.mean(dim=(0, 1)), torch.zeros(10, 8, 3), atol=1e-5)
    assert torch.allclose(units.std(dim=(0, 1)), torch.ones(10, 8, 3), atol=1e-4)
    assert torch.allclose(model.denormalise(units), frames, atol=1e-6)


def test_pixels_that_never_change_are_not_blown_up():
    model = tiny_tokenizer(standardize=True)
    model.set_pixel_statistics(torch.full((10, 8, 3), 0.5), torch.zeros(10, 8, 3), floor=0.05)
    assert model.normalise(torch.full((1, 1, 10, 8, 3), 0.6)).max() == pytest.approx(2.0, rel=1e-4)


def test_statistics_travel_with_the_weights():
    model, other = tiny_tokenizer(standardize=True), tiny_tokenizer(seed=1, standardize=True)
    model.set_pixel_statistics(torch.rand(10, 8, 3, generator=generator("mean")), torch.full((10, 8, 3), 0.3))
    other.load_state_dict(model.state_dict())
    video = random_video(1, 2)
    assert torch.equal(encode(model, video), encode(other, video))


# Masked autoencoding


def test_every_frame_has_its_own_share_of_masked_patches():
    """Invariant 32: p from U(0, 0.9) per frame, patches independent given p."""
    model = tiny_tokenizer(frame=(32, 32, 3))
    masked = model.sample_mask(500, 4, generator("mask"))
    share = masked.float().mean(-1)
    assert masked.shape == (500, 4, 64)
    assert share.mean().item() == pytest.approx(0.45, abs=0.02)
    assert share.min() < 0.05 and share.max() > 0.85
    expected_variance = 0.9**2 / 12 + (0.45 - 0.9**2 / 3) / 64  # of p, plus the binomial one given p
    assert share.var().item() == pytest.approx(expected_variance, rel=0.1)
    assert abs(torch.corrcoef(share.T)[0, 1].item()) < 0.1
    assert share.flatten().histc(8, 0, 0.9).min() > 150  # 250 expected in each of eight equal parts


def test_masks_are_a_function_of_the_generator():
    model = tiny_tokenizer()
    assert torch.equal(model.sample_mask(3, 4, generator("a")), model.sample_mask(3, 4, generator("a")))
    assert not torch.equal(model.sample_mask(3, 4, generator("a")), model.sample_mask(3, 4, generator("b")))


def test_masking_nothing_is_plain_encoding():
    """Invariant 32."""
    model, video = tiny_tokenizer(mask_max=0.0), random_video(2, 3)
    masked = model.sample_mask(2, 3, generator("mask"))
    with torch.no_grad():
        latents = model.encode_tokens(model.patches_of(model.normalise(video)), masked)
    assert not masked.any()
    assert torch.equal(pack(latents, 2), encode(model, video))


def test_a_masked_patch_cannot_be_seen():
    """Invariant 32, with an unmasked patch as negative control."""
    model, masked = tiny_tokenizer(), torch.zeros(1, 2, 6, dtype=torch.bool)
    masked[0, 1, 4] = True
    patches = normal(1, 2, 6, 48)
    with torch.no_grad():
        before = model.encode_tokens(patches, masked)
        assert torch.equal(before, model.encode_tokens(changed(patches, 0, 1, 4), masked))
        assert not torch.equal(before, model.encode_tokens(changed(patches, 0, 1, 3), masked))


def test_where_a_patch_is_masked_still_matters():
    """Masked patches keep their position: two masks of the same size give different latents."""
    model, patches = tiny_tokenizer(), torch.zeros(1, 1, 6, 48)
    with torch.no_grad():
        first, second = (model.encode_tokens(patches, F.one_hot(torch.tensor([[place]]), 6).bool()) for place in (0, 5))
    assert not torch.allclose(first, second, atol=1e-4)


# Losses


def test_the_reconstruction_loss_covers_the_whole_frame():
    model, video = tiny_tokenizer(), random_video(2, 3)
    masked = model.sample_mask(2, 3, generator("mask"))
    patches = model.patches_of(video.float() / 255)
    with torch.no_grad():
        output = model.decode_tokens(model.encode_tokens(patches, masked))
        losses = model.losses(video, None, masked)
    assert losses.keys() == {"mse"}
    assert losses["mse"].item() == pytest.approx((output - patches).square().mean().item(), rel=1e-6)


def test_the_loss_of_masked_patches_only_is_their_mean():
    model, video = tiny_tokenizer(masked_loss_only=True), random_video(2, 3)
    masked = model.sample_mask(2, 3, generator("mask"))
    patches = model.patches_of(video.float() / 255)
    with torch.no_grad():
        output = model.decode_tokens(model.encode_tokens(patches, masked))
        loss = model.losses(video, None, masked)["mse"].item()
    assert loss == pytest.approx((output - patches).square()[masked].mean().item(), rel=1e-5)


def test_the_loss_of_masked_patches_is_zero_where_none_is_masked():
    model = tiny_tokenizer(masked_loss_only=True)
    assert model.losses(random_video(1, 2), None, torch.zeros(1, 2, 6, dtype=torch.bool))["mse"].item() == 0


def test_a_pixel_moves_where_the_frame_before_or_after_differs_but_not_across_episodes():
    video = torch.zeros(1, 4, 3, 3, 3, dtype=torch.uint8)
    video[0, 1:, 0, 1, 2] = 9  # between frames 0 and 1
    video[0, 3, 2, 2, 0] = 9  # between frames 2 and 3
    everywhere, places = moved(video), [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 2, 2, 2, 0], [0, 3, 2, 2, 0]]
    assert everywhere.shape == (1, 4, 3, 3, 1) and everywhere.nonzero().tolist() == places
    assert moved(video, torch.tensor([[0, 0, 0, 1]])).nonzero().tolist() == places[:2]
    assert not moved(video[:, :1]).any()


def test_pixels_that_move_weigh_more():
    model, plain = tiny_tokenizer(motion_weight=3.0), tiny_tokenizer()
    video = random_video(2, 1).repeat(1, 3, 1, 1, 1)
    masked = model.sample_mask(2, 3, generator("mask"))
    with torch.no_grad():
        assert model.losses(video, None, masked)["mse"] == plain.losses(video, None, masked)["mse"]
        video = changed(video, 0, 1, 4, 5)
        patches = model.patches_of(video.float() / 255)
        weights = torch.ones_like(video.float())
        weights[0, :, 4, 5] = 4.0  # in frame 1 itself, and in the frames before and after
        error = (model.decode_tokens(model.encode_tokens(patches, masked)) - patches).square()
        loss = model.losses(video, None, masked)["mse"].item()
    expected = (error * (1 + model.patches_of(weights - 1))).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5) and loss > error.mean().item()


def test_latents_are_decoded_from_a_share_of_noise():
    """Every frame draws its own share; without the option nothing is drawn."""
    assert tiny_tokenizer().sample_noise(2, 3, generator("noise")) is None
    model, video = tiny_tokenizer(latent_noise=0.4), random_video(2, 3)
    noise, share = model.sample_noise(500, 4, generator("noise"))
    assert noise.shape == (500, 4, model.config.latents, model.config.channels) and share.shape == (500, 4)
    assert 0 <= float(share.min()) < 0.01 and 0.39 < float(share.max()) <= 0.4 and 0.18 < float(share.mean()) < 0.22
    assert abs(float(noise.mean())) < 0.02 and 0.97 < float(noise.std()) < 1.03
    masked, noise = model.sample_mask(2, 3, generator("mask")), model.sample_noise(2, 3, generator("noise"))
    with torch.no_grad():
        patches = model.patches_of(model.normalise(video))
        latents, share = model.encode_tokens(patches, masked), noise[1][..., None, None]
        error = (model.decode_tokens((1 - share) * latents + share * noise[0]) - patches).square().mean()
        loss = model.losses(video, None, masked, noise=noise)["mse"]
        assert loss.item() == pytest.approx(error.item(), rel=1e-5)
        assert loss.item() != pytest.approx(model.losses(video, None, masked)["mse"].item(), rel=1e-3)


def test_latents_of_a_given_size_before_tanh_do_not_saturate():
    """However large the bottleneck's weights are; the control has no given size, and sits at the ends of tanh."""
    for latent_rms, saturated in ((0.5, False), (None, True)):
        model = tiny_tokenizer(latent_rms=latent_rms)
        model.bottleneck.weight.data.mul_(1000)
        with torch.no_grad():
            z = model.encode(random_video(2, 3))
        before = torch.atanh(z.double().clamp(-1 + 1e-9, 1 - 1e-9)).unflatten(-1, (-1, model.config.channels))
        size = before.square().mean(-1).sqrt()
        assert bool((z.abs().amax() > 0.999).item()) == saturated
        assert torch.allclose(size, torch.full_like(size, 0.5), atol=1e-3) != saturated


def test_a_size_of_latents_is_positive():
    with pytest.raises(ConfigError, match=r"latent_rms must be greater than 0, got 0"):
        tiny_tokenizer(latent_rms=0.0)


def test_a_share_of_noise_beyond_one_is_refused():
    with pytest.raises(ConfigError, match=r"latent_noise is a share of 1, got 1\.5"):
        tiny_tokenizer(latent_noise=1.5)


def test_a_negative_weight_of_motion_is_refused():
    with pytest.raises(ConfigError, match=r"motion_weight must not be negative, got -1"):
        TokenizerConfig(motion_weight=-1)


def test_the_perceptual_term_compares_frames_without_padding_in_the_unit_interval():
    model, video, seen = tiny_tokenizer(standardize=True), random_video(2, 3), []
    model.set_pixel_statistics(torch.full((10, 8, 3), 0.4), torch.full((10, 8, 3), 0.3))

    def perceptual(image: Tensor, target: Tensor) -> Tensor:
        seen.extend([image, target])
        return (image - target).abs().mean(dim=(1, 2, 3))

    losses = model.losses(video, None, model.sample_mask(2, 3, generator("mask")), perceptual)
    image, target = seen
    assert image.shape == target.shape == (6, 10, 8, 3)
    assert image.min() >= 0 and image.max() <= 1 and image.dtype == torch.float32
    assert torch.allclose(target, video.flatten(0, 1).float() / 255, atol=1e-6)
    assert losses["lpips"].item() == pytest.approx((image - target).abs().mean().item(), rel=1e-5)
    assert losses["lpips"].requires_grad


def test_every_parameter_gets_a_gradient():
    model, video = tiny_tokenizer(), random_video(2, 5)
    model.losses(video, None, model.sample_mask(2, 5, generator("mask")))["mse"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_losses_are_fp32_under_autocast():
    model, video = tiny_tokenizer(), random_video(2, 3)
    masked = model.sample_mask(2, 3, generator("mask"))
    expected = model.losses(video, None, masked)["mse"].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.losses(video, None, masked)["mse"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.02)


# Health


def moving_squares(batch: int, length: int) -> Tensor:
    """Bright 4 x 4 squares that walk through dark 12 x 12 frames."""
    draw = generator("squares")
    start = torch.randint(0, 9, (batch, 2), generator=draw)
    step = torch.randint(0, 3, (batch, 2), generator=draw)
    video = torch.full((batch, length, 12, 12, 3), 20, dtype=torch.uint8)
    for b in range(batch):
        for t in range(length):
            row, column = ((start[b] + t * step[b]) % 9).tolist()
            video[b, t, row : row + 4, column : column + 4] = torch.tensor([230, 120, 40], dtype=torch.uint8)
    return video


def test_a_short_training_gives_healthy_latents():
    """Invariant 35: latents differ between frames, spread, and the foreground is better than its mean colour."""
    torch.manual_seed(1)  # of the initial weights
    sizes = {"width": 32, "encoder_depth": 2, "decoder_depth": 2, "heads": 2, "hidden": 64, "time_every": 2}
    config = TokenizerConfig((12, 12, 3), 4, latents=4, channels=4, window=4, standardize=True, **sizes)
    model = Tokenizer(config)
    with torch.no_grad():  # loud positions, so that a short training leaves the plateau of the mean frame
        for embedding in (model.encoder_patch_embedding, model.patch_queries):
            embedding *= 40
    video = moving_squares(24, 4)
    target = video.float() / 255
    model.set_pixel_statistics(target.mean(dim=(0, 1)), target.std(dim=(0, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(240):
        masked = model.sample_mask(24, 4, generator("health", step))
        model.losses(video, None, masked)["mse"].backward()
        optimizer.step()
        optimizer.zero_grad()
    latents = encode(model, video)
    flat = F.normalize(latents.flatten(2).flatten(0, 1), dim=-1)
    similarity = flat @ flat.T
    assert latents.std() > 0.05
    assert (similarity.sum() - len(flat)) / (len(flat) * (len(flat) - 1)) < 0.9
    image = decode(model, latents)
    foreground = video[..., 0] > 100
    baseline = (target[foreground] - target.mean(dim=(0, 1, 2, 3))).square().mean()
    assert (target[foreground] - image[foreground]).square().mean() < 0.5 * baseline


# Mistakes


def test_frames_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"frames of \(8, 10, 3\) don't fit a tokenizer for frames of \(10, 8, 3\)"):
        tiny_tokenizer().encode(random_video(1, 2, (8, 10, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padded": (60, 64)}, r"padded \(60, 64\) must be multiples of patch \(8\), at least the frame \(64, 64\)"),
        ({"padded": (64, 68)}, r"padded \(64, 68\) must be multiples of patch"),
        ({"latents": 5}, r"latents \(5\) must be a multiple of pack \(2\)"),
        ({"mask_max": 1.0}, r"mask_max must be in \[0, 1\), got 1.0"),
        ({"mask_max": -0.1}, r"mask_max must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**changes)
