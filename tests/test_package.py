"""The package: what its sdist and wheel hold, and that the wheel works where the source tree is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.serving import ANSWER, LONGEST_WAIT, QUESTION, input_audio, messages, order
from tests.test_requirements import IN_WHEEL
from tests.tiny import write_sound

ROOT = Path(__file__).parent.parent
FOLDER_OF = {"checkpoints/": "speech_xl/models/"}  # in the wheel, of what has another folder in the source tree


def run(*command: object, cwd: Path) -> str:
    """stdout of a program that must succeed; it finds no package of the source tree by accident."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> set[str]:
    """The files of the source tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nothing says which files belong to it")
    return {
        name
        for name in run("git", "-c", "safe.directory=*", "ls-files", "-z", cwd=ROOT).split("\0")
        if name and (ROOT / name).exists()
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, which is then proved to hold all that it takes."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=next(folder.glob("speech_xl-*")))
    return next(folder.glob("*.whl"))


def test_the_sdist_is_the_source_tree(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert tracked() <= held
    assert not [name for name in held if name.endswith((".pyc", ".sxl")) or "/parts/" in name]


def test_the_wheel_holds_every_file_of_its_packages_and_the_models(wheel: Path) -> None:
    wanted = set()
    for name in tracked() - {"space/deploy.py"}:
        if name.startswith(tuple(f"{folder}/" for folder in [*IN_WHEEL, "checkpoints"])):
            start = next((start for start in FOLDER_OF if name.startswith(start)), "")
            wanted.add(FOLDER_OF.get(start, "") + name.removeprefix(start))
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert {"speech_xl/models/nano/model.safetensors", "space/examples/town_meeting.ogg"} <= wanted
    assert held >= wanted and not [name for name in held - wanted if not name.endswith(".py")]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and the packages it depends on from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "here.pth").write_text("\n".join(here), encoding="utf-8")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder


def test_the_wheel_works_outside_the_source_tree(environment: Path, tmp_path: Path) -> None:
    program = environment / "bin" / "speech-xl"
    assert "understands: Understands one thing" in run(program, "info", "nano", cwd=tmp_path)
    assert "Whisper base" in run(program, "info", "small", cwd=tmp_path)
    words = [write_sound(tmp_path / "talk.wav", 3.0), "What drink is order 28?", "--model", "nano", "--json"]
    by_program, by_module = (
        json.loads(run(*start, "ask", *words, cwd=tmp_path))
        for start in ([program], [environment / "bin" / "python", "-m", "speech_xl"])
    )
    assert by_program["model"] == "nano" and by_program["answers"] == by_module["answers"]


def test_the_wheel_serves(environment: Path, tmp_path: Path) -> None:
    words = ["serve", "--port", "0", "--model", "nano", "--backend", "torch", "--store", tmp_path / "memories"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [environment / "bin" / "speech-xl", *words]
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=clean) as process:
        try:
            url = re.search(r"http://\S+/v1", process.stderr.readline())[0]
            asked = {"model": "nano", "messages": messages(QUESTION, input_audio(order()))}
            answer = httpx.post(f"{url}/chat/completions", json=asked, timeout=LONGEST_WAIT).json()
            assert answer["choices"][0]["message"]["content"] == ANSWER
            tools = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            accept = {"Accept": "application/json, text/event-stream"}
            assert '"ask"' in httpx.post(f"{url[:-3]}/mcp", json=tools, headers=accept, timeout=LONGEST_WAIT).text
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["converters", "training", "evaluation"])
def test_the_wheel_has_the_other_programs(environment: Path, tmp_path: Path, name: str) -> None:
    assert f"python -m {name}" in run(environment / "bin" / "python", "-m", name, "--help", cwd=tmp_path)


def test_the_page_finds_its_files_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = (
        "import space.page, speech_xl.example as e\n"
        "print(space.page.__file__, space.page.look()['css'] != '', e.EXAMPLE.is_file(), e.load_example().title)"
    )
    path, *rest = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).split(maxsplit=3)
    assert Path(path).is_relative_to(environment) and rest == ["True", "True", "A town meeting, five voices\n"]
