"""The documentation agrees with the code: its table of reasons, links, examples and names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb_xdp.cli import COMMANDS
from lb_xdp.config import load_config
from lb_xdp.datapath import reference
from lb_xdp.errors import DatapathError
from lb_xdp.metrics.exposition import Exposition
from tests.support.snapshots import SNAPSHOT

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND = re.compile(
    r"^(?:sudo )?(?:\S*/)?lb-xdp (?:--(?:name|socket) \S+ )?([a-z]+)\b", re.MULTILINE
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    """Return each page of the documentation in turn."""
    path: Path = request.param
    return path


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [body for kind, body in _FENCED.findall(text) if kind == language]


def anchors(path: Path) -> set[str]:
    """Return what a page's headings can be linked by, as GitHub makes it."""
    words = (heading.lower().replace(" ", "-") for heading in _HEADING.findall(path.read_text()))
    return {re.sub(r"[^\w-]", "", word) for word in words}


def relative_links(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of every link that stays in the repository; code is no text."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text(encoding="utf-8")))
    for target in _LINK.findall(prose):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield (path.parent / file if file else path), anchor


def exposed_names() -> set[str]:
    """Return every sample's name in a scrape."""
    exposition = Exposition()
    exposition.observe_probe("web", "web1", 0.004)
    text = exposition.render("", SNAPSHOT)[0].decode()
    return set(re.findall(r"^(lb_xdp_\w+)", text, re.MULTILINE))


def test_the_table_of_reasons_is_the_headers() -> None:
    """docs/packet-walk.md has each reason of bpf/lb_reason.h, with its verdict and meaning."""
    walk = (ROOT / "docs" / "packet-walk.md").read_text(encoding="utf-8")
    assert walk == reference.insert(walk), (
        "run: python -m lb_xdp.datapath.reference docs/packet-walk.md"
    )
    assert "| `no_backend` | drop |" in reference.render()


def test_a_page_without_markers_is_refused() -> None:
    """The table is put between its markers and nowhere else."""
    with pytest.raises(DatapathError, match="no place for the table"):
        reference.insert("# A page\n")


def test_the_command_renews_the_page(tmp_path: Path) -> None:
    """An old table is replaced, and what stands around it stays."""
    walk = tmp_path / "walk.md"
    walk.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")
    assert reference.main([str(walk)]) == 0
    text = walk.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert reference.render() in text
    assert "old" not in text


def test_relative_links_lead_somewhere(page: Path) -> None:
    """Every link into the repository names a file that is there, and a heading in it."""
    broken = [
        f"{target}#{anchor}"
        for target, anchor in relative_links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert broken == []


def test_metrics_that_pages_name_are_exposed(page: Path) -> None:
    """No page promises a metric that /metrics lacks; test_metrics has the other direction."""
    text = page.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"\blb_xdp_\w+", text) if not name.endswith("_")}
    modules = {path.stem for path in (ROOT / "bpf").glob("lb_xdp*")}
    exposed = exposed_names()
    histograms = {name.removesuffix("_bucket") for name in exposed}
    assert named - exposed - histograms - modules == set()


def test_configurations_in_the_readme_load(tmp_path: Path) -> None:
    """What the README shows can be copied, and is accepted without a warning."""
    examples = blocks(README, "yaml")
    assert len(examples) == 2
    for number, text in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_config(path).warnings == ()


def test_readme_and_architecture_show_the_same_diagram() -> None:
    """There is one picture of how things go."""
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert blocks(README, "text")[0] == blocks(architecture, "text")[0]


def test_commands_that_pages_name_exist(page: Path) -> None:
    """Every `lb-xdp VERB` in code is a command of ours."""
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *blocks(text, "sh")])
    verbs = set(_COMMAND.findall(code))
    assert verbs - set(COMMANDS) == set()
