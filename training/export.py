"""Write the trained weights as the packaged folders, in float16.

`emoji/` loads with `StableDiffusionPipeline.from_pretrained`, `emoji-clip/` and its judge with
`CLIPModel.from_pretrained`, `emoji-resnet/`, the other classifiers and the preferences with
`AutoModelForImageClassification.from_pretrained`. `MANIFEST.json` in each maps every file but itself
and the model card (README.md, which is edited by hand) to its SHA-256. The same checkpoints give
the same bytes.
"""

import argparse
import hashlib
import json
from functools import partial
from pathlib import Path

import clip
import preference
import torch
from classifier import KINDS, load_classifier
from diffusers import AutoencoderKL
from diffusion import load_pipeline
from render import COLOURS, Renderer, phrase
from safetensors.torch import load_file, save_file
from tokenizer import build
from vae import RUNS

ZOO = Path(__file__).parents[1] / "src" / "adjointdpm" / "zoo"
LICENCE = (
    "Glyphs: Noto Color Emoji, copyright Google, SIL Open Font License 1.1; "
    "the weights were trained on renders of them."
)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_json(path: Path, content: object) -> None:
    """Write JSON in the form of the packages: one space of indentation, UTF-8."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_manifest(folder: Path) -> int:
    """Write MANIFEST.json; returns the folder's size in bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    packaged = [path for path in files if path.name not in {"MANIFEST.json", "README.md"}]
    for path in packaged:
        path.chmod(0o644)
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in packaged
    }
    write_json(folder / "MANIFEST.json", hashes)
    return sum(path.stat().st_size for path in packaged)


def for_every_version(folder: Path) -> None:
    """Lay a saved pipeline's text encoder and tokenizer out as all releases of transformers since 4.48 read them.

    Some save and read the encoder's weights without the prefix `text_model.`, and all read them with it. Releases
    before 5 want the vocabulary and the merges in files of their own.
    """
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    write_vocabulary(folder / "tokenizer")


def write_vocabulary(folder: Path) -> None:
    """Lay a saved tokenizer's vocabulary and merges out as files of their own, too."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary + "\n")
    merges = ["#version: 0.2", *map(" ".join, model["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")


def export_pipeline(runs: Path, folder: Path) -> int:
    """Write the pipeline's folder; returns its size in bytes."""
    renderer = Renderer()
    # A run that went on from a package has no autoencoder of its own: the package's stays.
    own = (runs / "vae" / "checkpoint.safetensors").exists()
    vae = None if own else AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    load_pipeline(runs, vae).to(torch.float16).save_pretrained(folder)
    for_every_version(folder)
    about = {
        "concepts": renderer.concepts,
        "phrases": {concept: phrase(concept) for concept in renderer.concepts},
        "plural": sorted(concept for concept in renderer.concepts if phrase(concept) == concept),
        "colours": renderer.colours,
        "rgb": COLOURS,
        "styles": renderer.styles,
        "caption": "{a or an} {style, unless plain} {concept} on {a or an} {colour} background",
        "licence": LICENCE,
    }
    write_json(folder / "emoji.json", about)
    return write_manifest(folder)


def export_classifier(name: str, runs: Path, folder: Path) -> int:
    """Write a classifier's folder; returns its size in bytes."""
    load_classifier(name, Renderer(), runs).half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return write_manifest(folder)


def export_clip(name: str, runs: Path, folder: Path) -> int:
    """Write the folder of a CLIP; returns its size in bytes."""
    tokenizer = build(Renderer())
    model = clip.load_trained_clip(name, tokenizer, runs)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_vocabulary(folder)
    side = model.config.vision_config.image_size
    size = {"size": {"height": side, "width": side}, "crop_size": {"height": side, "width": side}}
    kind = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "do_convert_rgb": True}
    write_json(folder / "preprocessor_config.json", {**PREPROCESSOR, **kind, **size})
    return write_manifest(folder)


def export_preference(name: str, runs: Path, folder: Path) -> int:
    """Write a preference's folder; returns its size in bytes."""
    preference.load_trained_preference(name, runs).half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return write_manifest(folder)


def main() -> None:
    """Export whatever has a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    args = parser.parse_args()
    exports = {"diffusion": ("emoji", export_pipeline)}
    exports |= {name: (f"emoji-{name}", partial(export_classifier, name)) for name in KINDS}
    exports |= {name: (f"emoji-{name}", partial(export_clip, name)) for name in clip.KINDS}
    exports |= {name: (f"emoji-{name}", partial(export_preference, name)) for name in preference.KINDS}
    for run, (name, write) in exports.items():
        if not (args.runs / run / "checkpoint.safetensors").exists():
            print(f"{name}: no checkpoint in {args.runs / run}, skipped")
            continue
        print(f"{name}: {write(args.runs, args.zoo / name) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
