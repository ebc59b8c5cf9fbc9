"""Progress bars on the error stream."""

from adjointdpm.optimization.progress import progress, size


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


def test_bytes_are_shown_in_the_largest_unit_below_them():
    shown = [size(each) for each in (0, 1023, 1024, 3 * 2**20, int(3.5 * 2**30), 2**50)]
    assert shown == ["0B", "1023B", "1KiB", "3MiB", "3.5GiB", "1024TiB"]


class Other:
    first = False
