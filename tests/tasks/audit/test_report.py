"""The page of an audit."""


def test_the_page_has_no_links_and_escapes_names(result):
    text = (result.folder / "index.html").read_text()
    assert "<b>other" not in text
    assert "<i>again" not in text
    assert "http" not in text.replace("data:", "")
    for word in ("random noise", "SPSA", "How to repeat this", "By label"):
        assert word in text
