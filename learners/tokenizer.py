"""Stage 1: the tokenizer learns to reconstruct masked frames (paper, section 3.1, equation 5)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamer4 import flops
from dreamer4.data.loader import Batches
from dreamer4.errors import ConfigError
from dreamer4.normalise import RmsNormaliser
from dreamer4.perceptual import Perceptual
from dreamer4.rng import generator
from dreamer4.tokenizer import Tokenizer
from learners.learner import Learner
from learners.optim import OptimConfig
from learners.parallel import Unit
from learners.parts import WHOLE, Part


@dataclass(frozen=True)
class TokenizerTraining:
    steps: int = 1500
    batch: int = 24
    length: int = 4  # frames per clip
    optim: OptimConfig = field(default_factory=OptimConfig)
    save_every: int = 250
    perceptual_vgg: str | None = None  # weight files of LPIPS, see docs/perceptual.md
    perceptual_linear: str | None = None

    def __post_init__(self) -> None:
        if bool(self.perceptual_vgg) != bool(self.perceptual_linear):
            raise ConfigError(
                f"LPIPS needs both files: perceptual_vgg is {self.perceptual_vgg!r}, perceptual_linear is "
                f"{self.perceptual_linear!r}; give both or neither"
            )


class TokenizerLearner(Learner):
    stage = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, training: TokenizerTraining, clips: Batches, seed: int):
        self.perceptual = None
        if training.perceptual_vgg and training.perceptual_linear:
            self.perceptual = Perceptual.load(training.perceptual_vgg, training.perceptual_linear)
            self.perceptual.to(tokenizer.pixel_mean.device)
        names = ["mse"] if self.perceptual is None else ["mse", "lpips"]
        super().__init__(tokenizer, RmsNormaliser(names), training.optim, training.steps)
        self.tokenizer, self.training, self.clips, self.seed = tokenizer, training, clips, seed

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        batch, length = self.training.batch, self.training.length
        device, rows = self.tokenizer.pixel_mean.device, part.rows(batch)
        clip = self.clips.batch(index, batch, length, rows.index).to(device)
        assert clip.video_BTHWC is not None
        masked_BTP = self.tokenizer.sample_mask(batch, length, generator(self.seed, self.stage, index))
        own_BTP = rows.of(masked_BTP)
        noise = self.tokenizer.sample_noise(batch, length, generator(self.seed, "latent noise", index))
        if noise is not None:
            noise = rows.of(noise[0]).to(device), rows.of(noise[1]).to(device)
        losses = self.tokenizer.losses(clip.video_BTHWC, clip.segment_BT, own_BTP.to(device), self.perceptual, noise)
        if rows.whole:
            return losses
        shares = dict.fromkeys(losses, rows.share)
        if self.tokenizer.config.masked_loss_only:
            shares["mse"] = int(own_BTP.sum()) / max(1, int(masked_BTP.sum()))
        return {name: loss * shares[name] for name, loss in losses.items()}

    def estimate_flops(self, index: int) -> int:
        return flops.tokenizer(self.tokenizer.config, self.training.batch, self.training.length).total

    def units(self) -> list[Unit]:
        return [Unit(self.tokenizer, ("losses", "encode", "decode"))]

    def weight(self, name: str) -> float:
        return self.tokenizer.config.lpips_weight if name == "lpips" else 1.0

    @torch.no_grad()
    def validate(self, clips: Batches, batches: int = 4) -> dict[str, float]:
        """Squared error in [0, 1] units of unmasked reconstructions, as PSNR in dB."""
        errors = []
        for index in range(batches):
            clip = clips.batch(index, self.training.batch, self.training.length).to(self.tokenizer.pixel_mean.device)
            assert clip.video_BTHWC is not None
            output = self.tokenizer.decode(self.tokenizer.encode(clip.video_BTHWC, clip.segment_BT), clip.segment_BT)
            errors.append((output - clip.video_BTHWC.float() / 255).square().mean())
        return {"validation_psnr": float(-10 * torch.stack(errors).mean().log10())}
