"""What the command line says on the error stream, and when."""

import logging
import re

from adjointdpm.cli.log import line, listen, show
from tests.tiny.commands import ONE_IMAGE, adjointdpm


def test_verbose_says_all_settings_and_what_is_done_and_the_default_does_not(tmp_path):
    sample = [*ONE_IMAGE, "--num_inference_steps", "2", "--quiet", "--output_dir"]
    said = adjointdpm(*sample, str(tmp_path / "said"), "--verbose")
    silent = adjointdpm(*sample, str(tmp_path / "silent"))
    assert (said.returncode, silent.returncode, silent.stderr) == (0, 0, "")
    lines = said.stderr.splitlines()
    assert all(each.startswith("adjointdpm: ") for each in lines)
    assert "adjointdpm: num_inference_steps: 2" in lines
    assert re.search(
        r"model emoji: \d+ million weights in torch.float32 on cpu, .* in 2 steps", said.stderr
    )
    assert (tmp_path / "said/00-00.png").read_bytes() == (tmp_path / "silent/00-00.png").read_bytes()


def test_records_are_single_lines_which_one_of_several_processes_shows(capsys, monkeypatch):
    logger = logging.getLogger("adjointdpm")
    kept = logger.handlers[:], logger.level, logger.propagate
    try:
        listen()
        listen()
        show(verbose=True)
        logging.getLogger("adjointdpm.some.module").info("one\ntwo\x1b[31m %s", "three")
        monkeypatch.setenv("RANK", "1")
        logger.info("of the second process")
        logger.warning("of any process")
        show(verbose=False)
        monkeypatch.delenv("RANK")
        logger.info("not wanted")
    finally:
        logger.handlers[:], logger.level, logger.propagate = kept
    out, said = capsys.readouterr()
    assert out == ""
    assert said == line("one two\x1b[31m three") + "\nadjointdpm: warning: of any process\n"
    assert "\x1b" not in said
