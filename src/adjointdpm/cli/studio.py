"""`adjointdpm studio`."""

import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from .._types import InputError, Range
from ..optimization.signals import Interrupted
from ..samplers.flow_sampler import FlowSampler
from ..studio.jobs import Loaded, Model
from ..zoo import bundled
from .flags import ForBundled, Given, Group
from .options import ModelOptions, in_one_process
from .parse_metric import Networks, metric_of
from .parse_sampler import SOLVERS, adjoint_of

__all__ = ["PageOptions", "Studio", "StudioFolder", "StudioNetworks", "check_host", "check_port"]


@dataclass(frozen=True)
class PageOptions:
    """Where the page is, and what it offers.

    Args:
        host: Address to listen at.
        port: Port to listen at; the first free one from 7860 on by default.
        allow_remote: Allow a host that others can reach. There is no password.
        metric: Further metric that can be chosen on the page, as [weight*]kind[:argument]. May be repeated.
    """

    host: str = "127.0.0.1"
    port: Annotated[int | None, Range(1, 65_535)] = None
    allow_remote: bool = False
    metric: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudioNetworks:
    """The networks that metrics may need.

    Args:
        features: Classifier whose features style and content compare.
        layer: Index of a hidden state to compare. May be repeated; the first three are compared by default.
        clip_model: CLIP model, as a folder or a name, without which no text can be chosen.
        classifier: Classifier whose labels can be chosen.
    """

    features: Annotated[str | None, ForBundled("emoji/resnet", None)] = None
    layer: Annotated[tuple[int, ...], Range(-1000, 1000)] = ()
    clip_model: str | None = None
    classifier: Annotated[str | None, ForBundled("emoji/resnet", None)] = None

    def networks(self, sampler: FlowSampler) -> Networks:
        """Return the networks."""
        clip = self.clip_model or Networks.clip_model
        return Networks(sampler, self.features, self.layer, self.classifier, clip)


@dataclass(frozen=True)
class StudioFolder:
    """Where results go.

    Args:
        output_dir: Folder for the results of all runs; each start of the studio makes one of its own in it.
        verbose: Say what is done: all settings, the model, validations, checkpoints.
    """

    output_dir: Path = Path("outputs/studio")
    verbose: bool = False


@dataclass(frozen=True)
class Studio:
    """The flags of `adjointdpm studio`."""

    page: PageOptions = PageOptions()
    networks: StudioNetworks = StudioNetworks()
    model: Annotated[ModelOptions, Group(without=("num_inference_steps", "adjoint"))] = ModelOptions()
    output: StudioFolder = StudioFolder()

    def run(self, given: Given) -> None:
        """Serve the page until Ctrl-C or SIGTERM.

        Raises:
            InputError: A flag cannot be used, or the port is taken.
            ModuleNotFoundError: A module of this package is missing.
        """
        in_one_process(given.command)
        if find_spec("gradio") is None:
            raise InputError(
                'the studio needs gradio, which is not installed; run pip install "adjointdpm[studio]"'
            )
        check_host(self.page.host, self.page.allow_remote)
        check_port(self.page.host, self.page.port)
        if self.model.solver == "pipeline":
            raise InputError(
                "the studio needs our own steps, not the pipeline's scheduler; choose another --solver"
            )
        loaded = self._load()
        for each in (*self.page.metric, *(["clip-text:a cat"] if self.networks.clip_model else [])):
            loaded.metric_of([each])  # what cannot be used is an error before anybody chooses it
        from ..studio.server import serve  # gradio takes seconds to import

        served = serve(
            self._model(loaded),
            self.output.output_dir,
            loaded,
            bundled=bundled(self.model.pretrained_model_name_or_path),
            host=self.page.host,
            port=self.page.port,
        )
        try:
            with served as url:
                print(f"studio: {url} (Ctrl-C ends it)", flush=True)
                threading.Event().wait()
        except (KeyboardInterrupt, Interrupted):
            print("studio: ended", flush=True)

    def _load(self) -> Loaded:
        sampler = self.model.sampler()
        assert isinstance(sampler, FlowSampler)  # what every other --solver makes
        networks = self.networks.networks(sampler)
        return Loaded(sampler, lambda texts: metric_of(texts, networks))

    def _model(self, loaded: Loaded) -> Model:
        networks, labels = self.networks, list[str]()
        if networks.classifier is not None:
            labels = networks.networks(loaded.sampler).labelled().labels
        return Model(
            name=self.model.pretrained_model_name_or_path,
            load=self._load,
            adjoint_of=adjoint_of,
            solver_of=lambda name: SOLVERS[name](),
            solver=self.model.solver,
            flags=self._flags,
            labels=tuple(labels),
            has_features=networks.features is not None,
            has_clip=networks.clip_model is not None,
            metrics=self.page.metric,
        )

    def _flags(self, metric: Sequence[str]) -> list[str]:
        """Return the flags of the model and of the networks that a metric needs, where they are not the defaults."""
        chosen = ("solver", "num_inference_steps", "adjoint")  # on the page, or by what was chosen there
        plain = {each.name: each.default for each in fields(ModelOptions) if each.name not in chosen}
        flags = {name: getattr(self.model, name) for name in plain}
        flags = {name: value for name, value in flags.items() if value != plain[name]}
        kinds, networks = {_kind(each) for each in metric}, self.networks
        ours = "emoji/resnet" if bundled(self.model.pretrained_model_name_or_path) else None
        if kinds & {"label", "margin"} and networks.classifier != ours:
            flags["classifier"] = networks.classifier
        if kinds & {"style", "content"} and networks.features != ours:
            flags["features"] = networks.features
        layers = networks.layer if kinds & {"style", "content"} else ()
        if kinds & {"clip-text", "clip-image"} and networks.clip_model is not None:
            flags["clip_model"] = networks.clip_model
        return [f"--{name}={value}" for name, value in flags.items()] + [f"--layer={i}" for i in layers]


def check_host(host: str, allowed: bool) -> None:
    """Refuse an address that others can reach, unless that is wanted.

    Args:
        host: a name or an address.
        allowed: whether it is wanted.

    Raises:
        InputError: others can reach it.
    """
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here and not allowed:
        raise InputError(
            f"the host {host} can be reached by others, who could use this machine without a password; leave --host "
            "out, or give --allow_remote as well if that is wanted"
        )


def check_port(host: str, port: int | None) -> None:
    """Refuse a port at which nobody can listen, before the model is loaded.

    Args:
        host: a name or an address.
        port: the port; None for any that is free.

    Raises:
        InputError: it is taken, or may not be used.
    """
    if port is None:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            found.bind((host, port))
    except OSError as error:
        raise InputError(
            f"the studio cannot listen at {host}, port {port}: {error.strerror or error}; give another --port"
        ) from error


def _kind(metric: str) -> str:
    """Return the kind of a metric's text."""
    return metric.partition(":")[0].rpartition("*")[2].strip()
