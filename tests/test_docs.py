"""Every command in the documents and in `--help` is run, on small stand-ins for the files that it names."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from vargface import cli, demo
from vargface.cli import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("src/vargface", "symbols", "eval", "recipes", "benchmarks")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# what is as long as its user has patience for, made short
SHORTER = {
    "--identities 200 --images 50": "--identities 4 --images 2 --pairs 20",
    "--identities 1000 --images 20 --pairs 20": "--identities 4 --images 2 --pairs 20",
    "--identities 40 --images 10 --pairs 30": "--identities 4 --images 2 --pairs 20",
    "--min-images 5": "--min-images 2",
    "--pairs 600": "--pairs 6",
    "--calibrate ../shared/faces/real-mini": "--calibrate faces_ms1m-retinaface",
    "--model ../shared/faces/insightface-y1/model,0": "--model y1/model,0",
    "data=... teacher=... out=...": "data=ms1m teacher=r100/model,0 out=runs/dots",
    "../shared/faces/real-mini/mini_ff.bin ../shared/faces/real-mini/mini_fp.bin": "lfw.bin",
}
FEW_STEPS = ["steps=2", "warmup_steps=1", "batch_size=4", "multiplier=0.25", "generations=1", "report=False"]
# words that the commands of this name get at their end, so that they end soon; a rate at which a step on four faces,
# whose gradient batch norm may multiply by thousands (docs/training.md), moves nothing far
ENDINGS = {
    "demo": ["steps=2", "warmup_steps=1", "batch_size=4", "lr=0.001"],
    "train": ["embedding_size=128", "lr=1e-6", *FEW_STEPS],
    "launch": ["embedding_size=128", "lr=1e-6", *FEW_STEPS],
    "study": ["--seeds", "1"],
    "lfr score": ["--fpr", "1e-1"],
}
# not commands of ours, or what every other one needs done first
OTHERS = (
    "make train-student",
    "make test",
    "pip install",
    ".venv/bin/python benchmarks/",
    'python -c "import pytest, vargface.graph',  # what the gradient tests say of the native operator (docs/prelu.md)
    # two environments beside this one (CONTRIBUTING.md)
    "python3.11 -m venv",
    "/tmp/old/bin/pip install",
    "VARGFACE_INSIGHTFACE_OLD=",
)


def commands_in(text: str) -> list[str]:
    """The commands in the shell blocks of a document, comments and line breaks gone."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            if line:
                found.append(re.sub(r"\s+", " ", line).replace(".venv/bin/vargface", "vargface"))
    return found


def examples_of_help(parser: argparse.ArgumentParser) -> list[str]:
    """The example of each command's `--help`; each command has one."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if nested:
        return [example for command in nested[0].choices.values() for example in examples_of_help(command)]
    assert (parser.epilog or "").startswith("example: vargface "), f"{parser.prog}: --help has no example"
    return [parser.epilog[len("example: ") :]]


DOCUMENTED = list(dict.fromkeys(command for path in DOCUMENTS for command in commands_in(path.read_text())))
EXAMPLES = list(dict.fromkeys([*DOCUMENTED, *examples_of_help(cli._parser())]))
OURS = [command for command in EXAMPLES if command.startswith("vargface ") and not command.startswith("vargface demo")]
MAKES = [command for command in EXAMPLES if command.startswith("make ")]


def write(path: Path, identity: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), tiny.image(identity, number))


def photos(folder: Path) -> None:
    for identity in range(tiny.IDENTITIES):
        for number in range(4):
            write(folder / f"person{identity}" / f"{number}.png", identity, number)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, data):
    """A folder in which the files that the documents name exist, the demo of `make train-student` first."""
    stage = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage)
        patch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
        small = {"identities": 4, "images_per_identity": 3, "pairs": 20, "seed": 0}
        patch.setattr(demo, "DATA", small)
        (command,) = [command for command in EXAMPLES if command.startswith("vargface demo")]
        assert main([*shlex.split(command)[1:], *ENDINGS["demo"]]) == 0
    student, teacher = Path("runs/demo/student/student"), Path("runs/demo/teacher/teacher")
    for model, copies in {
        f"{student},1": ["student,120", "runs/lfr-student/gen-2/student,120", "runs/real-mini/student,4"],
        f"{teacher},1": ["r100/model,0", "y1/model,0", "runs/lfr-teacher/teacher,120"],
    }.items():
        prefix = stage / model.partition(",")[0]
        for copy in copies:
            target, _, number = (stage / copy).as_posix().partition(",")
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f"{prefix}-symbol.json", f"{target}-symbol.json")
            shutil.copy(f"{prefix}-0001.params", f"{target}-{int(number):04d}.params")
    for name in ("faces_ms1m-retinaface", "ms1m", "faces/real-mini"):
        shutil.copytree(data, stage / name)
    for name in ("pairs.bin", "lfw.bin"):
        shutil.copy(data / "pairs.bin", stage / name)
    for name in ("photos", "photos-of-others", "photos/aligned", "photos/aligned-others"):
        photos(stage / name)
    for number in range(3):
        write(stage / "aligned" / f"{number}.png", 0, number)
    write(stage / "photo.png", 1, 1)
    (stage / "list.txt").write_text("photo.png\naligned/1.png\n")
    np.save(stage / "array.npy", np.stack([tiny.image(0, 0), tiny.image(1, 0)]))
    (stage / "pairs.txt").write_text("person0/0.png person0/1.png 1\nperson0/0.png person1/1.png 0\n" * 10)
    shutil.copytree(ROOT / "recipes", stage / "recipes")
    (stage / "docs" / "images").mkdir(parents=True)
    submission(stage)
    return stage


def submission(stage: Path) -> None:
    """What the LFR commands are given: images, their list, labels."""
    names = [f"{identity}_{number}.png" for identity in range(tiny.IDENTITIES) for number in range(5)]
    for name in names:
        identity, number = map(int, name[:-4].split("_"))
        write(stage / "lfr_images" / name, identity, number)
    (stage / "lfr_images" / "filelist.txt").write_text("".join(f"{name}\n" for name in names))
    (stage / "labels.txt").write_text("".join(f"{name[0]}\n" for name in names))


def shortened(command: str) -> list[str]:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    if command == "vargface synth data/synthetic":
        command += " --identities 4 --images 2 --pairs 20"
    words = shlex.split(command)[1:]
    for name, ending in ENDINGS.items():
        if " ".join(words).startswith(name):
            words += ending
    return words


@pytest.mark.slow
def test_every_command_runs_as_it_is_documented(stage, monkeypatch, capsys):
    """In the documents' order, since one command's output is another's input."""
    monkeypatch.chdir(stage)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    from vargface.study import summary

    monkeypatch.setattr(summary, "HELD_OUT", 4)
    study = stage / "recipes" / "study" / "real_mini.py"
    study.write_text(f"{study.read_text()}\nrecipe.update(batch_size=4, steps=2, warmup_steps=1)\n")
    study.write_text(f"{study.read_text()}\ncells, main, comparisons = {{'one': {{}}}}, [], []\n")
    for command in OURS:
        if command.startswith(("vargface synth", "vargface rec build")):  # which take no folder that is there already
            shutil.rmtree("data", ignore_errors=True)
        if "1-of-2.npz" in command:  # what the parts of a score come from
            assert main(["lfr", "score", "feat.bin", "labels.txt", "--part", "1/2", "--fpr", "1e-1"]) == 0
            assert main(["lfr", "score", "feat.bin", "labels.txt", "--part", "2/2", "--fpr", "1e-1"]) == 0
        code = main(shortened(command))
        assert code == 0, f"{command}: exit code {code}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("command", MAKES)
def test_every_make_command_is_a_door_that_runs_what_parses(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.replace("\\\n", " ").splitlines() if line.startswith(".venv/bin/vargface ")]
    assert lines or "pytest" in done.stdout or "ruff" in done.stdout
    for line in lines:
        cli._parser().parse_args(shlex.split(line)[1:])


def test_no_command_of_the_documents_is_left_out():
    unknown = [command for command in DOCUMENTED if not command.startswith(("vargface ", "make ", *OTHERS))]
    assert not unknown


def spans_in(text: str) -> list[str]:
    """The commands in running text, and the benchmarks of the shell blocks, as words."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [
        re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?", "", command)
        for command in [*spans, *commands_in(text)]
        if re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:vargface|make|python benchmarks/\S+) ", command)
    ]


def options_of(words: list[str]) -> tuple[str, set[str]]:
    """The innermost command that `vargface WORDS` names, and every option that it takes."""
    parser, name = cli._parser(), "vargface"
    for word in words:
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not nested:
            break
        assert word in nested[0].choices, f"{name} has no command {word!r}"
        parser, name = nested[0].choices[word], f"{name} {word}"
    return name, {option for action in parser._actions for option in action.option_strings}


SPANS = list(dict.fromkeys(span for path in DOCUMENTS for span in spans_in(path.read_text())))


def test_spans_are_found_with_what_stands_before_them():
    text = "of `OMP_NUM_THREADS=1 python benchmarks/a.py --x` and `vargface embed`, `x`\n```sh\nmake test ARGS=1\n```\n"
    assert spans_in(text) == ["python benchmarks/a.py --x", "vargface embed", "make test ARGS=1"]
    assert len(SPANS) > 80


@pytest.mark.parametrize("span", SPANS)
def test_every_command_in_running_text_names_what_exists(span):
    """Parts of commands, which cannot be run as they stand: the command, the door, the file, every option."""
    words = [word.strip("[]") for word in span.split()]
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "vargface":
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        name, options = options_of(own)
        assert {word.partition("=")[0] for word in own if word.startswith("--")} <= options, name
    elif words[0] == "make":
        doors = [word.strip("[]") for word in shlex.split(span)[1:]]
        doors = [word for word in doors if word.isalpha() or "-" in word.partition("=")[0]]
        makefile = (ROOT / "Makefile").read_text()
        assert doors
        assert [door for door in doors if not re.search(rf"^{door}:", makefile, re.MULTILINE)] == []
    else:
        source = (ROOT / words[1]).read_text()
        assert {option for option in asked if f'"{option}"' not in source} == set()


def python_in(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


BLOCKS = [(str(path.relative_to(ROOT)), number) for path in DOCUMENTS for number in range(len(python_in(path)))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), BLOCKS)
def test_every_python_block_runs(stage, monkeypatch, capsys, name, number):
    """After what the page has imported before it; insightface's own, for `test_insightface.py`, are parsed alone."""
    path = ROOT / name
    monkeypatch.chdir(stage)
    landmarks = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32)
    photo = tiny.image(0, 0)
    names = {
        "aligned": photo,
        "photo": photo,
        "landmarks": np.stack([landmarks, landmarks]),
        "faces": np.stack([photo, photo]),
    }
    block = python_in(path)[number]
    if "insightface" in block:
        ast.parse(block)
        return
    imported = [line for other in python_in(path) for line in other.splitlines() if line.startswith("from vargface")]
    exec("\n".join([*imported, block]), names)
    printed = re.search(re.escape(block) + r"```\n.*?\n```\n(.*?)```", path.read_text(), re.DOTALL)
    if "print(" in block:
        told, said = (re.findall(r"-?\d+\.\d*", text) for text in (printed[1], capsys.readouterr().out))
        assert len(said) == len(told) > 0
        np.testing.assert_allclose(np.float64(said), np.float64(told), rtol=1e-5)


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> list[str]:
    """Which public names in `node`, itself first, have no docstring."""
    found = [] if ast.get_docstring(node) else [name]
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name[0] != "_":
            found += undocumented(inner, f"{name}.{inner.name}")
        elif isinstance(inner, ast.FunctionDef) and (inner.name[0] != "_" or inner.name == "__call__"):
            found += [] if ast.get_docstring(inner) else [f"{name}.{inner.name}"]
    return found


def test_every_public_name_has_a_docstring():
    """Also those that no `__all__` lists, of which the linter does not ask one."""
    files = [path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    missing = [
        name for path in files for name in undocumented(ast.parse(path.read_text()), str(path.relative_to(ROOT)))
    ]
    assert not missing
    example = ast.parse(
        "class A:\n    def b(self): ...\n    def _c(self): ...\nclass _D:\n    def e(self): ...\ndef f(): ..."
    )
    assert undocumented(example, "m") == ["m", "m.A", "m.A.b", "m.f"]


def test_the_index_lists_every_document():
    linked = re.findall(r"^\| \[(.+?)\]\(\1\)", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE)
    assert sorted([*linked, "README.md"]) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{path.name}: {target}"
