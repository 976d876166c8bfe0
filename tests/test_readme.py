"""The README's runnable blocks run word for word, in one empty folder, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- runnable -->\n```(\w+)\n(.*?)```", README, flags=re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, folder):
    language, text = BLOCKS[number]
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "report" in text:
        assert list(folder.glob("runs/*/report.html"))


def test_there_are_blocks_of_both_kinds():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_the_python_api_does_it_in_under_ten_lines():
    text = next(text for language, text in BLOCKS if language == "python")
    statements = [line for line in text.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(statements) < 10


def test_every_verb_is_named():
    done = subprocess.run([sys.executable, "-m", "equidyn.cli", "--help"], capture_output=True, text=True, check=True)
    verbs = re.findall(r"^    (\w+) ", done.stdout, flags=re.M)
    assert len(verbs) >= 8
    assert all(f"equidyn {verb}" in README for verb in verbs)


def test_links_lead_somewhere():
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    assert all((root / target).exists() for target in targets)
