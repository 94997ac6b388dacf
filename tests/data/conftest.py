"""A tiny pipeline with its encoders, and the plan of a cache of its encodings."""

import os
from pathlib import Path

import pytest
from prompt_caches import LENGTH, PROMPTS
from tiny_sd3 import save_tiny_pipeline

from fgm.data.encodings import PromptCache
from fgm.data.prompts import TextFile

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> PromptCache:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return PromptCache(TextFile(str(file)), str(tmp_path / "cache"), str(model), LENGTH, "float32", 5)
