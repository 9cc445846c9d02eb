"""The causal tokenizer: frames to a few bounded latent tokens and back (paper, section 3.1).

Masked autoencoding: an encoder reads patches and learned latent tokens, a tanh bottleneck keeps the latents, a decoder
reads learned patch queries and the latents. Both are causal in time, so that frames can be coded one by one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.attention import EPSILON, axial_angles
from dreamer4.cache import TimeCache
from dreamer4.decode import Sight
from dreamer4.errors import ConfigError, DataError
from dreamer4.patches import moved, pack, patchify, unpack, unpatchify
from dreamer4.perceptual import Perceptual
from dreamer4.shortcut import corrupt
from dreamer4.transformer import (
    Transformer,
    TransformerConfig,
    initialise_linears,
    learned_tokens,
)

LATENT = -1  # the modality of latent tokens in the attention rules below


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of tokenizer and bottleneck. The paper: 384x640 frames of 360x640, patch 16, 512 x 16 latents."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 8
    padded: tuple[int, int] | None = None  # frames are zero-padded to this size; None = up to whole patches
    latents: int = 32
    channels: int = 8
    pack: int = 2  # neighbouring latents that become one spatial token of the dynamics (512 x 16 -> 256 x 32)
    width: int = 64
    encoder_depth: int = 4
    decoder_depth: int = 4
    heads: int = 4
    hidden: int = 256
    time_every: int = 4
    window: int = 16  # [G]
    soft_cap: float | None = 50.0
    mask_max: float = 0.9  # per frame, patches are masked with a probability from U(0, mask_max)
    lpips_weight: float = 0.2  # used when perceptual weights are given
    standardize: bool = False  # [G] inputs and errors in units of each pixel's spread over the dataset
    masked_loss_only: bool = False  # [G] the paper's wording is full-frame
    motion_weight: float = 0.0  # [G] extra weight of pixels that differ between neighbouring frames of a clip
    latent_rms: float | None = None  # [G] root mean square of a latent's numbers before tanh, which stays steep so
    latent_noise: float = 0.0  # [G] in training, the largest share of noise in latents when they are decoded

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", tuple(self.frame))
        if self.padded is not None:
            object.__setattr__(self, "padded", tuple(self.padded))
        if any(pad < size or pad % self.patch for pad, size in zip(self.canvas, self.frame, strict=False)):
            raise ConfigError(
                f"padded {self.padded} must be multiples of patch ({self.patch}), at least the frame {self.frame[:2]}"
            )
        if self.latents % self.pack:
            raise ConfigError(f"latents ({self.latents}) must be a multiple of pack ({self.pack})")
        if not 0 <= self.mask_max < 1:
            raise ConfigError(f"mask_max must be in [0, 1), got {self.mask_max}")
        if self.motion_weight < 0:
            raise ConfigError(f"motion_weight must not be negative, got {self.motion_weight}")
        if self.latent_rms is not None and self.latent_rms <= 0:
            raise ConfigError(f"latent_rms must be greater than 0, got {self.latent_rms}")
        if not 0 <= self.latent_noise <= 1:
            raise ConfigError(f"latent_noise is a share of 1, got {self.latent_noise}")

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns of pixels, padding included."""
        height, width = (size + -size % self.patch for size in self.frame[:2])
        return (height, width) if self.padded is None else self.padded

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.canvas[0] // self.patch, self.canvas[1] // self.patch

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def values(self) -> int:
        return self.patch * self.patch * self.frame[2]

    def transformer(self, depth: int) -> TransformerConfig:
        """The paper names grouped queries for the dynamics only, so heads and kv_heads are equal here."""
        return TransformerConfig(
            self.width,
            depth,
            self.heads,
            self.heads,
            self.hidden,
            min(self.time_every, depth),
            self.window,
            self.soft_cap,
        )


def encoder_mask(modality_S: Tensor) -> Tensor:
    """`[S, S]`: latents read everything, tokens of a modality read that modality only."""
    query, key = modality_S[:, None], modality_S[None, :]
    return (query == LATENT) | (query == key)


def decoder_mask(modality_S: Tensor) -> Tensor:
    """`[S, S]`: latents read latents only, tokens of a modality read that modality and the latents."""
    query, key = modality_S[:, None], modality_S[None, :]
    return (query == key) | (key == LATENT)


@dataclass
class TokenizerCache:
    """What streaming needs of the past, for the encoder or the decoder."""

    time: TimeCache

    def reset(self, rows_B: Tensor) -> None:
        self.time.reset(rows_B)


class Tokenizer(nn.Module):
    """Encoder, bottleneck and decoder. Latents leave and enter packed: `[B, T, S, D]`, as the dynamics reads them."""

    pixel_mean: Tensor
    pixel_std: Tensor
    modality_S: Tensor
    angles_SK: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        width, patches = config.width, config.patches
        self.patch_in = nn.Linear(config.values, width)
        self.mask_embedding = learned_tokens(width)
        self.encoder_patch_embedding = learned_tokens(patches, width)
        self.latent_tokens = learned_tokens(config.latents, width)
        self.encoder = Transformer(config.transformer(config.encoder_depth))
        self.bottleneck = nn.Linear(width, config.channels)
        self.latent_in = nn.Linear(config.channels, width)
        self.decoder_latent_embedding = learned_tokens(config.latents, width)
        self.patch_queries = learned_tokens(patches, width)
        self.decoder = Transformer(config.transformer(config.decoder_depth))
        self.patch_out = nn.Linear(width, config.values)
        for linear in (self.patch_in, self.bottleneck, self.latent_in, self.patch_out):
            initialise_linears(linear)
        self.bottleneck.weight.data.mul_(0.1)  # where tanh is steep: a saturated start learns three times slower
        self.register_buffer("pixel_mean", torch.zeros(config.frame))
        self.register_buffer("pixel_std", torch.ones(config.frame))
        modality = torch.cat([torch.zeros(patches), torch.full((config.latents,), LATENT)]).long()
        self.register_buffer("modality_S", modality, persistent=False)
        self.register_buffer("angles_SK", self._angles(), persistent=False)

    def _angles(self) -> Tensor:
        """Patches turn by row and column; latents have learned embeddings and don't turn."""
        rows, columns = self.config.grid
        row_P = torch.arange(rows).repeat_interleave(columns)
        column_P = torch.arange(columns).repeat(rows)
        still = torch.zeros(self.config.latents, dtype=torch.long)
        size = self.encoder.config.head_size
        return axial_angles(torch.cat([row_P, still]), torch.cat([column_P, still]), size, 10_000.0)

    def _slots(self) -> tuple[slice, slice, slice]:
        """Patches, latents, and all of them, as slots of a frame."""
        patches, slots = self.config.patches, self.config.patches + self.config.latents
        return slice(0, patches), slice(patches, slots), slice(0, slots)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """S and D of the packed latents."""
        return self.config.latents // self.config.pack, self.config.channels * self.config.pack

    def set_pixel_statistics(self, mean_HWC: Tensor, std_HWC: Tensor, floor: float = 0.02) -> None:
        """Mean and standard deviation of every pixel over the dataset, in [0, 1]; used with `standardize`."""
        self.pixel_mean.copy_(mean_HWC)
        self.pixel_std.copy_(std_HWC.clamp_min(floor))

    def normalise(self, video_BTHWC: Tensor) -> Tensor:
        """Bytes to the units of inputs and errors: [0, 1], standardised where asked."""
        if tuple(video_BTHWC.shape[2:]) != self.config.frame:
            raise DataError(
                f"frames of {tuple(video_BTHWC.shape[2:])} don't fit a tokenizer for frames of {self.config.frame}"
            )
        video = video_BTHWC.float() / 255 if video_BTHWC.dtype == torch.uint8 else video_BTHWC
        return (video - self.pixel_mean) / self.pixel_std if self.config.standardize else video

    def denormalise(self, video_BTHWC: Tensor) -> Tensor:
        return video_BTHWC * self.pixel_std + self.pixel_mean if self.config.standardize else video_BTHWC

    def patches_of(self, video_BTHWC: Tensor) -> Tensor:
        return patchify(video_BTHWC, self.config.patch, self.config.canvas)

    def image_of(self, patches_BTPQ: Tensor) -> Tensor:
        """Video in [0, 1], fp32, of normalised patches."""
        video = unpatchify(patches_BTPQ.float(), self.config.frame, self.config.patch, self.config.canvas)
        return self.denormalise(video).clamp(0, 1)

    def encode_tokens(
        self,
        patches_BTPQ: Tensor,
        masked_BTP: Tensor | None = None,
        segment_BT: Tensor | None = None,
        cache: TokenizerCache | None = None,
    ) -> Tensor:
        """Bottleneck latents `[B, T, latents, channels]` in (-1, 1) of normalised patches."""
        tokens = self.patch_in(patches_BTPQ)
        if masked_BTP is not None:
            tokens = torch.where(masked_BTP[..., None], self.mask_embedding.to(tokens.dtype), tokens)
        tokens = tokens + self.encoder_patch_embedding
        latents = self.latent_tokens.expand(*tokens.shape[:2], -1, -1).to(tokens.dtype)
        x = torch.cat([tokens, latents], dim=2)
        patch, latent, every = self._slots()
        if cache is None:
            x = self.encoder(x, self.angles_SK, encoder_mask(self.modality_S), segment_BT)[:, :, latent]
        else:
            sight: Sight = [(patch, patch), (latent, every)]  # as `encoder_mask`
            x = self.encoder(x, self.angles_SK, None, segment_BT, cache.time, True, sight, latent)
        x = self.bottleneck(x)
        if self.config.latent_rms is not None:
            x = self.config.latent_rms * F.rms_norm(x, x.shape[-1:], eps=EPSILON)
        return torch.tanh(x)

    def decode_tokens(
        self, latents: Tensor, segment_BT: Tensor | None = None, cache: TokenizerCache | None = None
    ) -> Tensor:
        """Normalised patches `[B, T, P, Q]` of bottleneck latents."""
        tokens = self.latent_in(latents) + self.decoder_latent_embedding
        queries = self.patch_queries.expand(*tokens.shape[:2], -1, -1).to(tokens.dtype)
        x = torch.cat([queries, tokens], dim=2)
        patch, latent, every = self._slots()
        if cache is None:
            x = self.decoder(x, self.angles_SK, decoder_mask(self.modality_S), segment_BT)[:, :, patch]
        else:
            sight: Sight = [(patch, every), (latent, latent)]  # as `decoder_mask`
            x = self.decoder(x, self.angles_SK, None, segment_BT, cache.time, True, sight, patch)
        return self.patch_out(x)

    def encode(
        self, video_BTHWC: Tensor, segment_BT: Tensor | None = None, cache: TokenizerCache | None = None
    ) -> Tensor:
        """Packed latents `[B, T, S, D]` of whole frames, uint8 or float in [0, 1]. A cache continues a stream.

        Raises:
            DataError: the frames have another size than the tokenizer's.
        """
        patches = self.patches_of(self.normalise(video_BTHWC))
        return pack(self.encode_tokens(patches, None, segment_BT, cache), self.config.pack)

    def decode(
        self, latents_BTSD: Tensor, segment_BT: Tensor | None = None, cache: TokenizerCache | None = None
    ) -> Tensor:
        """Video `[B, T, H, W, C]` in [0, 1]."""
        patches = self.decode_tokens(unpack(latents_BTSD, self.config.pack), segment_BT, cache)
        return self.image_of(patches)

    def init_cache(self, batch: int) -> TokenizerCache:
        """An empty past for `encode` or `decode` (one each: they have their own transformers)."""
        return TokenizerCache(self.encoder.init_cache(batch, self.angles_SK))

    def init_decoder_cache(self, batch: int) -> TokenizerCache:
        return TokenizerCache(self.decoder.init_cache(batch, self.angles_SK))

    def sample_mask(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """`[B, T, P]`: every frame draws its own p ~ U(0, mask_max), every patch is masked with probability p."""
        shape = (batch, length, 1)
        p = torch.rand(shape, generator=generator, device=generator.device) * self.config.mask_max
        draw = torch.rand((batch, length, self.config.patches), generator=generator, device=generator.device)
        return draw < p

    def sample_noise(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """What latents are mixed with before they are decoded: noise `[B, T, latents, channels]`, and its share
        `[B, T]`, which every frame draws from U(0, latent_noise). None where there is none."""
        config, device = self.config, generator.device
        if not config.latent_noise:
            return None
        share = torch.rand((batch, length), generator=generator, device=device) * config.latent_noise
        shape = (batch, length, config.latents, config.channels)
        return torch.randn(shape, generator=generator, device=device), share

    def losses(
        self,
        video_BTHWC: Tensor,
        segment_BT: Tensor | None,
        masked_BTP: Tensor,
        perceptual: Perceptual | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the reconstruction loss: `mse`, and `lpips` where a perceptual network is given.

        Args:
            masked_BTP: of `sample_mask`.
            noise: of `sample_noise`.
        """
        target = self.normalise(video_BTHWC)
        patches = self.patches_of(target)
        latents = self.encode_tokens(patches, masked_BTP, segment_BT)
        if noise is not None:
            latents = corrupt(latents, noise[0].to(latents.dtype), 1 - noise[1])
        output = self.decode_tokens(latents, segment_BT)
        error_BTPQ = (output.float() - patches).square()
        if self.config.motion_weight:
            moved_BTHWC = moved(video_BTHWC, segment_BT).float().expand_as(target)
            error_BTPQ = error_BTPQ * (1 + self.config.motion_weight * self.patches_of(moved_BTHWC))
        error_BTP = error_BTPQ.mean(dim=-1)
        if self.config.masked_loss_only:
            losses = {"mse": torch.where(masked_BTP, error_BTP, 0.0).sum() / masked_BTP.sum().clamp_min(1)}
        else:
            losses = {"mse": error_BTP.mean()}
        if perceptual is not None:
            image = self.image_of(output)
            losses["lpips"] = perceptual(image.flatten(0, 1), self.denormalise(target).flatten(0, 1)).mean()
        return losses
