"""The README's Python blocks run in order, as a reader would paste them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_python_blocks_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("kornia", reason="the augmentation's block needs the extra train")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), session)
    assert capsys.readouterr().out


def test_the_first_two_blocks_are_one_command_each() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.DOTALL)
    for language, block in blocks[:2]:
        assert language == "sh"
        assert block.count("\n") == 1
        assert "-c constraints.txt" in block
        assert "&&" in block
