# `make demo` and `make test` are all a newcomer needs; both install first, into .venv.

PYTHON ?= python3.11
BIN := .venv/bin
# Waiting threads sleep instead of spinning, which matters where two cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install browser demo test test-fast test-lowest test-newest check notebooks docs bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/adjointdpm demo

test: install browser
	$(BIN)/python -m pytest -n 2

# The studio's page is tested in a real browser, from the distribution's own packages. Where there is none and none can
# be installed, that test is skipped.
APT := apt-get -qq -o DPkg::Lock::Timeout=120
browser:
	@for each in chromium chromium-browser google-chrome; do command -v $$each >/dev/null && exit; done; { \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
		{ $$sudo $(APT) update && DEBIAN_FRONTEND=noninteractive $$sudo $(APT) install -y --no-install-recommends \
			chromium; } >/dev/null 2>&1 || \
		echo "there is no chromium, and apt-get cannot install it: the studio's test in a browser is skipped"; }

# For the change at hand: a file or two of each package, listed in tests/conftest.py.
test-fast: install
	$(BIN)/python -m pytest -n 2 -q -m fast

# The tests that meet the declared packages at every place where their releases differ: loading and saving, the
# pipelines' own calls against plain autograd, LoRA, textual inversion, tokens, metrics, the command line.
CORE := $(addprefix tests/,system/test_versions.py zoo/test_zoo.py files/test_pretrained.py \
	files/test_diffusers_files.py system/test_bundled.py pipelines/test_differentiable.py metrics/test_base.py \
	metrics/test_clip.py metrics/test_image_classifier.py metrics/test_image_processor.py metrics/test_style_content.py \
	cli/test_parse_metric.py cli/test_main.py cli/test_sample.py cli/test_demo.py)
# Families that the lowest diffusers and transformers do not have; pipelines whose images that diffusers makes with
# numpy, which has no gradient (the library refuses them there); CLIP, which that transformers does not run in float64;
# image processors that it does not have (the library refuses their settings there).
LATER := qwen or z-image or Wan or DDPM or DDIM or DiT or clip_is_its_models or of_a_bundled_reward
LATER += or sides] or processor[pad] or test_channels
# The bound of pyproject.toml is 2.6; on Linux that is a download of 3 GB, so it is not the default.
LOWEST_TORCH ?= 2.13.0
ifneq ($(filter 2.6.% 2.7.%,$(LOWEST_TORCH)),)
LATER += or memory_does_not_grow  # saved bytes are counted from torch 2.8 on
endif

.venv-%/.installed: pyproject.toml constraints-%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-$*.txt \
		--editable '.[test]' torch==$(TORCH)
	touch $@

test-lowest: TORCH = $(LOWEST_TORCH)
test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -W ignore::DeprecationWarning $(CORE) -k "not ($(LATER))"

test-newest: TORCH = 2.13.0
test-newest: .venv-newest/.installed
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q $(CORE)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Runs every notebook from top to bottom and keeps its outputs in the file, which is then committed with them.
notebooks: install
	$(BIN)/python notebooks/run.py

# The documentation as a site, in site/; a warning, such as a dead link, is an error.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/.installed: docs/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	touch $@

bench: install
	$(BIN)/python benchmarks/gradients.py --output docs/gradients.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/curve.py --output docs/curve.json --plot docs/curve.png
	$(BIN)/python benchmarks/speed.py --output docs/speed.json
	$(BIN)/python benchmarks/speed.py --trained --output docs/speed-trained.json
	$(BIN)/python benchmarks/pipelines.py
	$(BIN)/python benchmarks/scaling.py --output docs/scaling.json --plot docs/scaling.png
	$(BIN)/python benchmarks/real_size.py --steps 1 4 16 --output docs/real_size.json
	$(BIN)/python benchmarks/matters.py --starts 8 --steps 8 --sampling 12 --record docs/matters.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/studio.py --output docs/studio.json
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venv-docs .venv-lowest .venv-newest outputs site
