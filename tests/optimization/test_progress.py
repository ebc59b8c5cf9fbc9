"""Progress bars on the error stream."""

from adjointdpm.optimization.progress import progress


def test_a_bar_has_its_name_and_the_time_left_and_can_be_off(capfd, monkeypatch):
    with progress("work", 4, done=2) as bar:
        bar.update()
    out, shown = capfd.readouterr()
    assert not out
    assert shown.strip().startswith("work: ")
    assert "| 3/4 [" in shown
    with progress("work", 4, quiet=True) as bar:
        bar.update()
    monkeypatch.setattr("adjointdpm.optimization.progress.Processes.here", lambda: Other)
    with progress("work", 4) as bar:
        bar.update()
    assert capfd.readouterr() == ("", "")


class Other:
    first = False
