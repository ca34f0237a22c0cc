"""Snippets of PyTorch's introductions run with nothing but their import renamed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

SIMPLE_NET = """
    class SimpleNet(nn.Module):
        def __init__(self):
            super(SimpleNet, self).__init__()
            self.fc1 = nn.Linear(10, 5)
            self.relu = nn.ReLU()
            self.fc2 = nn.Linear(5, 1)

        def forward(self, x):
            x = self.fc1(x)
            x = self.relu(x)
            x = self.fc2(x)
            return x
"""

IMPORTS = "import tensorlib as torch\nimport tensorlib.nn as nn\nimport tensorlib.optim as optim\n"


def run(snippet: str) -> dict[str, Any]:
    """Execute a snippet as a script would; returns its variables."""
    scope: dict[str, Any] = {"__name__": "snippet"}
    exec(IMPORTS + textwrap.dedent(snippet), scope)
    return scope


def test_gradient_of_a_small_graph(capsys: pytest.CaptureFixture[str]) -> None:
    run("""
        x = torch.ones(2, 2, requires_grad=True)
        y = x + 3
        z = y * y * 2
        out = z.mean()
        out.backward()
        print(x.grad)
    """)
    assert capsys.readouterr().out == "tensor([[4., 4.],\n        [4., 4.]])\n"


def test_the_small_graph_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run(
        "x = torch.ones(2, 2, requires_grad=True); y = x + 3; z = y * y * 2; out = z.mean(); "
        "out.backward(); print(x.grad)"
    )
    assert capsys.readouterr().out == "tensor([[4., 4.],\n        [4., 4.]])\n"


def test_tensors_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run("""
        x = torch.tensor([[1, 2], [3, 4]])
        print(x)
        if torch.cuda.is_available():
            x = x.to("cuda")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        y = torch.ones_like(x, device=device)
        z = (x + y).to("cpu")
    """)
    assert capsys.readouterr().out == "tensor([[1, 2],\n        [3, 4]])\n"
    assert scope["z"].tolist() == [[2, 3], [4, 5]]


def test_a_linear_layer() -> None:
    scope = run("""
        model = nn.Linear(3, 1)
        x = torch.tensor([1.0, 2.0, 3.0])
        y = model(x)
    """)
    model, y = scope["model"], scope["y"]
    assert tuple(y.shape) == (1,)
    weight, bias = model.weight.detach().numpy()[0], model.bias.item()
    assert y.item() == pytest.approx(weight @ [1.0, 2.0, 3.0] + bias, rel=1e-5)


def test_simple_net_and_its_training_loop(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run(
        textwrap.dedent(SIMPLE_NET)
        + textwrap.dedent("""
            torch.manual_seed(0)
            model = SimpleNet()
            criterion = nn.MSELoss()
            optimizer = optim.SGD(model.parameters(), lr=0.05)
            inputs = torch.randn(64, 10)
            targets = inputs.sum(dim=1, keepdim=True)

            losses = []
            for epoch in range(200):
                optimizer.zero_grad()
                outputs = model(inputs)
                loss = criterion(outputs, targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if epoch % 100 == 0:
                    print(f"Epoch {epoch}, Loss: {loss.item():.4f}")
            print(model)
        """)
    )
    losses = scope["losses"]
    assert losses[-1] < 0.1 * losses[0]
    out = capsys.readouterr().out
    assert out.startswith("Epoch 0, Loss: ")
    assert "(fc1): Linear(in_features=10, out_features=5, bias=True)" in out


def test_the_training_loop_computes_what_torch_computes(torch: Any) -> None:
    loop = textwrap.dedent(SIMPLE_NET) + textwrap.dedent("""
        model = SimpleNet()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.linspace(-0.5, 0.5 + i, p.numel()).reshape(p.shape))
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        inputs = torch.linspace(-1, 1, 80).reshape(8, 10)
        targets = torch.linspace(0, 1, 8).reshape(8, 1)
        losses = []
        for epoch in range(20):
            optimizer.zero_grad()
            loss = nn.MSELoss()(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    """)
    ours = run(loop)["losses"]
    scope: dict[str, Any] = {"__name__": "snippet"}
    exec(IMPORTS.replace("tensorlib", "torch") + loop, scope)
    assert ours == pytest.approx(scope["losses"], rel=1e-4)


def test_loops_and_conditionals_change_the_graph() -> None:
    scope = run("""
        import random

        class DynamicNet(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4)
                self.middle = nn.Linear(4, 4)
                self.last = nn.Linear(4, 1)

            def forward(self, x, steps):
                x = self.first(x).relu()
                for _ in range(steps):
                    x = self.middle(x).relu()
                if x.sum() > 0:
                    x = x * 2
                else:
                    x = x - 1
                return self.last(x)

        random.seed(0)
        torch.manual_seed(0)
        model = DynamicNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        used = []
        for step in range(8):
            steps = random.randint(0, 3)
            optimizer.zero_grad()
            loss = (model(torch.randn(5, 4), steps) ** 2).mean()
            loss.backward()
            used.append((steps, model.middle.weight.grad is not None))
            optimizer.step()

        w = torch.tensor(3.0, requires_grad=True)
        y = w
        while y < 100:
            y = y * w
        y.backward()
    """)
    assert len(set(scope["used"])) >= 3
    assert all(has_gradient == (steps > 0) for steps, has_gradient in scope["used"])
    assert scope["w"].grad.item() == 5 * 3**4


@pytest.mark.parametrize("style", ["set_trace", "breakpoint"])
def test_stepping_through_forward_with_pdb(tmp_path: Path, style: str) -> None:
    script = tmp_path / "step.py"
    stop = "import pdb; pdb.set_trace()" if style == "set_trace" else "breakpoint()"
    body = textwrap.dedent(SIMPLE_NET).replace(
        "x = self.fc1(x)", f"{stop}\n        x = self.fc1(x)"
    )
    script.write_text(
        f"{IMPORTS}{body}\nmodel = SimpleNet()\nout = model(torch.ones(1, 10))\n"
        "out.sum().backward()\nprint('gradient', tuple(model.fc1.weight.grad.shape))\n"
    )
    commands = "\n".join(
        ["p tuple(x.shape)", "next", "next", "p tuple(x.shape)", "p x.requires_grad",
         "p self.fc1.in_features", "next", "next", "p tuple(x.shape)", "p x.grad_fn is not None",
         "where", "continue", ""]
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script)],
        input=commands,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [
        line.removeprefix("(Pdb) ")
        for line in done.stdout.splitlines()
        if line.startswith("(Pdb) ")
    ]
    assert "(1, 10)" in answers
    assert answers.index("(1, 10)") < answers.index("(1, 5)") < answers.index("(1, 1)")
    assert answers.count("True") >= 2
    assert "10" in answers
    assert "step.py" in done.stdout
    assert done.stdout.endswith("gradient (5, 10)\n")
