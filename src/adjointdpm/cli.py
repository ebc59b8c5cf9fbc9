"""The command line: the only place where text becomes values.

Bad input is one line on the error stream and exit code 2; a traceback is a bug of ours.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from ._types import AdjointDPMError
from .compare import compare as compare_gradients
from .demo import demo as run_demo
from .metrics import Chroma
from .pictures import as_8_bit, output_folder, png
from .zoo import load

__all__ = ["app", "main"]

app = typer.Typer(
    help="Gradients through diffusion samplers.", no_args_is_help=True, pretty_exceptions_enable=False
)

OutputDir = Annotated[Path, typer.Option("--output_dir", help="Folder for the results.")]


@app.command()
def sample(
    prompt: Annotated[list[str], typer.Argument(help='Such as "a red apple on a blue background".')],
    output_dir: OutputDir = Path("outputs/sample"),
    batch: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    steps: Annotated[int, typer.Option("--num_inference_steps", help="Steps of the sampler.")] = 25,
    guidance_scale: Annotated[float, typer.Option("--guidance_scale")] = 4.0,
) -> None:
    """Make pictures with the bundled model."""
    folder = output_folder(output_dir)
    sampler = load("emoji", steps=steps, guidance_scale=guidance_scale)
    conditions = [sampler.encode(each) for each in prompt]
    for number, cond in enumerate(conditions):
        with torch.no_grad():
            images = as_8_bit(sampler(sampler.noise(batch, seed), cond))
        for i, image in enumerate(images):
            path = folder / f"{number:02d}-{i:02d}.png"
            path.write_bytes(png(image))
            print(path)


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="Of the bundled model.")],
    output_dir: OutputDir = Path("outputs/compare"),
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    steps: Annotated[int, typer.Option("--num_inference_steps", min=1)] = 25,
    guidance_scale: Annotated[float, typer.Option("--guidance_scale")] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
    weights: Annotated[bool, typer.Option(help="Differentiate the weights, too.")] = False,
) -> None:
    """Measure every gradient's error and cost on the bundled model: a table, JSON and a picture."""
    folder = output_folder(output_dir)
    sampler = load("emoji", steps=steps, guidance_scale=guidance_scale)
    sampler.requires_grad_(False)
    sampler.field.denoiser.requires_grad_(weights)
    cond, noise = sampler.encode(prompt), sampler.noise(1, seed)
    found = compare_gradients(sampler, Chroma(), noise=noise, cond=cond, repeats=repeats)
    print(found)
    (folder / "compare.json").write_text(found.to_json())
    print(found.picture(folder / "compare.png"))


@app.command()
def demo(output_dir: OutputDir = Path("outputs/demo")) -> None:
    """Run the main job on the bundled model and write a page about it."""
    print(f"page: {run_demo(output_dir).resolve()}")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except AdjointDPMError as error:
        print(f"adjointdpm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
