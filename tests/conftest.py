"""Small real models: a conditional UNet, and a whole Stable Diffusion pipeline, built on the spot."""

import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, GaussianMixture, Prediction, SplitGuidance
from adjointdpm.flow.model import DiffusionModel
from adjointdpm.flow.schedules import Schedule
from adjointdpm.pipelines.pipeline_model import UNetDenoiser
from tests.tiny.parts import clip, ddim, kl, unet2d

# One thread here and in every process that a test starts: on some processors two threads round otherwise than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests together take less than two minutes on two cores, at least one of each package.
FAST = [
    "adjoints/test_interpolation",
    "adjoints/test_base",
    "analysis/test_gradients",
    "files/test_images",
    "flow/test_schedules",
    "flow/test_grids",
    "flow/test_denoisers",
    "flow/test_probability_flow",
    "metrics/test_base",
    "metrics/test_check",
    "metrics/test_classifier_losses",
    "metrics/test_effects",
    "metrics/test_pixels",
    "metrics/test_preprocess",
    "metrics/test_style_content",
    "optimization/test_seeds",
    "optimization/test_state",
    "optimization/test_task",
    "pipelines/test_call_signature",
    "pipelines/test_checks",
    "pipelines/test_denoiser_call",
    "pipelines/test_execution",
    "samplers/test_base",
    "solvers/test_multistep",
    "solvers/test_runge_kutta",
    "solvers/test_step_noise",
    "system/test_layout",
    "tasks/test_sampling",
    "attacks/test_norm_ball",
    "tasks/audit/test_settings",
    "tasks/guide/test_look_ahead",
    "tasks/tune/test_denoising_loss",
    "zoo/test_zoo",
    "cli/test_parse_metric",
]


def pytest_configure(config):
    config.addinivalue_line("markers", "fast: a test of the short selection, `pytest -m fast`")


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        if item.path.relative_to(folder).with_suffix("").as_posix() in FAST:
            item.add_marker(pytest.mark.fast)
    # The longest tests begin first, so that no process waits for another one at the end.
    items.sort(key=lambda item: item.path.name != "test_training.py")


def scaled_linear(first: float = 0.00085, last: float = 0.012, steps: int = 1000) -> Tensor:
    """Stable Diffusion's alphas_cumprod."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def tiny_unet(dtype: torch.dtype = torch.float64, **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return (
        unet2d(**{"in_channels": 2, "out_channels": 2, "cross_attention_dim": 6, **config}).to(dtype).eval()
    )


def standard_mixture(schedule: Schedule, prediction: Prediction = Prediction.EPS) -> GaussianMixture:
    """Four blobs of standard deviation 0.3 in the plane: the mixture of the tests."""
    means = torch.tensor([[1.0, 0.6], [-0.8, 1.1], [-0.5, -0.9], [0.9, -0.7]], dtype=torch.float64)
    return GaussianMixture(schedule, means, 0.3, prediction)


class BareModel(DiffusionModel):
    """A denoiser without an encoder or decoder: latents are shown as they are."""

    def __init__(self, schedule: Schedule, denoiser: Denoiser, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.schedule, self.denoiser = schedule, denoiser
        self.latent_shape = self.image_shape = shape

    def encode(self, prompts, negative, guidance_scale):
        generator = torch.Generator().manual_seed(len(prompts))
        draw = lambda: torch.randn(len(prompts), 3, 6, generator=generator, dtype=torch.float64)  # noqa: E731
        return adp.Cond({"prompt_embeds": draw(), "negative_prompt_embeds": draw()})

    def decode(self, latents, run=adp._types.direct):
        return latents

    def decoder_weights(self):
        return []


class Mixture(BareModel):
    """A closed-form denoiser, whose conditioning is a shift of its means."""

    def encode(self, prompts, negative, guidance_scale):
        return adp.Cond({"shift": torch.zeros(len(prompts), *self.latent_shape, dtype=torch.float64)})


def unet_sampler(
    prediction: Prediction = Prediction.EPS, split: bool = False, **settings: object
) -> adp.FlowSampler:
    """A two-channel 4 x 4 UNet in float64 as a sampler."""
    bounded = prediction is Prediction.VELOCITY
    schedule = adp.RectifiedFlow() if bounded else adp.VPDiscrete(scaled_linear())
    denoiser = UNetDenoiser(tiny_unet(), prediction)
    model = BareModel(schedule, SplitGuidance(denoiser) if split else denoiser, (2, 4, 4))
    return adp.FlowSampler(model, **settings)


def tiny_pipeline(scheduler: object | None = None, dtype: torch.dtype = torch.float32):
    """A stock StableDiffusionPipeline of a few thousand weights; it needs embeddings, not strings."""
    torch.manual_seed(0)
    vae = kl(2)
    text = clip(6, num_hidden_layers=1, max_position_embeddings=5, vocab_size=20)
    pipe = StableDiffusionPipeline(
        vae=vae.to(dtype).eval(),
        text_encoder=text.to(dtype).eval(),
        tokenizer=None,
        unet=tiny_unet(dtype),
        scheduler=scheduler or ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def emoji() -> adp.FlowSampler:
    """The bundled model."""
    return adp.load_bundled("emoji", steps=10, guidance_scale=4.0)
