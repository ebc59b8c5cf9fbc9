"""The files that other tools read: textual inversion, LoRA and initial noise, each as safetensors.

learned_embeds.safetensors          {token: (vectors, width)}; SDXL: {"clip_l": ..., "clip_g": ...}
pytorch_lora_weights.safetensors    "unet.<module>.lora_A.weight" ..., and the adapter's settings as
                                    metadata: without them a loader takes lora_alpha = r in silence
noise.safetensors                   {"noise": (batch, *shape)}, with how it is sampled as metadata
"""

import json
import math
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .._types import InputError
from .atomic_write import whole_files, write_file
from .pretrained import quiet

__all__ = [
    "as_written",
    "load_lora",
    "load_noise",
    "load_textual_inversion",
    "network_in",
    "plain_name",
    "save_lora",
    "save_noise",
    "save_textual_inversion",
    "unwrapped",
]

# Parts of a weight's name that are not the network's own: of torch.compile, FSDP, activation checkpointing and peft.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer")
_LORA_DOWN = ("lora_A.weight", "lora.down.weight", "lora_down.weight")  # one for each layer of a LoRA
RESERVED = ("string_to_param", "emb_params", "clip_l", "clip_g")  # keys by which loaders know a format


def save_textual_inversion(path: str | Path, token: str, *vectors: Tensor) -> None:
    """Save a learned token as `pipe.load_textual_inversion(path)` reads it.

    For SDXL pass both encoders' vectors; load the file's "clip_l" into the first encoder and "clip_g"
    into the second: `pipe.load_textual_inversion(state["clip_l"], token=..., text_encoder=...,
    tokenizer=...)`.

    Args:
        path: the file, usually `learned_embeds.safetensors`; its folder must exist.
        token: the token's name in a prompt, such as "<my-cat>".
        vectors: one tensor a text encoder, (vectors, width) or (width,); one or two tensors.

    Raises:
        InputError: there are no or more than two tensors, one has another number of dimensions, the two encoders have
            different numbers of vectors, loaders would read the name as a key of the format, or a value is not finite.
        SavingError: the file cannot be written; it is an `InputError`, too.

    References:
        Gal et al., 2022, arXiv 2208.01618.

    Examples:
        >>> import pathlib, tempfile
        >>> import torch
        >>> import adjointdpm as adp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     adp.save_textual_inversion(f"{folder}/learned_embeds.safetensors", "<cat>", torch.ones(2, 8))
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['learned_embeds.safetensors']
    """
    rows = [each.reshape(1, -1) if each.ndim == 1 else each for each in vectors]
    if len(rows) not in (1, 2) or any(each.ndim != 2 for each in rows) or len({len(r) for r in rows}) != 1:
        given = ", ".join(str(tuple(each.shape)) for each in vectors)
        raise InputError(
            "a token has one tensor (vectors, width) for each of one or two text encoders, with as many "
            f"vectors in both, but was given {given or 'none'}"
        )
    if not token.strip() or token in RESERVED:
        raise InputError(
            f"a token cannot be called {token!r}, which a loader would take for something else; call it <my-token>"
        )
    names = [token] if len(rows) == 1 else ["clip_l", "clip_g"]
    tensors = {
        name: as_written(f"the token {token!r}", each) for name, each in zip(names, rows, strict=True)
    }
    write_file(path, save(tensors, {"format": "pt", "token": token}))


def unwrapped(network: Any) -> Any:
    """Return a network without the wrappers of `torch.compile` and data parallelism.

    Args:
        network: a module, wrapped any number of times.

    Returns:
        the innermost module.
    """
    while True:
        inner = network._modules.get("_orig_mod")
        if isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = network.module
        if inner is None:
            return network
        network = inner


def plain_name(name: str) -> str:
    """Return a weight's name in the network's own state_dict, without the parts that wrappers add.

    Args:
        name: the name in the wrapped network.

    Returns:
        the plain name.

    Examples:
        >>> from adjointdpm.files.diffusers_files import plain_name
        >>> plain_name("_orig_mod.mid_block._checkpoint_wrapped_module.weight")
        'mid_block.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def network_in(pipe: Any) -> tuple[str, Any]:
    """Find a pipeline's denoising network.

    Args:
        pipe: a pipeline of diffusers.

    Returns:
        the component's name, "transformer" or "unet", and the network without wrappers.

    Raises:
        InputError: the pipeline has neither a transformer nor a unet.
    """
    for name in ("transformer", "unet"):
        if getattr(pipe, name, None) is not None:
            return name, unwrapped(getattr(pipe, name))
    raise InputError(f"{type(pipe).__name__} has no transformer and no unet, so no weights of one")


def save_lora(path: str | Path, pipe: Any, adapter: str = "default") -> None:
    """Save the LoRA of a pipeline's network with its rank and alpha, for `pipe.load_lora_weights(path)`.

        W' = W + scale B A,     scale = alpha / r, or alpha / sqrt(r) for rsLoRA

    Text encoders that have an adapter of this name are saved with it. The network may be compiled or
    distributed: the names in the file are those of a stock pipeline. The file is read back and compared before it
    takes its place. It needs peft, of the extra `lora`.

    Args:
        path: a folder; the file in it has the name that diffusers looks for.
        pipe: a pipeline with an adapter of peft on its unet or transformer.
        adapter: the adapter's name.

    Raises:
        InputError: the network has no such adapter, the pipeline cannot load a LoRA, the adapter would load as
            something else (biases or modules of the network itself, initial values that change it, a scale other
            than that of its rank, values that are not finite), the installed diffusers writes another file, or the
            folder cannot be written.

    References:
        Hu et al., 2021, arXiv 2106.09685.
    """
    name, network = network_in(pipe)
    known = list(getattr(network, "peft_config", {}))
    if adapter not in known:
        raise InputError(
            f"the {name} has no adapter {adapter!r}; it has {', '.join(known) or 'none'}: make one with "
            f"pipe.{name}.add_adapter(LoraConfig(...))"
        )
    writer = getattr(type(pipe), "save_lora_weights", None)
    if writer is None:
        raise InputError(
            f"{type(pipe).__name__} has no save_lora_weights, so no LoRA can be loaded into it"
        )
    given: dict[str, Any] = {}
    written: dict[str, Tensor] = {}
    for part, module in pipe.components.items():
        inner = unwrapped(module) if isinstance(module, nn.Module) else None
        if inner is None or adapter not in (getattr(inner, "peft_config", None) or {}):
            continue
        if f"{part}_lora_layers" not in signature(writer).parameters:
            raise InputError(
                f"the adapter {adapter!r} is on the {part}, too, which {type(pipe).__name__} cannot save; "
                f"delete it there, or give it another name"
            )
        tensors, about = _adapter_of(part, inner, adapter)
        given |= {f"{part}_lora_layers": tensors, f"{part}_lora_adapter_metadata": about}
        written |= {f"{part}.{key}": tensor for key, tensor in tensors.items()}
    with whole_files(path) as beside:
        writer(beside, **given)
        (file,) = beside.iterdir()
        _compare(file, written, given)


def _adapter_of(part: str, module: Any, adapter: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an adapter's weights by their plain names, and its settings.

    Raises:
        InputError: the adapter would load as something else.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = module.peft_config[adapter]
    about = config.to_dict()
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    refused = {
        f"it is of the kind {kind}": kind != "LORA",
        f"its biases are the network's own (bias={about.get('bias')!r})": about.get("bias")
        not in (None, "none"),
        "it has biases of its own (lora_bias=True), which peft leaves out on loading": bool(
            about.get("lora_bias")
        ),
        "it replaces whole modules (modules_to_save)": bool(about.get("modules_to_save")),
        "it changes parameters by name (target_parameters)": bool(about.get("target_parameters")),
        "it changes rows of an embedding (trainable_token_indices)": bool(
            about.get("trainable_token_indices")
        ),
        f"its start changed the network's own weights (init_lora_weights={about.get('init_lora_weights')!r})": str(
            about.get("init_lora_weights")
        ).startswith(("pissa", "olora", "corda", "loftq", "eva", "lora_ga")),
    }
    if wrong := [reason for reason, is_so in refused.items() if is_so]:
        raise InputError(
            f"the adapter {adapter!r} of the {part} would load as something else: {wrong[0]}; only plain LoRA and DoRA "
            "weights are saved"
        )
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)
    ]
    for name, layer in layers:
        if adapter in getattr(layer, "scaling", {}):
            r, alpha = layer.r[adapter], layer.lora_alpha[adapter]
            usual = alpha / math.sqrt(r) if about.get("use_rslora") else alpha / r
            if not math.isclose(layer.scaling[adapter], usual, rel_tol=1e-6, abs_tol=1e-12):
                raise InputError(
                    f"the adapter {adapter!r} runs at {layer.scaling[adapter] / usual:g} times its scale in "
                    f"{plain_name(name)}, which a file does not hold; set it to 1 first: "
                    f"pipe.set_adapters({adapter!r}, 1.0)"
                )
    found = get_peft_model_state_dict(module, adapter_name=adapter)
    tensors = {plain_name(key): as_written(key, tensor) for key, tensor in found.items()}
    return tensors, {key: _plain_setting(value) for key, value in about.items()}


def _plain_setting(value: Any) -> Any:
    """Return a setting of an adapter with the plain names of layers, made of what JSON can represent."""
    if isinstance(value, str):
        for part in WRAPPERS:
            value = value.replace(f"{part}.", "").replace(f"{part}\\.", "")
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(_plain_setting(each) for each in value)
    if isinstance(value, (list, tuple)):
        return [_plain_setting(each) for each in value]
    if isinstance(value, dict):
        return {_plain_setting(key): _plain_setting(each) for key, each in value.items()}
    return value


def _compare(file: Path, written: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Read a LoRA back and compare every tensor and the settings on which a loader depends.

    Raises:
        InputError: the file holds other tensors or settings.
    """
    with safe_open(str(file), "pt") as read:
        names, about = (
            set(read.keys()),
            json.loads((read.metadata() or {}).get("lora_adapter_metadata", "{}")),
        )
        same = names == set(written) and all(
            torch.equal(read.get_tensor(name), tensor) for name, tensor in written.items()
        )
    for argument, settings in given.items():
        if argument.endswith("_lora_adapter_metadata"):
            part = argument.removesuffix("_lora_adapter_metadata")
            keys = (
                "r",
                "lora_alpha",
                "rank_pattern",
                "alpha_pattern",
                "use_dora",
                "use_rslora",
            )
            same = same and all(about.get(f"{part}.{key}") == settings.get(key) for key in keys)
    if not same:
        raise InputError(
            "the installed diffusers wrote a LoRA without its settings or with other weights, which would load as "
            "something else; install diffusers 0.35 or later"
        )


def save_noise(
    path: str | Path, noise: Tensor, *, scheduler: str, steps: int | None, seed: int | None = None
) -> None:
    """Save initial noise with the settings that are needed to sample from it again.

    Args:
        path: the file; its folder must exist.
        noise: (batch, *shape), of floating point.
        scheduler: the name of the scheduler or solver.
        steps: number of steps, at least 1; None where the sampler has no such number.
        seed: the seed from which the noise was drawn; None if it was optimized.

    Raises:
        InputError: the noise is empty, has fewer than two dimensions, is not of floating point or not finite, or steps
            is below 1.
        SavingError: the file cannot be written; it is an `InputError`, too.

    Examples:
        >>> import pathlib, tempfile
        >>> import torch
        >>> import adjointdpm as adp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "noise.safetensors"
        ...     adp.save_noise(file, torch.zeros(1, 4, 8, 8), scheduler="DDIMScheduler", steps=25, seed=0)
        ...     noise, about = adp.load_noise(file)
        >>> noise.shape, about["steps"]
        (torch.Size([1, 4, 8, 8]), '25')
    """
    if noise.ndim < 2 or not noise.numel() or not noise.is_floating_point():
        raise InputError(
            f"noise is (batch, *shape) of floating point, but is {tuple(noise.shape)} of {noise.dtype}"
        )
    if steps is not None and steps < 1:
        raise InputError(f"noise is sampled from in at least 1 step, but steps is {steps}")
    about = {"scheduler": scheduler, "steps": "" if steps is None else str(steps)}
    about["seed"] = "" if seed is None else str(seed)
    write_file(path, save({"noise": as_written("the noise", noise)}, {"format": "pt", **about}))


def load_noise(path: str | Path) -> tuple[Tensor, Mapping[str, str]]:
    """Read the noise that `save_noise` wrote.

    Args:
        path: the file.

    Returns:
        the noise, (batch, *shape), on the CPU, and the metadata: "scheduler", "steps" and "seed" as strings, empty
        where `save_noise` received None.

    Raises:
        InputError: there is no such file, it is no safetensors file or damaged, or it holds no noise.
    """
    tensors, about = _safetensors("noise", path)
    if "noise" not in tensors:
        raise InputError(f"{path} holds {', '.join(tensors) or 'nothing'}, but no noise")
    return tensors["noise"], about


def load_lora(pipe: Any, path: str | Path) -> None:
    """Load a LoRA into a pipeline by its own `load_lora_weights`: all of the file, or an error.

    Args:
        pipe: a pipeline of diffusers, which gets the adapter.
        path: a safetensors file, or the folder that `save_lora` wrote.

    Raises:
        InputError: there is no such file, it is not in safetensors, the pipeline takes no LoRA, or some of the file's
            layers are not in the pipeline.
    """
    file = Path(path)
    file = file / "pytorch_lora_weights.safetensors" if file.is_dir() else file
    tensors, _ = _safetensors("a LoRA", file)
    loader = getattr(pipe, "load_lora_weights", None)
    if loader is None:
        raise InputError(f"{type(pipe).__name__} has no load_lora_weights, so it takes no LoRA")
    try:
        with quiet():
            loader(file.parent, weight_name=file.name, use_safetensors=True, local_files_only=True)
    except Exception as error:  # loaders raise whatever does not fit
        raise InputError(
            f"the LoRA {path} does not fit {type(pipe).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    layers = sum(name.endswith(_LORA_DOWN) for name in tensors)
    modules = (
        m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()
    )
    loaded = sum(len(getattr(module, "lora_A", ())) for module in modules)
    if loaded < max(layers, 1):
        raise InputError(
            f"the LoRA {path} is for another model: {type(pipe).__name__} has {loaded} of its {layers} layers"
        )


def load_textual_inversion(pipe: Any, path: str | Path) -> str:
    """Load a learned token into a pipeline by its own `load_textual_inversion`, for both text encoders of SDXL.

    Args:
        pipe: a pipeline of diffusers, whose tokenizers and text encoders get the token.
        path: the file that `save_textual_inversion` wrote.

    Returns:
        the token, as it stands in prompts.

    Raises:
        InputError: there is no such file, it holds something else, or the pipeline does not take it.
    """
    tensors, about = _safetensors("a textual inversion", path)
    pair = set(tensors) == {"clip_l", "clip_g"} and "token" in about
    if not pair and len(tensors) != 1:
        raise InputError(
            f"{path} holds {', '.join(sorted(tensors)[:5]) or 'nothing'}, but no token; give the "
            "learned_embeds.safetensors that an inversion wrote"
        )
    loader = getattr(pipe, "load_textual_inversion", None)
    if loader is None:
        raise InputError(
            f"{type(pipe).__name__} has no load_textual_inversion, so it takes no learned token"
        )
    token = about["token"] if pair else next(iter(tensors))
    try:
        with quiet():
            if pair:
                loader(tensors["clip_l"], token, pipe.tokenizer, pipe.text_encoder)
                loader(tensors["clip_g"], token, pipe.tokenizer_2, pipe.text_encoder_2)
            else:
                loader(tensors[token], token)
    except Exception as error:  # loaders raise whatever does not fit
        raise InputError(
            f"the token {token!r} of {path} does not fit {type(pipe).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return token


def _safetensors(what: str, path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors and the metadata of a file.

    Raises:
        InputError: there is no such file, or it is not whole or not in safetensors.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise InputError(f"{path} cannot be read as {what} in safetensors: it is no ordinary file")
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as {what} in safetensors ({error})") from error


def as_written(name: str, tensor: Tensor) -> Tensor:
    """Copy a tensor for a file: on the CPU, contiguous, with memory of its own, and without a graph.

    Args:
        name: the tensor's name, for the message.
        tensor: the tensor, on any device.

    Returns:
        the copy.

    Raises:
        InputError: the tensor holds NaN or infinity.
    """
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise InputError(
            f"{name} holds NaN or infinity, so it is not written; train with a lower learning rate"
        )
    plain = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
    return plain.copy_(tensor).detach()
