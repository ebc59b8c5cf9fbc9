"""Every block of code of the site runs: as it is written, on tiny pipelines or in fewer steps; commands are read."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adjointdpm as adp
from tests import ROOT
from tests.tiny.commands import run
from tests.tiny.families import of
from tests.tiny.family_builders import stable_diffusion
from tests.tiny.media import pipeline as media_pipeline
from tests.tiny.metrics import tiny_clip
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


# Pages whose blocks run in their order, in one place: what is done less often there, and what comes before.
FEWER = {
    "first-gradient.md": {
        r"range\(12\)": "range(2)",
        r"PipelineSampler\(pipe, steps=10": "PipelineSampler(pipe, steps=2",
    },
    "your-classifier.md": {
        r"(classifier,\n    adp.tasks.AuditSettings\()max_train_steps=28": r"\1max_train_steps=1",
        **{r"steps=12": "steps=6", r"max_train_steps=28": "max_train_steps=8"},
        '"a cat on a blue background", "a red apple"': '"a red apple"',
        r"rounds=1, steps=500, clean=16": "rounds=1, steps=1, clean=1, held_out=1, batch_size=2",
    },
    "your-reward.md": {
        **{r"steps=10, guidance": "steps=2, guidance", r"max_train_steps=\d+": "max_train_steps=1"},
        **{r"num_validation_images=2": "num_validation_images=1", "openai/clip-vit-base-patch32": "clip"},
    },
    "tune-to-a-reward.md": {
        **{"steps=8": "steps=2", "keep=8": "keep=2", r"max_train_steps=\d+": "max_train_steps=2"},
        **{"lr_warmup_steps=2": "lr_warmup_steps=1", "validation_steps=5": "validation_steps=2"},
    },
    "many-gpus.md": {"steps=4": "steps=2"},
    "choosing-an-adjoint.md": {
        r"compare\(sampler, metric, ": "compare(sampler, metric, repeats=1, check=False, "
    },
    "families.md": {
        **{
            r"steps=20": "steps=2",
            "stabilityai/stable-diffusion-3.5-medium": "sd3",
            "torch.bfloat16": "torch.float32",
        },
        **{"a red apple": "a cat", "a cat on a dog": "a cat"},
    },
    "index.md": {},
    "audit-a-defence.md": {
        **{r"steps=(5|10)\b": "steps=2", r"draws=\d": "draws=2", r"votes=5": "votes=2"},
        **{"n_steps=(8|16)": "n_steps=2", r"max_iter=10": "max_iter=2"},
    },
    "surrogates.md": {},
    "video-and-sound.md": {
        **{r"steps=(10|30|100)\b": "steps=2", "bfloat16": "float32"},
        **{'"num_frames": 33, "height": 480, "width": 832': '"num_frames": 5, "height": 32, "width": 32'},
        **{r"Wan-AI/[\w.-]+": "WanPipeline", r"stabilityai/[\w.-]+": "StableAudioPipeline"},
        **{r'"audio_end_in_s": 10.0': '"audio_end_in_s": 4.0', r"\[0\] / 2\)": "[0] / 2, windows=(4, 8))"},
    },
}
ELSEWHERE = {"your-pipeline.md", "coming-from.md", "your-network.md"}  # above, on pipelines of their own
ELSEWHERE |= {"start-from-an-image.md", "inverse-problems.md"}  # below


def python_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_every_page_with_code_is_run():
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "```python" in path.read_text()}
    assert pages == {*FEWER, *ELSEWHERE}


@pytest.fixture
def before(page, tmp_path, monkeypatch):
    """The names that a page takes for granted, and the folder that its blocks run in."""
    monkeypatch.chdir(tmp_path)
    names = {}
    if page == "your-reward.md":
        tiny_clip(max_position_embeddings=16).float().save_pretrained("clip")
        tokenizer().save_pretrained("clip")
    if page == "choosing-an-adjoint.md":
        names = {"adp": adp, "sampler": adp.load_bundled("emoji", steps=2), "metric": adp.metrics.Chroma()}
    if page == "surrogates.md":
        sampler = adp.load_bundled("emoji", steps=4)
        names = {"adp": adp, "sampler": sampler, "noise": sampler.noise(1), "reward": adp.metrics.Chroma()}
        names["cond"] = sampler.encode("a cat").requires_grad_()
    if page == "families.md":
        of("sd3").make().save_pretrained("sd3")
        names["vectors"] = torch.zeros(1, 8)
    if page == "video-and-sound.md":
        for name in ("WanPipeline", "StableAudioPipeline"):
            media_pipeline(name).save_pretrained(name)
    if page == "many-gpus.md":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
    return names


def shortened(page, code):
    for real, fewer in FEWER[page].items():
        code = re.sub(real, fewer, code)
    return code


def ran(page, names):
    """The names after a page's blocks have run in their order."""
    for code in python_of(page):
        exec(compile(shortened(page, code), page, "exec"), names)
    return names


@pytest.mark.parametrize("page", ["first-gradient.md"])
def test_the_first_gradient_is_what_the_page_says(before, page, capsys):
    first, second, third, *rest = python_of(page)
    for code in (first, second, third):
        exec(compile(code, page, "exec"), before)
    value, norm, held = (float(each) for each in capsys.readouterr().out.split())
    text = " ".join((DOCS / page).read_text().split())
    assert f"It prints {value:.2f}, a norm of {norm:.2f}" in text
    assert f"about {round(held / 1e6)} million bytes" in text
    for code in rest:
        exec(compile(shortened(page, code), page, "exec"), before)
    assert float(before["scale"].grad.abs()) > 0
    assert float(before["embeds"].grad.norm()) > 0
    assert [check.verdict for check in before["found"].checks] == ["agrees"]
    assert before["before"].tobytes() != before["after"].tobytes()


@pytest.mark.parametrize("page", ["your-classifier.md"])
def test_a_classifier_is_audited_and_hardened_as_the_page_says(before, page):
    names = ran(page, before)
    assert names["found"].success.hits
    assert names["noise"].shape == names["found"].start.shape
    assert names["harder"].others_after.of == 1
    adp.load_classifier("outputs/audit/hardened/classifier")


@pytest.mark.parametrize("page", ["your-reward.md"])
def test_a_reward_is_checked_and_lowered_as_the_page_says(before, page):
    names = ran(page, before)
    assert [check.verdict for check in names["found"].checks] == ["agrees"]
    slope = (names["up"] - names["down"]) / 2e-4
    torch.testing.assert_close(names["slope"].reshape(1), slope, rtol=1e-5, atol=0)
    assert names["guided"].artefact.is_file()
    assert names["tuned"].artefact.is_file()


@pytest.mark.parametrize("page", ["tune-to-a-reward.md"])
def test_tuning_ends_in_the_files_that_the_page_names(before, page):
    names = ran(page, before)
    assert names["found"].folder.name == "matching"
    folder = Path("outputs/tune")
    files = {each.name for each in folder.iterdir()}
    assert {"pytorch_lora_weights.safetensors", "kohya_lora.safetensors", "validation"} <= files
    assert adp.tasks.load_result(folder)["result"]["methods"]["metric"]["means"]["judge"]


@pytest.mark.parametrize(
    "page",
    [
        "many-gpus.md",
        "choosing-an-adjoint.md",
        "surrogates.md",
        "families.md",
        "index.md",
        "video-and-sound.md",
    ],
)
@pytest.mark.filterwarnings(
    "ignore:`torch_dtype` is deprecated"
)  # the lowest diffusers knows no other name
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_the_blocks_of_a_page_run_in_their_order(before, page, capsys):
    ran(page, before)


LIBRARIES = ("foolbox", "art", "captum", "torchattacks", "autoattack")


def library_of(code):
    """The library that a block imports and that need not be installed."""
    found = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    return next((name for name in found if name in LIBRARIES), None)


@pytest.mark.parametrize("page", ["audit-a-defence.md"])
def test_a_defence_is_audited_as_the_page_says(before, page):
    for code in python_of(page):
        if library_of(code) is None:
            exec(compile(shortened(page, code), page, "exec"), before)
    found, images = before["found"], before["images"]
    assert float((found.x - found.centre).abs().max()) <= 8 / 255 + 1e-6
    assert before["result"].clean["majority"].of == len(images)


@pytest.mark.parametrize(
    ("page", "library"), [("audit-a-defence.md", name) for name in LIBRARIES], ids=LIBRARIES
)
@pytest.mark.filterwarnings("ignore")  # of other frameworks that a library looks for
def test_a_defence_is_driven_by_other_libraries_as_the_page_says(before, page, library):
    pytest.importorskip(library, reason=f"{library} is not installed; the page has an example for it")
    setup, *more = python_of(page)
    for code in (setup, more[0].partition("attack = ")[0], *(c for c in more if library_of(c) == library)):
        exec(compile(shortened(page, code), page, "exec"), before)
    found = next(before[name] for name in ("adversarial", "moved", "pixels") if name in before)
    assert abs(torch.as_tensor(found)).max() > 0


def shell_lines():
    """Every command of every page's shell blocks, in one line each, with the page that has it."""
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield page.name, shlex.split(line, comments=True)


def test_every_command_is_one(tmp_path, monkeypatch):
    """The commands of the pages are read with all their flags; what they do is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    commands, others = {}, []
    for page, words in shell_lines():
        if "adjointdpm" in words and words[0] in ("adjointdpm", "torchrun"):
            commands[page, shlex.join(words)] = words[words.index("adjointdpm") + 1 :]
        else:
            others.append(words)
    ended = run(*([*words, "--print_config"] for words in commands.values()))
    assert dict(zip(commands, ended, strict=True)) == dict.fromkeys(commands, "done")
    assert len(commands) > 15
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in others:
        assert words[:2] == ["pip", "install"] or (words[0] == "make" and words[1] in targets), words


def test_the_page_of_starting_from_an_image_runs():
    names: dict[str, object] = {}
    for code in blocks("start-from-an-image.md").values():
        smaller = code.replace("tolerance=0.05", "tolerance=10.0").replace("steps=25", "steps=4")
        exec(smaller.replace("steps=10", "steps=3"), names)
    assert names["edited"].shape == (1, 3, 64, 64)
    assert names["found"].value[0] > names["found"].value[1]


def test_the_page_of_inverse_problems_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("inverse-problems.md").values()
    names: dict[str, object] = {}
    exec(code.replace("calls=100", "calls=20").replace("steps=10", "steps=2"), names)
    assert len(names["found"].methods) == 7
    assert (tmp_path / "outputs" / "solve" / "index.html").is_file()
