"""The commands of docs/settings.md."""

from pathlib import Path

import pytest

from tests.support.pages import commands, fill, run


@pytest.mark.slow
def test_the_settings_page(tmp_path: Path, tiny_model: Path) -> None:
    fill(tmp_path, tiny_model)
    printed = [run(tmp_path, words) for words in commands("docs/settings.md")]
    assert "num_rollouts: 30" in printed[0]
    assert "alpha" in printed[1]
    assert all(source in printed[2] for source in ("gsm8k", "svamp", "asdiv", "math500"))
