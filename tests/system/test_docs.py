"""Every block of code in the guides runs, as it is written, on tiny pipelines."""

import re
import subprocess
import sys

import pytest
import torch

import adjointdpm as adp
from tests import ROOT
from tests.tiny.families import of
from tests.tiny.family_builders import stable_diffusion
from tests.tiny.parts import clip, tokenizer
from tests.tiny.pipelines import CASES, text_unet

DOCS = ROOT / "docs"
# The sizes of real models, and what they are on tiny ones.
SMALLER = {
    r"steps=\d+": "steps=2",
    "64, 64": "8, 8",
    "512, 512": "16, 16",
    "num_frames=16": "num_frames=2",
    "a photo of a cat": "a cat",
}


def test_every_table_is_what_its_record_says():
    script = DOCS.parent / "benchmarks" / "tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def blocks(page):
    """The page's blocks of Python by their headings."""
    found = {}
    for part in re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)[1:]:
        code = re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
        if code:
            assert len(code) == 1, part
            found[part.partition("\n")[0]] = code[0]
    return found


def with_strings(pipe):
    """A pipeline of the cases, which are driven by embeddings, with a text encoder."""
    pipe.register_modules(text_encoder=clip().eval(), tokenizer=tokenizer())
    return pipe


def case(name):
    return with_strings(CASES[name]()[0])


def square():
    """Stable Diffusion with latents of 8 x 8."""
    pipe = stable_diffusion()
    pipe.register_modules(unet=text_unet())
    return pipe


PIPES = {
    "Stable Diffusion": square,
    "SDXL": of("sdxl").make,
    "Flux": lambda: sized(of("flux").make()),
    "PixArt": lambda: sized(of("qwen").make()),
    "Img2img": lambda: case("StableDiffusionControlNetPipeline"),
    "A word": of("sd").make,
    "DDPM": of("ddpm").make,
    "Ancestral": of("sd").make,
    "Video": lambda: sized(case("AnimateDiffPipeline"), 16),
    "Weights": of("sd").make,
    "Half": of("sd").make,
    "TRL": of("sd").make,
    "torchdiffeq": of("sd").make,
    "The paper": of("sd").make,
    "A copied": square,
    "DRaFT": of("sd").make,
    "FlowBP": of("sd").make,
}


def sized(pipe, side=8):
    """Of the size that the tiny networks are made for."""
    pipe.default_sample_size = side // pipe.vae_scale_factor
    return pipe


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in schedulers
@pytest.mark.parametrize(
    ("page", "title"),
    [(page, title) for page in ("your-pipeline.md", "coming-from.md") for title in blocks(page)],
)
def test_block(page, title):
    code = blocks(page)[title]
    for real, tiny in SMALLER.items():
        code = re.sub(real, tiny, code)
    pipe = next(make for name, make in PIPES.items() if title.startswith(name))()
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def metric(image):
        image.register_hook(lambda g: seen.append(float(g.abs().max())))
        return image.square().mean(dim=(1, 2, 3))

    names = {
        "torch": torch,
        "adp": adp,
        "pipe": pipe,
        "my_metric": metric,
        "reward": metric,
        "prompts": ["a cat"],
        "optimizer": torch.optim.SGD(pipe.components.get("unet", torch.nn.Linear(1, 1)).parameters(), 0.0),
        "embeds": torch.randn(1, 6, 8, requires_grad=True),
        "noise": torch.randn(1, 4, 8, 8, requires_grad=True),
    }
    exec(compile(code, f"{page}: {title}", "exec"), names)
    if "metric" in code or "reward" in code:
        assert seen
        assert seen[0] > 0
    else:
        assert names["image"].requires_grad
    promised = re.findall(r"\b(noise|embeds|scale|embedded|start)\.grad\b", code)
    promised = [names[name].grad for name in promised]
    promised += [names["cond"][name].grad for name in re.findall(r'cond\["(\w+)"\]\.grad', code)]
    promised += [rows.grad for rows in names["rows"].values] if "rows" in names else []
    for grad in promised:
        assert float(grad.abs().max()) > 0


def test_a_network_of_ones_own_becomes_a_sampler():
    """The page's blocks run in their order, and each gradient is plain autograd's."""
    names: dict = {}
    for title, code in blocks("your-network.md").items():
        torch.manual_seed(0)
        names = {} if "import torch" in code else names  # the last block goes on from the one before
        exec(compile(code, title, "exec"), names)
        sampler = names["sampler"]
        noise = sampler.noise(2, 1).requires_grad_()
        prompts = (
            ["7", "2"] if "label" in code else ["a cat", "a dog"] if "text_encoder" in code else ["", ""]
        )
        cond = names.get("cond", sampler.encode(prompts if "cond" not in names else ["a cat", "a dog"]))
        leaves = [noise, *sampler.network.parameters()]
        found = []
        for adjoint in (adp.Backprop(), adp.Checkpointed()):
            images = sampler.replace(adjoint=adjoint)(noise, cond)
            assert float(images.detach().std()) > 0
            found.append(torch.autograd.grad(images.square().mean(), leaves))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(float(g.abs().max()) > 0 for g in found[0])
