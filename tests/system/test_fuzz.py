"""A campaign of malformed input: each command line ends in exit 0, or in exit 2 with one line that says why.

Values, configs, metrics and prompts are drawn from small grammars with a fixed seed; images, pipelines and classifiers
are real ones of a few thousand weights, of which a file is missing, cut, changed in some bits or exchanged. All run
in one process, through `cli.main` as an installed command does. More of the same, with other seeds:

    ADJOINTDPM_FUZZ_MINUTES=30 python -m pytest tests/system/test_fuzz.py
"""

import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from tests.tiny.families import of

MINUTES = float(os.environ.get("ADJOINTDPM_FUZZ_MINUTES", "0"))
LIMIT = 60  # seconds that a command line may take

Line = list[str]
Ending = tuple[object, str, list[str]]


class Place:
    """A folder with tiny models, images and metric modules, and a process in it that runs command lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker: Any = None

    def run(self, line: Line) -> Ending:
        """A command line's exit code, or the error it ends in; its output; and the lines of its error stream."""
        if self.worker is None:
            script = Path(__file__).with_name("command_worker.py")
            self.worker = subprocess.Popen(
                [sys.executable, script],
                cwd=self.folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.run(["--version"])  # the imports, before anything is timed
        self.worker.stdin.write(json.dumps(line) + "\n")
        self.worker.stdin.flush()
        if not select.select([self.worker.stdout], [], [], LIMIT)[0]:
            self.stop()
            return f"no answer in {LIMIT} seconds", "", []
        answer = self.worker.stdout.readline()
        if not answer:
            status = self.worker.wait()
            self.worker = None
            return f"the process died with {status}", "", []
        code, out, err = json.loads(answer)
        return code, out, [each for each in re.split(r"[\r\n]", err) if each.strip() and "%|" not in each]

    def stop(self) -> None:
        """End the process."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None


def fault(ending: Ending) -> str:
    """What is wrong with the way in which a command line ended; empty if nothing is."""
    code, out, lines = ending
    message = [each for each in lines if not each.startswith("adjointdpm: warning: ")]
    if code == 0 and out.strip() and not message:
        return ""
    if code == 2 and len(message) == 1 and message[0].startswith("adjointdpm: "):
        return ""
    return f"{code} {message[-3:]} {out[-200:]!r}"


# ------------------------------------------------------------------------------------------------- a place with files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The folder, which is the current one of these tests, too."""
    folder, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(folder)
    for family, name in (("sd", "model"), ("ddim", "promptless")):
        of(family).make().save_pretrained(name)
    _save_classifier(Path("classifier"))
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 8, 3), generator=draw, dtype=torch.uint8).numpy()
    for name in ("image.png", "image.jpg", "a+b.png"):
        Image.fromarray(pixels).save(name)
    Path("mine.py").write_text(
        "import sys\n"
        "def dark(x): return x.mean((1, 2, 3))\n"
        "def scalar(x): return x.mean()\n"
        "def nothing(x): return None\n"
        "def raises(x): raise KeyError('weights of my own')\n"
        "def exits(x): sys.exit(0)\n"
        "def asks(x): return x.mean((1, 2, 3)) * float(input())\n"
        "def nan(x): return x.mean((1, 2, 3)) * float('nan')\n"
        "def detached(x): return x.detach().mean((1, 2, 3))\n"
        "def later(x):\n    later.n = getattr(later, 'n', 0) + 1\n"
        "    if later.n > 3: raise RuntimeError('in a later call')\n    return x.mean((1, 2, 3))\n"
        "number = 3\n"
    )
    Path("exits.py").write_text("import sys\nsys.exit(3)\n")
    Path("raises.py").write_text("raise RuntimeError('on import')\n")
    Path("asks.py").write_text("name = input('your name? ')\ndef f(x): return x.mean((1, 2, 3))\n")
    Path("broken.py").write_text("def f(x:\n")
    Path("prompts.txt").write_text("a cat\n\na red dog\n")
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(bytes(range(256)))
    Path("file").write_text("not a folder")
    os.mkfifo("pipe")
    made = Place(folder)
    yield made
    made.stop()
    os.chdir(before)


def _save_classifier(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    about = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


# --------------------------------------------------------------------------------------------------------- the commands

SMALL = ["--num_inference_steps", "1", "--max_train_steps", "1", "--guidance_scale", "1", "--overwrite"]
MODEL = ["--pretrained_model_name_or_path", "model"]
ONE = ["--num_validation_images", "1"]
COMMANDS = {
    "tune": ["--metric", "chroma", "--prompt", "a cat", "--validation_prompt", "a dog", *ONE, *SMALL],
    "guide": ["--metric", "chroma", "--prompt", "a cat", "--look_ahead", "1", *ONE, *SMALL],
    "invert": [
        *(
            "--target_effect",
            "sepia",
            "--prompt",
            "a <effect> cat",
            "--validation_prompt",
            "a <effect> dog",
        ),
        *(*ONE, *SMALL),
    ],
    "audit": [
        *("--classifier", "classifier", "--prompt", "a cat", "--prompt", "a dog", "--no_controls", *SMALL),
    ],
}
TASKS = list(COMMANDS)


def command(name: str, *more: str, model: str = "model") -> Line:
    """A small command line that works as it is, and what is added to it; what comes last wins."""
    return [name, *COMMANDS[name], "--pretrained_model_name_or_path", model, "--output_dir", "out", *more]


def problem(*more: str) -> Line:
    """A small inverse problem that works as it is, and what is added to it."""
    measured = ["--image", "image.png", "--operator", "gray", "--prompt", "a cat", "--calls", "20", *ONE]
    return ["solve", *measured, *MODEL, "--output_dir", "out", "--overwrite", *more]


NUMBERS = [
    "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "abc", "", "18446744073709551616", "9" * 400, "0x10", "1,5",
    "--", "½", "-0.0", "true", "1e30", "None", "3.7", " 2 ", "1 2", "\u0661", "-9223372036854775809", "1__0", "[1]",
]  # fmt: skip
COUNT_FLAGS = [
    "--seed", "--max_train_steps", "--num_inference_steps", "--train_batch_size", "--checkpointing_steps",
]  # fmt: skip
NUMBER_FLAGS = {
    "tune": ["--rank", "--lora_alpha", "--max_grad_norm", "--validation_steps", "--num_validation_images", "--layer"],
    "guide": ["--look_ahead", "--strength", "--num_validation_images", "--layer"],
    "invert": ["--num_vectors", "--num_validation_images", "--num_starts", "--start_steps", "--layer"],
    "audit": [
        "--radius", "--radii", "--num_starts", "--tries", "--confidence", "--momentum", "--keep_weight",
        "--harden_rounds", "--harden_steps", "--harden_clean", "--harden_radius", "--harden_confidence",
        "--harden_variants",
    ],
}  # fmt: skip
WORD_FLAGS = [
    "--solver",
    "--adjoint",
    "--mixed_precision",
    "--device",
    "--report_to",
    "--norm",
    "--learn",
    "--judge",
]
WORDS = [
    "", " ", "none", "magic", "cuda", "cuda:99", "cuda:-1", "mps", "meta", "cpu:0", "foo", "fp8", "wandb", "truncated",
    "truncated:0",
    "checkpointed:1GiB", "checkpointed:auto", "coupled:euler", "coupled:rk4",
    "checkpointed:-1", "checkpointed:x", "continuous:0", "backprop:2", "truncated:99999999999999",
    "continuous:7", "reversible", "ab5", "l3", "\x1b[31mred", "ä" * 300, "../..", "emoji", "emoji/judge", "file",
]  # fmt: skip
PATHS = [
    "",
    "file",
    "file/below",
    "/dev/null/x",
    "/proc/none",
    "nowhere",
    "x" * 5000,
    "pipe",
    "classifier",
    ".",
]


def flags(draw: random.Random) -> Line:
    """A command with one number, word or path exchanged, or one flag too many or too few."""
    name = draw.choice(TASKS)
    kind = draw.random()
    if kind < 0.55:
        flag = draw.choice([*NUMBER_FLAGS[name], *COUNT_FLAGS, "--learning_rate", "--guidance_scale"])
        return command(name, flag, draw.choice(NUMBERS))
    if kind < 0.75:
        return command(name, draw.choice(WORD_FLAGS), draw.choice(WORDS))
    if kind < 0.85:
        flag = draw.choice(
            ["--output_dir", "--config", "--pretrained_model_name_or_path", "--judge", "--classifier"]
        )
        return command(name, flag, draw.choice(PATHS))
    line = command(name)
    if kind < 0.93:
        at = draw.randrange(len(line))
        return line[:at] + line[at + 1 :]
    return [
        *line,
        draw.choice(
            ["extra", "--no_such_flag", "--seed", "-x", "\udcff", "--prompt=\x00", "--=", "-", "''"]
        ),
    ]


EDGES = [
    *([name, "--prompt", *more] for name in ("sample", "compare") for more in (
        [], ["a cat", "--seed", "-1"], ["a cat", "--num_inference_steps", "0"], ["a cat", "--guidance_scale", "nan"],
        ["a xylophone"], ["a cat", "--output_dir", "file/x"], ["a cat", "--batch", "nan"],
        ["a cat", "--repeats", "0"], ["a cat", "--device", "cuda:77"], ["missing.txt"], ["binary.txt"],
        ["empty.txt"], ["pipe"], ["a cat", "a dog"],
    )),
    ["sample"], ["compare"], ["sample", "a cat"],
    *([name, "--prompt", "a cat", "--num_inference_steps", "1", "--output_dir", "out", "--overwrite", *quick, *more]
      for name, quick in (("sample", []), ("compare", ["--no_check", "--repeats", "1"])) for more in (
        *(["--pretrained_model_name_or_path", model] for model in (
            "promptless", "classifier", "nowhere", "file", "", "/dev/null", "a/b/c",
        )),
        ["--lora", "nowhere"], ["--lora", "model"], ["--lora", "file"], ["--lora", "pipe"], ["--lora", "x" * 5000],
        ["--learned_embeds", "file"], ["--learned_embeds", "image.png"], ["--learned_embeds", "."],
        ["--height", "0"], ["--height", "7"], ["--width", "nan"],
        ["--revision", "main"], ["--variant", "fp16"], ["--negative_prompt", "a xylophone"],
        ["--solver", "coupled:ab1"],
        ["--pretrained_model_name_or_path", "model", "--variant", "*"],
        ["--pretrained_model_name_or_path", "model", "--revision", "main"],
        ["--pretrained_model_name_or_path", "model", "--width", "9"],
        ["--pretrained_model_name_or_path", "model", "--mixed_precision", "bf16"],
    )),
    *(["sample", "--prompt", "a cat", "--noise", path] for path in ("nowhere", "file", "pipe", "/dev/zero", ".", "")),
    ["sample", "--prompt", "a cat", "--output_format", "gif"],
    *(["compare", "--prompt", "a cat", *more] for more in (
        ["--adjoint", "checkpointed:1B"], ["--adjoint", "reversible"], ["--metric", "content"],
    )),
    command("guide", "--adjoint", "reversible"), command("tune", "--adjoint", "checkpointed:1KB"),
    command("guide", "--solver", "coupled:euler", "--adjoint", "reversible"),
    command("audit", "--solver", "coupled:euler", "--adjoint", "reversible"),
    ["sample", "--prompt", "a cat", "--batch", "1000000"],
    ["sample", "--prompt", "a cat", "--batch", "1000001"],
    [], ["--version"], ["--help"], ["nosuch"], ["--seed", "3"], ["demo", "--output_dir", "file"],
    *([name] for name in TASKS), *([name, "--help"] for name in TASKS),
    *(command(name, "--pretrained_model_name_or_path", model) for name in TASKS for model in (
        "promptless", "classifier", "nowhere", "file", "", "/dev/null", "a/b/c", "emoji/resnet", "emoji/none",
    )),
    *(command(name, "--judge", judge) for name in ("tune", "guide", "audit") for judge in (
        "model", "nowhere", "file", "", "promptless", "emoji", "emoji/judge",
    )),
    command("invert", "--judge", "classifier"), command("invert", "--label", "cat"),
    command("invert", "--target_word", "red"), command("invert", "--target_effect", "glow"),
    command("invert", "--target_effect", "kornia:filters.sobel"), command("invert", "--metric", "style:image.png"),
    command("invert", "--distance", "effect:night"), command("invert", "--placeholder_token", "cat"),
    command("invert", "--target_images", "nowhere"), command("invert", "--target_images", "image.png"),
    command("invert", "--placeholder_token", ""), command("invert", "--initializer_token", ""),
    command("invert", "--initializer_token", "red apple"), command("invert", "--initializer_token", "zzz"),
    command("invert", "--initializer_token", "red", "--initializer_token", "red"),
    command("invert", "--learn", "rows", "--num_vectors", "2"), command("invert", "--num_vectors", "400"),
    command("tune", "--instance_prompt", "a cat"), command("tune", "--weights", "nothing.*"),
    command("tune", "--weights", "*", "--rank", "2"), command("tune", "--lora_layers", "nothing"),
    command("tune", "--label", "x"), command("tune", "--label", "cat", "--judge", "classifier"),
    command("tune", "--instance_image", "image.png", "--solver", "pipeline"),
    command("tune", "--instance_image", "image.png"), command("tune", "--instance_image", "file"),
    command("audit", "--harden_steps", "2"), command("audit", "--keep_features", "none", "--keep_weight", "2"),
    command("audit", "--target", "fish"), command("audit", "--target", "cat"), command("audit", "--label", "cat"),
    command("audit", "--radius", "3", "--shell"), command("audit", "--norm", "linf", "--shell"),
    command("audit", "--transfer", "nowhere"), command("audit", "--keep_features", "model"),
    command("guide", "--solver", "pipeline"), command("guide", "--look_ahead", "9"),
    command("audit", "--train_batch_size", "1000001"), command("guide", "--num_validation_images", "1000001"),
    command("tune", "--num_validation_images", "1000001"), command("invert", "--num_validation_images", "1000001"),
    command("audit", "--num_starts", "1000001", "--tries", "1"),
    problem(), ["solve"], ["solve", "--help"], problem("--measured"), problem("--solver", "pipeline"),
    *(problem("--image", image) for image in ("image.jpg", "nowhere", "file", "pipe", ".", "", "x" * 5000)),
    *(problem("--operator", operator) for operator in (
        "", "fog", "gray:size=2", "mask:share=2", "mask:share=nan", "box:size=0", "box:size=4", "blur:sigma=0",
        "blur:sigma=inf", "downsample:factor=3", "downsample:factor=1e9", "jpeg:quality=0", "phase:oversampling=0",
        "blur:sigma", "blur:=2", "blur:sigma=2,sigma=3", "mask:share=0.5", "downsample:factor=2",
        "phase:oversampling=2",
    )),
    *(problem(flag, value) for value in ("nan", "0", "-1", "abc", "", "1e400", "9" * 400) for flag in (
        "--calls", "--noise_level", "--learning_rate", "--num_validation_images", "--seed",
    )),
    problem("--method", "magic"), problem("--method", "dps"), problem("--calls", "19"),
    problem("--measured", "--operator", "downsample:factor=2"),
    problem("--pretrained_model_name_or_path", "promptless"),
    *(command(name, "--prompt", text) for name in TASKS for text in (
        "prompts.txt", "missing.txt", "empty.txt", "binary.txt", "pipe", "", "  ", "<effect> " * 200,
        "\x1b]0;title\x07 cat",
    )),
]  # fmt: skip


def configs(draw: random.Random) -> Line:
    """A config that is no config, or a good one with some characters exchanged."""
    good = "metric: chroma\nprompt: [a cat]\nvalidation_prompt: [a dog]\nseed: 3\nmixed_precision: no\n"
    levels = draw.choice([5, 50, 5000, 50_000])
    bomb = "a: &a [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 30)
    )
    key = draw.choice(
        ["seed", "prompt", "metric", "learning_rate", "config", "help", "overwrite", "layer", "device"]
    )
    value = draw.choice([
        "[1, 2]", "{a: 1}", "null", "", "nan", ".inf", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "0o17",
        "2020-01-01", "*nothing", "&a [*a]", '"\\0"', '"\\uD800"', "yes", "1e999", "'" + "x" * 10_000 + "'", "[[1]]",
    ])  # fmt: skip
    text = draw.choice([
        bomb, "[" * levels, "{a: " * levels, "- " * levels, "? " * min(levels, 500), f"{key}: {value}\n",
        good + f"{key}: {value}\n", good + good, "<<: {seed: 1}\n", "--- \n---\n", "seed: 1\n--- \nseed: 2\n",
        "just words", "\t", "", "a" * 300_000, "%YAML 9.9\n---\nseed: 1", "seed: |\n  1\n  2", "1: 2", "null: 3",
        "? [a]\n: b",
    ])  # fmt: skip
    content = text.encode()
    if draw.random() < 0.4:
        content = mutated(draw, good.encode())
    if draw.random() < 0.1:
        content = text.encode("utf-16")
    Path("config.yaml").write_bytes(content)
    return command(draw.choice(TASKS), "--config", "config.yaml")


def metrics(draw: random.Random) -> Line:
    """A metric of a small grammar, most of whose words are wrong."""
    kinds = [
        "pixels",
        "content",
        "style",
        "effect",
        "chroma",
        "background",
        "label",
        "margin",
        "clip-text",
        "clip-image",
    ]
    rests = [
        "",
        "image.png",
        "a+b.png",
        "cat",
        "fish",
        "0.1,0.2,0.9",
        "1,2",
        "nan,0,0",
        "night",
        "kornia:x.y",
        "file",
        "2,2,2",
    ]
    own = [
        "mine:dark", "mine:scalar", "mine:nothing", "mine:raises", "mine:exits", "mine:asks", "mine:nan", "mine:number",
        "mine:detached", "mine:later", "mine:no", "exits:f", "raises:f", "asks:f", "broken:f", "nowhere:f", "os:getcwd",
        "mine", ":", "mine:", ":dark", "..mine:dark", "builtins:print", "torch:relu",
    ]  # fmt: skip

    def term() -> str:
        weight = draw.choice(
            ["", "", "", "0.5*", "-2*", "nan*", "0*", "1e5*", "inf*", "x*", "*", "1e+2*", "+", "2**"]
        )
        if draw.random() < 0.5:
            return weight + draw.choice(own)
        return (
            f"{weight}{draw.choice(kinds)}{draw.choice([':', ':', ':', '', '::', '+'])}{draw.choice(rests)}"
        )

    text = draw.choice([" + ", "+", " - ", "++"]).join(term() for _ in range(draw.choice([1, 1, 1, 2, 3])))
    more = [word for _ in range(draw.choice([0, 0, 1, 2])) for word in ("--metric", term())]
    networks = (
        ["--features", "classifier", "--layer", draw.choice(["0", "99", "-1"])] if "style" in text else []
    )
    networks += ["--classifier", "classifier"] if re.search("label|margin", text) else []
    networks += ["--clip_model", draw.choice(["classifier", "nowhere"])] if "clip" in text else []
    name = draw.choice(["tune", "guide"])
    line = [name, *COMMANDS[name][2:], *MODEL, "--output_dir", "out"]
    return [*line, "--metric", text, *more, *networks]


def mutated(draw: random.Random, content: bytes) -> bytes:
    """Bytes with a part cut, some bits changed, or another part in it."""
    kind, data = draw.randrange(5), bytearray(content)
    if not data or kind == 0:
        return bytes(data[: draw.randrange(len(data) + 1)])
    at = draw.randrange(len(data))
    if kind == 1:
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[at:at] = draw.choice([b"\0" * 9, b"\xff\xfe", b'"', b"{", b"9" * 30, bytes(200)])
    elif kind == 3:
        del data[at : at + draw.choice([1, 7, 100])]
    else:
        data[: min(8, len(data))] = draw.randbytes(8)
    return bytes(data)


def changed_json(draw: random.Random, content: bytes) -> bytes:
    """A JSON file with one value of another kind, or one key less."""
    value = json.loads(content)
    if not isinstance(value, dict) or not value:
        return mutated(draw, content)
    key = draw.choice(sorted(value))
    if draw.random() < 0.25:
        del value[key]
    else:
        value[key] = draw.choice(
            [None, -1, 0, 10**9, "x", [], {}, [0], 1.5, True, "NoSuchClass", ["diffusers", "None"]]
        )
    return json.dumps(value).encode()


def images(draw: random.Random) -> Line:
    """A damaged image, or what is none."""
    source = Path(draw.choice(["image.png", "image.jpg"]))
    path = Path(f"damaged{source.suffix}")
    path.write_bytes(mutated(draw, source.read_bytes()))
    name = str(
        draw.choice(
            [path, path, path, "file", "pipe", "model", "nowhere.png", "/dev/zero", "empty.txt", ""]
        )
    )
    kind = draw.choice(["style", "pixels", "content", "instance"])
    if kind == "instance":
        return command("tune", "--instance_image", name)
    networks = [] if kind == "pixels" else ["--features", "classifier", "--layer", "0"]
    line = ["guide", *COMMANDS["guide"][2:], *MODEL, "--output_dir", "out"]
    return [*line, "--metric", f"{kind}:{name}", *networks]


def damaged(draw: random.Random, source: Path, target: Path) -> None:
    """A copy of a model's folder with one file missing, cut, changed or exchanged."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = draw.choice(sorted(each for each in target.rglob("*") if each.is_file()))
    content, kind = path.read_bytes(), draw.random()
    if kind < 0.15:
        path.unlink()
    elif kind < 0.2:
        path.unlink()
        path.mkdir()
    elif kind < 0.25:
        path.write_bytes(draw.choice([b"", b"null", b"[]", b"3", b"{}", b"[" * 100_000]))
    elif kind < 0.3:
        path.rename(path.with_suffix(".bin"))
    elif path.suffix == ".json" and kind < 0.75:
        path.write_bytes(changed_json(draw, content))
    elif path.suffix == ".safetensors" and kind < 0.75:
        length = int.from_bytes(content[:8], "little")
        head = mutated(draw, content[8 : 8 + length])
        path.write_bytes(draw.choice([
            len(head).to_bytes(8, "little") + head + content[8 + length :],
            (2**60).to_bytes(8, "little") + content[8:],
            content[: 8 + length] + draw.randbytes(len(content) - 8 - length),
            content[: len(content) // 2],
        ]))  # fmt: skip
    else:
        path.write_bytes(mutated(draw, content))


def models(draw: random.Random) -> Line:
    """A damaged pipeline."""
    damaged(draw, Path("model"), Path("damaged"))
    return command(draw.choice(TASKS), model="damaged")


def classifiers(draw: random.Random) -> Line:
    """A damaged classifier, in one of its places."""
    damaged(draw, Path("classifier"), Path("damaged-classifier"))
    name = "damaged-classifier"
    return draw.choice([
        command("audit", "--classifier", name),
        command("audit", "--transfer", name),
        command("audit", "--keep_features", name),
        command("tune", "--judge", name, "--label", "cat"),
        command("guide", "--metric", "label:cat", "--classifier", name),
        command("guide", "--metric", "style:image.png", "--features", name, "--layer", "0"),
    ])  # fmt: skip


KINDS = {
    "flags": (flags, 110),
    "configs": (configs, 60),
    "metrics": (metrics, 60),
    "images": (images, 30),
    "models": (models, 50),
    "classifiers": (classifiers, 40),
}


def test_the_commands_work_before_anything_is_changed(place: Place) -> None:
    """Otherwise each of the cases below would end in the same error for one reason."""
    for name in TASKS:
        code, out, lines = place.run(command(name))
        assert not fault((code, out, lines)), (name, code, lines, out)
        assert code == 0
        assert "page: " in out


def test_edges(place: Place) -> None:
    """Cases that are worth a line of their own."""
    found = {str(line)[:600]: fault(place.run(line)) for line in EDGES}
    wrong = [f"{line}\n    -> {message}" for line, message in found.items() if message]
    assert not wrong, f"{len(wrong)} of {len(EDGES)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_campaign(place: Place, kind: str) -> None:
    """Drawn cases of one kind; more of them, from other seeds, if there is time for it."""
    make, count = KINDS[kind]
    wrong, tried, end = [], 0, time.monotonic() + 60 * MINUTES / len(KINDS)
    while tried < count or time.monotonic() < end:
        draw = random.Random(f"{kind} {tried}")
        line = make(draw)
        found = fault(place.run(line))
        wrong += [f"{tried}: {str(line)[:600]}\n    -> {found}"] if found else []
        tried += 1
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)


def test_there_are_enough_cases() -> None:
    assert len(EDGES) + sum(count for _, count in KINDS.values()) >= 300
