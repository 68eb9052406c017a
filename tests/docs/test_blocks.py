"""Every code block of the documentation runs, is checked against real flags, or says why not."""

import re

import pytest

from tests.docs import blocks
from tests.docs.blocks import PAGES, ROOT, Block

ALL = [block for page in PAGES for block in blocks.blocks(page)]
SHELLS = [block for block in ALL if block.tag in ("", "bash")]
# Pages whose Python is run by a test of its own, with what it needs; see there.
RUN = {"docs/extending.md": "test_extending.py", "docs/python.md": "../test_api.py"}


@pytest.mark.parametrize("block", SHELLS, ids=str)
def test_commands_have_the_flags_and_fields_that_they_are_given(block):
    flags_alone = block.body.startswith("--")
    text = f"python -m mixtrain_jax.train {block.body}" if flags_alone else block.body
    assert not blocks.problems(text)
    if not blocks.why_not_run(block):
        for command in blocks.commands(text):
            if not blocks.OURS.search(command):
                assert blocks.program(command) in blocks.PROGRAMS, f"{block}: {command}"


@pytest.mark.parametrize(
    "block", [block for block in ALL if block.tag not in ("", "bash")], ids=str
)
def test_other_blocks_are_run_or_say_why_not(block):
    if block.mark.startswith("file: "):
        assert block.body == (ROOT / block.mark.removeprefix("file: ")).read_text()
    elif block.tag == "python":
        assert blocks.why_not_run(block) or block.page in RUN
    else:
        assert block.tag in blocks.TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_and_commands_in_running_text_exist(page):
    text = blocks.FENCE.sub("", page.read_text())
    assert not blocks.fields_in(text)
    spans = "\n".join(re.findall(r"`([^`\n]+)`", text))
    assert not blocks.problems(spans)
    indented = [line for line in text.splitlines() if re.match(r"^    (python|--|\$)", line)]
    assert not indented, "code is in fences, where it is found"


def test_the_pages_with_tests_of_their_own_have_them():
    for page, test in RUN.items():
        assert f'"{page.removeprefix("docs/")}"' in (ROOT / "tests" / "docs" / test).read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("python -m mixtrain_jax.train --workdr=x", "has no flag --workdr"),
        ("python -m mixtrain_jax.train --config.epoch=3", "no field epoch"),
        ("python -m mixtrain_jax.train --config.epochs=many", "expected a number"),
        ("python -m mixtrain_jax.train --config=configs/faster.py:fast", "unknown variant 'fast'"),
        ("x=1; until python -m mixtrain_jax.fit; do y; done", "mixtrain_jax.fit does not exist"),
        ("python tools/make_shapes.py --drops=.1", "has no flag --drops"),
        ("mixtrain-predict --output=o \\\n  --treshold=1 x.jpg", "has no flag --treshold"),
        ("make quick", "no such target"),
        ('pip install ".[gpus]"', "no extra gpus"),
    ],
)
def test_mistakes_are_found(text, problem):
    (found,) = blocks.problems(text)
    assert problem in found


def test_what_a_block_says_of_itself(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- not run: no network -->\n```\ngit x\n```\n\n```python\na = 1\n```\n"
    )
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    first, second = blocks.blocks(page)
    assert blocks.why_not_run(first) == "no network"
    assert second == Block("page.md", 8, "python", "", "a = 1\n")
    page.write_text("  ```\nhidden\n  ```\n")
    with pytest.raises(AssertionError, match="indented"):
        blocks.blocks(page)
    assert blocks.fields_in("`config.data.max_boxs` and `config.json`, `config.data`") == [
        "no field config.data.max_boxs"
    ]


LINK = re.compile(
    r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\""
)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    """The site's own pages are checked by `make docs`."""
    text = (ROOT / page).read_text()
    for groups in LINK.findall(text):
        target = next(filter(None, groups))
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = ROOT / file if file else ROOT / page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.M)
            anchors = {
                re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings
            }
            assert anchor in anchors, target
