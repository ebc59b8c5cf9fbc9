"""Only images that are classified as their prompt says are attacked."""


def test_only_starts_that_are_read_right(result):
    assert result.before.success.hits == 0
    assert result.before.says == result.labels
    assert result.tried >= len(result.labels) > 3
