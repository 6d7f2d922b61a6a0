"""The texts: short enough to be read, no link that leads nowhere, and every command and snippet in them runs.

In: README.md, ARCHITECTURE.md, docs, results.  Out: failures that name the file, and the link or the command.

A page's fenced blocks are `bash` (commands), `python` (snippets, which share their names down the page) or `text`. What
a snippet needs and a reader does not want to see stands in a comment, `<!-- setup … -->`. Long commands run with the
sizes of `QUICK`; `make` is asked what it would do, since .ci/run does it.
"""

import contextlib
import functools
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tipl
from tipl.cli.main import main

ROOT = Path(__file__).parents[1]
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*/*.md")])
PAGES = [path for path in TEXTS if re.search(r"^```(bash|python)$", path.read_text(encoding="utf-8"), re.MULTILINE)]
BLOCK = re.compile(r"^<!-- setup\n(.*?)^-->$|^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)|<img src="([^"]+)"')

QUICK = {"--total-steps": 8_192, "--steps": 4, "--warmup-steps": 2, "--validate-every": 2}
"""The most of each that a command is run with; the store that the pages begin from has STORE_STEPS."""
STORE_STEPS = 45_056
MAKES_STORE = "tipl collect --env-id InvertedPendulum-v4 --trials 10 --total-steps 100000 --hidden-sizes 8 8"


def test_the_readme_is_read_in_two_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 600
    commands = re.findall(r"^(make \w+)", text, re.MULTILINE)
    assert commands == ["make setup", "make reproduce", "make test"]


def test_the_architecture_is_short_and_names_what_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 2500
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    there = {path.stem for path in (ROOT / "src" / "tipl").iterdir() if path.suffix in ("", ".py")}
    assert {name for row in rows for name in re.findall(r"\w+", row)} == there - {"__init__", "__pycache__", "py"}
    files = re.findall(r"`((?:src|tests|docs|studies|benchmarks)/[\w/.-]+)`", text)
    assert len(files) > 5 and all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = [link for link in map("".join, LINK.findall(text)) if not _leads_somewhere(path, link)]
    assert not broken


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = ROOT / "docs" / "index.md"
    for link in ("concepts.md#glossary", "../README.md", "#install", "https://arxiv.org/abs/2503.04074"):
        assert _leads_somewhere(page, link)
    for link in (
        "concept.md",
        "concepts.md#gloss",
        "README.md",
        "#instal",
        "http://arxiv.org/",
        "https://x y",
        "https:/x",
    ):
        assert not _leads_somewhere(page, link)


def _leads_somewhere(page: Path, link: str) -> bool:
    """Whether a link's file is there, and its heading; of links outside only the form is seen."""
    if ":" in link:
        return re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s]*)?", link) is not None
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target.read_text(encoding="utf-8"))


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/*/")), ids=lambda folder: folder.name)
def test_results_answer_in_three_hundred_words(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "```\n" in text and re.match(r"# .*\?\n", text)
    assert "**Distrust**" in text
    assert len(re.findall(r"\S*\w\S*", text)) <= 300


def test_results_are_small() -> None:
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the pages begin from, made by the command of docs/index.md."""
    path = tmp_path_factory.mktemp("docs") / "store"
    assert f"{MAKES_STORE} --out runs/store" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    command = MAKES_STORE.replace("--total-steps 100000", f"--total-steps {STORE_STEPS}")
    assert main([*shlex.split(command)[1:], "--out", str(path)]) == 0
    return path


@pytest.mark.pages
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_snippets_run(page: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(store, tmp_path / "runs" / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "page"}
    for line, kind, code in _blocks(page.read_text(encoding="utf-8")):
        match kind:
            case "python":
                exec(compile("\n" * line + code, str(page), "exec"), names)
            case "bash":
                for name, value in re.findall(r"^export (\w+)=(.*)$", code, re.MULTILINE):
                    monkeypatch.setenv(name, value.replace("$PWD", str(tmp_path)))
                for command in code.replace("\\\n", " ").replace(f"{MAKES_STORE} --out runs/store", "").splitlines():
                    _run(shlex.split(command, comments=True))
            case _:
                assert kind == "text", f"{page}:{line}: a block is bash, python or text, not {kind!r}"


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for line, kind, code in _blocks(page.read_text(encoding="utf-8")):
            hidden = re.search(r"^(tipl|make|python|pip|torchrun|import|from) ", code, re.MULTILINE)
            assert kind in ("bash", "python") or hidden is None, f"{page}:{line}"


@pytest.mark.parametrize(
    "page",
    [path for path in TEXTS if path.stem not in ("LOG", "HISTORY")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_and_flags_within_sentences_are_there(page: Path) -> None:
    """And those of results, which run for hours: of these only the flags are looked at."""
    text = page.read_text(encoding="utf-8")
    spans = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?:tipl|python) .*", text, re.MULTILINE)]
    for words in (span.split() for span in spans):
        flags = [word for word in words if re.fullmatch(r"--[\w-]+", word)]
        match words:
            case ["tipl", verb, *rest]:
                known = _help(*([verb, rest[0]] if verb in ("data", "hub") else [verb]))
            case ["python", script, *_] if script.endswith(".py") and not script.startswith("examples"):
                known = (ROOT / script).read_text(encoding="utf-8") + _help("accelerate")
            case [flag, *_] if flag.startswith("--"):
                known = "".join(
                    _help(verb) for verb in ("collect", "fit-svd", "train", "evaluate", "forecast", "accelerate")
                )
            case _:
                continue
        assert set(flags) <= set(re.findall(r"--[\w-]+", known)), f"{page}: {' '.join(words)}"


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: tipl\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*listed, "__version__"]) == sorted(tipl.__all__)


def test_the_forge_runs_what_everybody_runs() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for workflow in sorted(ROOT.glob(".github/workflows/*.yml")):
        text = workflow.read_text(encoding="utf-8")
        commands = re.findall(r"^ *- run: (.*)$", text, re.MULTILINE)
        assert commands and all(
            command in (".ci/run", *(f"make {target}" for target in targets)) for command in commands
        )
        assert "without a forge to run on" in text


@functools.cache
def _help(*verb: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main([*verb, "--help"])
    return said.getvalue()


def _blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the kind and the content of a page's blocks."""
    for match in BLOCK.finditer(text):
        setup, kind, code = match.groups()
        line = text[: match.start()].count("\n") + 1
        yield (line, kind, code) if setup is None else (line, "python", setup)


def _run(command: list[str]) -> None:
    if "&&" in command:
        first = command.index("&&")
        _run(command[:first])
        command = command[first + 1 :]
    match command:
        case [] | [".", ".venv/bin/activate"] | ["export", _]:
            pass
        case ["make", *_]:
            subprocess.run([*command, "--dry-run", "--directory", ROOT], check=True, capture_output=True)
        case ["tipl", *arguments]:
            with contextlib.redirect_stdout(None):
                assert main(_quick(arguments)) == 0, command
        case ["python", *arguments]:
            subprocess.run([sys.executable, *_quick(arguments)], check=True, capture_output=True)
        case ["torchrun", *arguments]:
            torchrun = Path(sys.executable).parent / "torchrun"
            subprocess.run([torchrun, *_quick(arguments)], check=True, capture_output=True)
        case _:
            raise AssertionError(f"{command} is run by no test")


def _quick(arguments: list[str]) -> list[str]:
    """The arguments with sizes that are no larger than those of QUICK."""
    sized = zip(["", *arguments], arguments, strict=False)
    return [str(min(int(each), QUICK[flag])) if flag in QUICK else each for flag, each in sized]
