"""The examples do what their first lines say."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import tensorlib as tl

from . import strict_cupy

EXAMPLES = Path(__file__).parents[1] / "examples"
TLRUN = [sys.executable, "-m", "tensorlib.launch", "-n", "2"]


@pytest.fixture(autouse=True)
def _needs():
    for name in ("mpi4py", "sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the examples need {name}: pip install 'tensorlib[test]'")


def test_digits_on_two_workers(run_process, tmp_path):
    out = tmp_path / "digits"
    done = run_process(
        [*TLRUN, EXAMPLES / "digits.py", "--epochs", "8", "--out", out], timeout_s=120, check=True
    )
    best = tl.load(out / "best.pt")
    assert best["accuracy"] >= 0.975
    assert {"model", "epoch", "accuracy"} <= best.keys()
    assert (out / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"epoch +\d+ +train loss", done.stdout)) == 8
    assert "359 held-out images" in done.stdout and "2 worker(s)" in done.stdout


SENTENCE = "to be or not to be, that is the question.\n"
SMALL = ["--lr", "0.01", "--sample", "20", "--steps", "100", "--context", "16", "--width", "32",
         "--depth", "1", "--heads", "2"]  # fmt: skip


def check_char_gpt(printed):
    """It learned the sentence, and wrote with its letters."""
    losses = [float(x) for x in re.findall(r"held-out loss ([\d.]+)", printed)]
    assert len(losses) == 3 and losses[-1] < 0.5 * losses[0]
    sample = printed.rpartition("chars/s\n")[2].replace("[0] ", "")
    assert len(sample) >= 20 and set(sample) <= set(SENTENCE)


def test_char_gpt_learns_from_a_file_and_writes(run_process, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 400)
    command = [*TLRUN, EXAMPLES / "char_gpt.py", "--text", text, *SMALL]
    check_char_gpt(run_process(command, timeout_s=120, check=True).stdout)


@pytest.mark.soak
def test_char_gpt_on_the_stand_in_for_a_gpu(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 400)
    monkeypatch.setattr(sys, "argv", ["char_gpt.py", "--text", str(text), *SMALL])
    monkeypatch.setattr(tl.cuda, "graph", lambda step: step)  # which the stand-in has not
    with strict_cupy.installed():
        runpy.run_path(str(EXAMPLES / "char_gpt.py"), run_name="__main__")
    check_char_gpt(capsys.readouterr().out)


@pytest.mark.soak
def test_char_gpt_reaches_its_loss_in_three_minutes(run_process):
    done = run_process(
        [*TLRUN, EXAMPLES / "char_gpt.py", "--minutes", "2.7"], timeout_s=300, check=True
    )
    seconds_and_loss = re.findall(r" ([\d.]+) s  held-out loss ([\d.]+)", done.stdout)
    reached = [float(s) for s, loss in seconds_and_loss if float(loss) < 1.9]
    assert reached and reached[0] < 180, done.stdout
