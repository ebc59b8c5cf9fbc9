"""A hook of mkdocs: the notebooks are pages of the documentation, though they lie outside its folder."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files


@event_priority(100)  # before mkdocs-jupyter, which makes the pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks to the files of the documentation."""
    here = Path(__file__).parent
    for path in sorted(here.glob("*.ipynb")):
        name = f"{here.name}/{path.name}"
        file = File(name, str(here.parent), config.site_dir, config.use_directory_urls)
        files.append(file)
    return files
