"""A pipeline's own encoding of prompts, as tensors under the names of its call's arguments.

The pipeline's `__call__` runs on a proxy up to its latents, or to its first denoiser call if it has no latents. The
results of its `encode_prompt` are recorded on the way, so the pipeline itself chooses the arguments of that method.
Where a call takes a list with one tensor a sample, a Cond has one padded tensor and `<name>_lengths`. Where the method
returns both halves of the guidance as one, and processed further than the call's own arguments (Stable Audio), the
results of the text encoder are recorded in its place.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Cond, InputError
from .call_signature import LENGTHS, Arguments, arguments_of, guides
from .gradient_proxy import routed
from .run_until import StopAtFirstCall, run_until, stop
from .token_embeddings import rows_in_force

__all__ = ["apart", "as_given", "encoded", "read_prompts"]


def read_prompts(
    pipe: Any, prompts: Sequence[str], negative: str, guidance_scale: float, given: Mapping[str, Any]
) -> Cond:
    """Encode prompts by a pipeline's own code.

    Args:
        pipe: the pipeline.
        prompts: the prompts.
        negative: the negative prompt of all of them.
        guidance_scale: w of classifier-free guidance.
        given: other arguments of the call, such as height and width.

    Returns:
        the conditioning, in float32 or wider; without negative tensors where the pipeline would not guide.

    Raises:
        InputError: the pipeline takes no prompts, or its call has no argument for their encoding; `given` holds
            prompts, or their encoding, or the guidance scale; or the number of embeddings is not that of the prompts.
    """
    takes, kind = arguments_of(type(pipe)), type(pipe).__name__
    if not takes.encoded:
        raise InputError(
            f"{kind} reads no prompts; pass its arguments as PipelineSampler(arguments={{...}}), and "
            "sample with an empty Cond()"
        )
    _refuse_given(takes, given)
    text: dict[str, Any] = {"prompt": list(prompts)}
    if "negative_prompt" in takes.names:
        guided = guides(pipe, guidance_scale)
        text["negative_prompt"] = [negative] * len(prompts) if guided else None
    if negative and text.get("negative_prompt") is None:
        why = (
            f"does not guide with {takes.guidance} = {guidance_scale:g}: guidance needs a value above 1"
            if "negative_prompt" in takes.names
            else "takes none"
        )
        warnings.warn(f"the negative prompt {negative!r} is ignored, since {kind} {why}", stacklevel=5)
    if takes.guidance:
        text[takes.guidance] = guidance_scale
    both_in_one = takes.conditioning == ("prompt_embeds",) and "negative_prompt_embeds" in takes.names
    results = _text_encoder_results if both_in_one else _encode_prompt_results
    found = results(pipe, takes, {**given, **text})
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if len(value) != len(prompts):
            raise InputError(
                f"{kind} makes {len(value)} {name} of {len(prompts)} prompts with the arguments "
                f"{', '.join(given) or 'it has'}; give one prompt for each image, and no number of images"
            )
        if isinstance(value, list):
            tensors[name + LENGTHS] = torch.tensor([len(rows) for rows in value], device=value[0].device)
            value = nn.utils.rnn.pad_sequence(value, batch_first=True)
        # Gradients and optimizers need float32; the cast back to the network's own dtype is exact.
        wide = torch.promote_types(value.dtype, torch.float32)
        tensors[name] = value.to(wide) if value.is_floating_point() else value
    return Cond(tensors)


def apart(cond: Cond) -> Cond:
    """A conditioning whose tensors are new leaves, without a graph to the text encoder."""
    return cond.map(lambda tensor: tensor.detach().clone())


def encoded(pipe: Any, read: Callable[[], Cond], graph: bool) -> Cond:
    """Encode prompts, with a graph to the text encoder or without.

    Args:
        pipe: the pipeline, or None.
        read: encodes the prompts.
        graph: whether to keep the graph; it is always kept while tokens are being learned (`TokenRows`).

    Returns:
        the conditioning; its tensors are new leaves if there is no graph.

    Raises:
        InputError: `graph` is true, and nothing in the text encoders requires a gradient.
    """
    if not (graph or _learning(pipe)):
        with torch.no_grad():
            return apart(read())
    cond = read()
    if graph and not any(tensor.requires_grad for tensor in cond.values()):
        why = (
            "no weight of the text encoders requires a gradient: call requires_grad_() on those that are trained"
            if torch.is_grad_enabled()
            else "gradients are off (torch.no_grad)"
        )
        raise InputError(f"encode(graph=True) has no graph to return, since {why}")
    return cond


def as_given(
    takes: Arguments, cond: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """A conditioning as the arguments of a pipeline's call.

    Args:
        takes: the arguments of the call.
        cond: the conditioning.
        dtype: the dtype to which embeddings are cast; None to leave them as they are.

    Returns:
        the arguments, by name; a list of tensors where the call takes a list.
    """
    out: dict[str, Any] = {}
    for name, tensor in cond.items():
        cast = dtype is not None and name in takes.conditioning and tensor.is_floating_point()
        value = tensor.to(dtype) if cast else tensor
        if name in takes.lists:
            lengths = cond[name + LENGTHS].tolist() if name + LENGTHS in cond else [None] * len(value)
            out[name] = [rows[:n] for rows, n in zip(value.unbind(), lengths, strict=True)]
        elif name not in takes.lengths:
            out[name] = value
    return out


def _encode_prompt_results(pipe: Any, takes: Arguments, given: dict[str, Any]) -> dict[str, Any]:
    """The results of encode_prompt in the pipeline's own call, by the names of the call's arguments."""
    names, recorded = iter(takes.encoded), dict[str, Any]()

    def encode_prompt(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def read(**changes: Any) -> Any:
            out = own(*args, **{**kwargs, **changes})
            return out, dict(zip(those, out if isinstance(out, tuple) else (out,), strict=False))

        those = next(names, ())
        out, found = read()
        recorded.update(found)
        limit = kwargs.get("max_sequence_length")
        if limit is not None and _ends_at(limit, found):
            with torch.no_grad(), warnings.catch_warnings(record=True) as message:
                warnings.simplefilter("always")
                _, longer = read(max_sequence_length=limit + 1)
            # Where the tokenizer cuts the prompt, the tokenizer has warned already.
            if _ends_at(limit + 1, longer) and not any("is lost" in str(each.message) for each in message):
                _warn_of_length(pipe, limit)
        return out

    def exchanged(proxy: Any) -> dict[str, Any]:
        return {"encode_prompt": partial(encode_prompt, proxy.encode_prompt), "prepare_latents": stop}

    run_until(pipe, exchanged, given, StopAtFirstCall())
    found = {name: recorded[name] for name in takes.conditioning if _there(recorded.get(name))}
    if not found:
        raise InputError(
            f"the call of {type(pipe).__name__} has no argument for the results of its encode_prompt, so "
            "a prompt cannot be encoded apart from sampling; use differentiable(pipe)"
        )
    return found


def _text_encoder_results(pipe: Any, _: Arguments, given: dict[str, Any]) -> dict[str, Any]:
    """The results of the text encoder and their masks, by which the pipeline itself turns rows off."""
    results: list[tuple[Tensor, Tensor]] = []

    def encode(own: Callable[..., Any], ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        out = own(ids, attention_mask=attention_mask, **kwargs)
        results.append((out[0], attention_mask))
        return out

    def exchanged(proxy: Any) -> dict[str, Any]:
        routes = {"text_encoder": partial(encode, proxy.text_encoder), "projection_model": stop}
        return {name: routed(getattr(pipe, name), "__call__", route) for name, route in routes.items()}

    run_until(pipe, exchanged, given, StopAtFirstCall())
    found: dict[str, Any] = {}
    for prefix, (rows, mask) in zip(("", "negative_"), results, strict=False):
        found |= {f"{prefix}prompt_embeds": rows, f"{prefix}attention_mask": mask}
    return found


def _ends_at(limit: int, found: Mapping[str, Any]) -> bool:
    """Whether row `limit`, the last one, is a token and not padding, by the mask; None is a mask of ones."""
    masks = [value for name, value in found.items() if "mask" in name]
    if not masks or not any(
        isinstance(each, Tensor) and each.shape[1:2] == (limit,) for each in found.values()
    ):
        return False
    return masks[0] is None or bool(masks[0][:, limit - 1].any())


def _warn_of_length(pipe: Any, limit: int) -> None:
    """Warn that a pipeline cuts off rows of an encoded prompt.

    Raises:
        InputError: a token that is being learned may be among them.
    """
    what = (
        f"{type(pipe).__name__} cuts the encoded prompt after max_sequence_length = {limit} tokens, so "
        "later tokens are lost"
    )
    if _learning(pipe):
        raise InputError(
            f"{what}, and a token that is being learned may be one of them; shorten the prompt"
        )
    warnings.warn(f"{what}; shorten the prompt", stacklevel=4)


def _learning(pipe: Any) -> bool:
    """Whether tokens of a pipeline's text encoders are being learned."""
    encoders = (
        [part for name, part in vars(pipe).items() if name.startswith("text_encoder")] if pipe else []
    )
    return any(any(rows_in_force(encoder)) for encoder in encoders)


def _there(value: Any) -> bool:
    """Whether an output of encode_prompt has a value; calls without guidance return None or empty lists."""
    return value is not None and len(value) > 0


def _refuse_given(takes: Arguments, given: Mapping[str, Any]) -> None:
    """Raise for arguments of the call that encoding would ignore, or that would contradict it.

    Raises:
        InputError: there is such an argument.
    """
    texts = {name for name in takes.names if re.fullmatch(r"(negative_)?prompt(_\d+)?", name)}
    for name in (name for name, value in given.items() if value is not None):
        if name in texts:
            raise InputError(
                f"the argument {name} is a prompt, but every text encoder reads the prompts that are passed to encode; "
                "leave it out, or use differentiable(pipe) for different prompts"
            )
        if name in takes.conditioning:
            raise InputError(
                f"the argument {name} is what encode makes of prompts; leave it out, or sample without encode: "
                f"Cond({{{name!r}: ...}})"
            )
        if name == takes.guidance:
            raise InputError(
                f"the argument {name} is a setting of the sampler: leave it out, and give the sampler guidance_scale"
            )
