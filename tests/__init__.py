"""Tests mirror `src/adjointdpm/`; `system/` runs whole programs, `tiny/` builds the models."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "adjointdpm"
