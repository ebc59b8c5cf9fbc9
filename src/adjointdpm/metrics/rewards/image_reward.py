"""ImageReward: what people preferred among images of one prompt, by a BLIP that was trained on their rankings.

    r(x, p) = (h(t) - mean) / std     t the last state of the prompt's first token, h five linear layers in a row

The image tower is a ViT-L/16 at 224 pixels. The text tower is a BERT that attends to the image's states in each of its
layers. Both are classes of transformers; the weights have the names under which they are published. Only safetensors
are read.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..._types import InputError
from ...files.pretrained import first_of, local_folder, quiet, refusing
from ..base import AnyImages, Values
from ..preprocess import CLIP, Resize, Standardize, Steps
from .reward import Reward

__all__ = ["ImageReward", "load_image_reward"]

LENGTH = 35
"""The number of tokens of a prompt, with padding, as published."""

VOCABULARY = ("vocab.txt", "tokenizer*.json")
POSITIONS = "blip.text_encoder.embeddings.position_ids"

_VISION_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers", "blocks"),
    ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("post_layernorm", "norm"),
)

CONVERSION = (
    'python -c "from torch import load; from safetensors.torch import save_file; '
    "save_file({name: each.contiguous() for name, each in load('ImageReward.pt', weights_only=True).items()}, "
    "'ImageReward.safetensors')\""
)


@dataclass(frozen=True, eq=False)
class ImageReward(Reward):
    """What people preferred among images of one prompt, by a BLIP that was trained on their rankings.

        r(x, p) = (h(t(x, p)) - 0.167) / 1.033      0 is the mean and 1 the standard deviation on the authors' data

    Use it for whole images of a prompt: it reads prompt and image together and was the first reward that models were
    tuned to. Make it by `load_image_reward`. It sees 224 pixels of the image's middle square, so nothing outside of it;
    and images become alike when it is raised for long: judge by another network.

    Args:
        vision: a transformers BlipVisionModel, its weights frozen.
        text: a transformers BlipTextModel with cross-attention, its weights frozen.
        head: from states (batch, width) to (batch, 1), its weights frozen and in float32.
        tokenizer: the tokenizer of bert-base-uncased with the added tokens [DEC] and [ENC].
        preprocess: a function from images in [0, 1] to the image tower's input; the published one by default.
        mean: what is subtracted from the head's number.
        std: what it is divided by.

    Raises:
        InputError: when called, if a prompt is empty or has more than 35 tokens, or if the preprocessing gives another
            size than the image tower's.

    References:
        Xu et al., 2023, arXiv 2304.05977; the towers are BLIP's, Li et al., 2022, arXiv 2201.12086.
    """

    vision: Any
    text: Any
    head: nn.Module
    tokenizer: Any
    preprocess: Callable[[Tensor], Tensor] = field(default_factory=lambda: middle_square(224))
    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072
    known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        weight, head = (next(each.parameters()) for each in (self.vision, self.head))
        pixels, side = self.preprocess(images.to(weight.device)), self.vision.config.image_size
        # BlipVisionModel would leave out position embeddings of patches that a smaller image does not have.
        if pixels.shape[-2:] != (side, side):
            raise InputError(
                f"the image tower reads {side} x {side} pixels, but the preprocessing gives {tuple(pixels.shape[-2:])}"
            )
        seen = self.vision(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        ids, attended = torch.stack([self._tokens(each) for each in prompts], dim=1).to(weight.device)
        read = self.text(input_ids=ids, attention_mask=attended, encoder_hidden_states=seen)
        found = self.head(read.last_hidden_state[:, 0].to(head))[:, 0]
        return ((found - self.mean) / self.std).to(images)

    def _tokens(self, prompt: str) -> Tensor:
        """Return a prompt's token ids and attention mask, (2, 35); the first token is [CLS], as it is published."""
        if prompt not in self.known:
            if not prompt.strip():
                raise InputError("ImageReward needs a prompt to compare with, but it is empty")
            with quiet():  # of what the next lines say
                found = self.tokenizer(
                    [prompt], padding="max_length", max_length=LENGTH, return_tensors="pt"
                )
            if (length := found["input_ids"].shape[1]) > LENGTH:
                raise InputError(
                    f"ImageReward takes {LENGTH} tokens, but the prompt {prompt!r} has {length}; shorten it (the "
                    "authors' code would leave out its end)"
                )
            self.known[prompt] = torch.cat([found["input_ids"], found["attention_mask"]])
        return self.known[prompt]


def load_image_reward(
    name: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> ImageReward:
    """Load ImageReward from the published weights as safetensors, every one of them used and frozen.

    "RE-N-Y/ImageReward" is a copy as safetensors on the hub. The authors' own file, ImageReward.pt of
    THUDM/ImageReward, is of a format that can run code when it is loaded; an error names the line that converts it.

    Args:
        name: a file of safetensors with the published names (blip.visual_encoder..., blip.text_encoder...,
            mlp.layers...), all of them behind one prefix or none; a folder of it; or a model's name on a hub. A
            config.json beside it, of a BlipConfig of transformers, gives other sizes than the published ones.
        tokenizer: a folder with the vocabulary of bert-base-uncased, or its name on a hub; if None, the weights' folder
            where it has a vocab.txt or a tokenizer.json, and else "bert-base-uncased".
        dtype: of the two towers' weights; the head's are in float32 or wider whatever it is.
        device: the device of the weights.

    Returns:
        the reward, its networks in evaluation mode.

    Raises:
        InputError: the weights or the tokenizer cannot be read; tensors are missing, not expected or of another shape;
            or the vocabulary is another one.
    """
    file = _weights_file(name)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights of ImageReward in {file} cannot be read: {error}") from error
    with quiet():
        config = _config(file.parent)
        words = _tokenizer(file.parent, tokenizer, config.text_config.vocab_size)
        vision, text, head = networks(config)
        _fill(file, tensors, (vision, text, head))
    positions = torch.arange(config.text_config.max_position_embeddings)
    text.embeddings.position_ids = positions[None]  # no weight, so that it is not in every file
    for each, kind in ((vision, dtype), (text, dtype), (head, torch.promote_types(dtype, torch.float32))):
        each.to(device, kind).requires_grad_(False).eval()
    return ImageReward(vision, text, head, words, middle_square(config.vision_config.image_size))


def published_config() -> Any:
    """Return the sizes of the published model, as a BlipConfig of transformers.

    Its own defaults differ from BLIP as it is published: in the epsilon of the image tower's norms and in the number
    of the text tower's heads.
    """
    from transformers import BlipConfig

    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    }  # fmt: skip
    text = {
        "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "is_decoder": True,
    }  # fmt: skip
    return BlipConfig(vision_config=vision, text_config=text)


def networks(config: Any) -> tuple[Any, Any, nn.Sequential]:
    """Return the image tower, the text tower and the head without values, on the meta device.

    Args:
        config: a BlipConfig of transformers.
    """
    from transformers import BlipTextModel, BlipVisionModel

    # Published with dropout in between, which does nothing in use; hence the numbers of the layers.
    widths = (config.text_config.hidden_size, 1024, 128, 64, 16, 1)
    sizes = zip("02467", pairwise(widths), strict=True)
    with torch.device("meta"):
        vision = BlipVisionModel(config.vision_config)
        text = BlipTextModel(config.text_config, add_pooling_layer=False)
        head = nn.Sequential(OrderedDict((number, nn.Linear(*size)) for number, size in sizes))
    return vision, text, head


def published_names(vision: Any, text: Any, head: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Return the name of each tensor in the published file, with its network, its name there, and the tensor.

    Args:
        vision: the image tower, whose names differ.
        text: the text tower.
        head: the head.
    """
    names: dict[str, tuple[nn.Module, str, Tensor]] = {}
    for own, tensor in vision.state_dict().items():
        name = own
        for here, published in _VISION_NAMES:
            name = name.replace(here, published)
        names[f"blip.visual_encoder.{name}"] = vision, own, tensor
    for prefix, part in (("blip.text_encoder", text), ("mlp.layers", head)):
        names |= {f"{prefix}.{own}": (part, own, tensor) for own, tensor in part.state_dict().items()}
    return names


def middle_square(side: int) -> Steps:
    """Return the published preprocessing: the shorter side is resized, and the middle square is cut out.

    Args:
        side: of the square, in pixels.
    """

    def shortest(height: int, width: int) -> tuple[int, int]:
        least = min(height, width)
        return int(side * height / least), int(side * width / least)

    def crop(images: Tensor) -> Tensor:
        # Rounded as torchvision does, which the model was trained with; CLIP's processor rounds down.
        top, left = (round((each - side) / 2) for each in images.shape[-2:])
        return images[..., top : top + side, left : left + side]

    return Steps((Resize(shortest, 3), crop, Standardize(CLIP.mean, CLIP.std)))


def _weights_file(name: str | Path) -> Path:
    """Return the file of safetensors that a file, a folder or a name on a hub stands for.

    Raises:
        InputError: there is none, or there are several.
    """
    path = Path(name)
    if path.suffix == ".safetensors" and not path.is_file():
        raise InputError(f"there is no file {name}; give the path of ImageReward's safetensors")
    if not path.is_file():
        path = local_folder("ImageReward", name, ("*.safetensors", "config.json", *VOCABULARY))
        files = sorted(path.glob("*.safetensors"))
        if len(files) > 1:
            raise InputError(
                f"{path} has several files of safetensors ({', '.join(each.name for each in files)}); give the path "
                "of the one that holds ImageReward"
            )
        path = files[0] if files else path
    if path.suffix != ".safetensors":
        raise InputError(
            f"{name} has no safetensors, and ImageReward.pt can run code when it is loaded; give "
            f"'RE-N-Y/ImageReward', a copy on the hub, or convert the authors' file once: {CONVERSION}"
        )
    return path


def _config(folder: Path) -> Any:
    """Return the sizes in a folder's config.json where it is that of a BlipConfig, and else the published ones."""
    from transformers import BlipConfig

    path = folder / "config.json"
    with refusing("BlipConfig", path):
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if {"vision_config", "text_config"} <= set(found):
            return BlipConfig.from_dict(found)
    return published_config()


def _tokenizer(folder: Path, name: str | Path | None, rows: int) -> Any:
    """Return the tokenizer, its vocabulary compared with the number of the embeddings' rows.

    Raises:
        InputError: it cannot be read, or is not that of bert-base-uncased.
    """
    from transformers import BertTokenizer

    beside = any((folder / each).is_file() for each in ("vocab.txt", "tokenizer.json"))
    source = name or (folder if beside else "bert-base-uncased")
    place = local_folder("tokenizer", source, VOCABULARY)
    with refusing("tokenizer", source):
        words = BertTokenizer.from_pretrained(str(place))
    # The published code does not begin a prompt with one of them; but a prompt may contain them.
    words.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    last = words.convert_tokens_to_ids(["[DEC]", "[ENC]"])
    if len(words) != rows or last != [rows - 2, rows - 1] or words.tokenize("Red") != words.tokenize("red"):
        raise InputError(
            f"ImageReward's vocabulary is that of bert-base-uncased with [DEC] and [ENC] as its last two of {rows} "
            f"tokens, and ignores case, but the tokenizer {str(source)!r} is another one, of {len(words)} tokens; give "
            "bert-base-uncased, or a folder with its vocab.txt"
        )
    return words


def _fill(file: Path, tensors: dict[str, Tensor], towers: tuple[Any, Any, nn.Sequential]) -> None:
    """Put each tensor of a file into the network that it is of.

    Raises:
        InputError: tensors are missing, not expected or of another shape.
    """
    wanted = published_names(*towers)
    anchor = "blip.visual_encoder.cls_token"
    before = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), "")
    found = {name.removeprefix(before): each for name, each in tensors.items() if name.startswith(before)}
    # Saved with the model, though no score depends on them: BLIP's projections, and the numbers 0, 1, 2, ...
    for name in ("vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias"):
        found.pop(f"blip.{name}", None)
    positions = found.get(POSITIONS)
    if positions is not None and torch.equal(positions.flatten().long(), torch.arange(positions.numel())):
        del found[POSITIONS]
    problems = {
        "missing": wanted.keys() - found.keys(),
        "not expected": {
            *(found.keys() - wanted.keys()),
            *(n for n in tensors if not n.startswith(before)),
        },
        "of another shape": {
            f"{name} {tuple(found[name].shape)} where {tuple(each.shape)} is expected"
            for name, (_, _, each) in wanted.items()
            if name in found and found[name].shape != each.shape
        },
    }
    if any(problems.values()):
        says = "; ".join(f"{what}: {first_of(names)}" for what, names in problems.items() if names)
        raise InputError(
            f"the weights in {file} are not those of ImageReward; {says}; give the published weights, and for other "
            "sizes the config.json of their BlipConfig beside them"
        )
    for part in towers:
        own = {name: found[published] for published, (of, name, _) in wanted.items() if of is part}
        part.load_state_dict(own, assign=True)
