"""Generated pages are what their scripts would write now, and the README's code runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from kizami import _core
from kizami.demo import EMBEDDED

ROOT = Path(__file__).parent.parent


def script(path: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cli_page_is_up_to_date():
    page = script("docs/make_cli.py")
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "run `make docs`"


def test_formats_page_is_up_to_date():
    """But for what was measured, of which every format must have its line."""
    page = script("bench/formats.py")
    facts, times = page.PAGE.read_text(encoding="utf-8").split(page.TIMES)
    assert facts == page.facts(), "run `make formats`"
    tables = [re.findall(r"^\| (\w+) \|", table, re.MULTILINE) for table in times.split("\n### ")[1:]]
    assert tables and all(table == [t["name"] for t in _core.types()] for table in tables)


def test_the_readmes_python_runs(tmp_path, capsys):
    """Every Python block of the README, on the embedded model under the names the README uses."""
    text = (EMBEDDED / "calibration.txt").read_text(encoding="utf-8")[:6000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    names = {"DeepSeek-V3": EMBEDDED, "v3.gguf": tmp_path / "v3.gguf", "text.txt": tmp_path / "text.txt"}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for name, path in names.items():
            block = block.replace(f'"{name}"', repr(str(path)))
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out
