"""Schedules, against closed forms in plain Python and against PyTorch."""

import math
import pickle

import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentError, ArgumentTypeError

LRS = [0.1, 0.5]
EPOCHS = 30


def optimizer(lib=tl, name="SGD", **options):
    params = [lib.zeros(1, requires_grad=True) for _ in LRS]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, LRS, strict=True)]
    return getattr(lib.optim, name)(groups, **options)


def halve(epoch):
    return 0.5**epoch


def wobble(epoch):
    return 1.0 + 0.1 * math.cos(epoch)


def half_wave(share):
    """From 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2


# name: (arguments, the factor of the initial rate at epoch t, or None)
SCHEDULES = {
    "StepLR": ({"step_size": 7, "gamma": 0.3}, lambda t: 0.3 ** (t // 7)),
    "MultiStepLR": (
        {"milestones": [3, 9, 9, 20], "gamma": 0.4},
        lambda t: 0.4 ** sum(t >= m for m in (3, 9, 9, 20)),
    ),
    "ConstantLR": ({"factor": 0.25, "total_iters": 6}, lambda t: 0.25 if t < 6 else 1.0),
    "LinearLR": (
        {"start_factor": 0.2, "end_factor": 0.9, "total_iters": 10},
        lambda t: 0.2 + 0.7 * min(t, 10) / 10,
    ),
    "ExponentialLR": ({"gamma": 0.9}, lambda t: 0.9**t),
    "PolynomialLR": (
        {"total_iters": 12, "power": 1.5},
        lambda t: (1 - min(t, 12) / 12) ** 1.5,
    ),
    "CosineAnnealingLR": ({"T_max": 10}, lambda t: half_wave(t / 10)),
    "CosineAnnealingWarmRestarts": (
        {"T_0": 5, "T_mult": 2},
        lambda t: half_wave(t / 5 if t < 5 else (t - 5) / 10 if t < 15 else (t - 15) / 20),
    ),
    "LambdaLR": ({"lr_lambda": [halve, wobble]}, None),
    "MultiplicativeLR": ({"lr_lambda": wobble}, None),
    "OneCycleLR": ({"max_lr": [0.3, 1.0], "total_steps": EPOCHS + 1}, None),
    "CyclicLR": ({"base_lr": 0.01, "max_lr": [0.1, 0.2], "step_size_up": 4}, None),
}
VARIANTS = [
    *((name, arguments) for name, (arguments, _) in SCHEDULES.items()),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.02}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 0.3, "epochs": 6, "steps_per_epoch": 6, "three_phase": True}),
    (
        "OneCycleLR",
        {"max_lr": 0.3, "total_steps": 40, "anneal_strategy": "linear", "cycle_momentum": False},
    ),
    (
        "CyclicLR",
        {
            "base_lr": [0.01, 0.02],
            "max_lr": 0.1,
            "step_size_up": 3,
            "step_size_down": 5,
            "mode": "triangular2",
        },
    ),
    (
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "mode": "exp_range", "gamma": 0.9},
    ),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "scale_fn": lambda x: 1 / x}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(VARIANTS)]


def make(lib, name, arguments, opt):
    return getattr(lib.optim.lr_scheduler, name)(opt, **arguments)


def step(opt, schedule):
    opt.step()
    schedule.step()
    return observed(opt)


def observed(opt):
    groups = opt.param_groups
    return [
        *(float(g["lr"]) for g in groups),
        *(float(g.get("momentum", 0.0)) for g in groups),
        *(float(g.get("betas", (0.0,))[0]) for g in groups),
    ]


@pytest.mark.parametrize("name", [n for n, (_, factor) in SCHEDULES.items() if factor])
def test_equals_the_closed_form(name):
    arguments, factor = SCHEDULES[name]
    opt = optimizer()
    schedule = make(tl, name, arguments, opt)
    for t in range(EPOCHS):
        want = [lr * factor(t) for lr in LRS]
        assert schedule.get_last_lr() == pytest.approx(want, rel=1e-9, abs=1e-12), f"epoch {t}"
        assert [g["lr"] for g in opt.param_groups] == schedule.get_last_lr()
        step(opt, schedule)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=IDS)
@pytest.mark.parametrize("which", ["SGD", "Adam"])
def test_equals_torch(name, arguments, which, torch):
    options = {"momentum": 0.9} if which == "SGD" else {}
    ours, theirs = optimizer(tl, which, **options), optimizer(torch, which, **options)
    ours_lr, theirs_lr = make(tl, name, arguments, ours), make(torch, name, arguments, theirs)
    assert observed(ours) == pytest.approx(observed(theirs), rel=1e-12)
    for t in range(EPOCHS):
        assert step(ours, ours_lr) == pytest.approx(step(theirs, theirs_lr), rel=1e-10), (
            f"epoch {t}"
        )
        assert ours_lr.get_last_lr() == pytest.approx(theirs_lr.get_last_lr(), rel=1e-10)
        assert ours_lr.last_epoch == theirs_lr.last_epoch


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=IDS)
def test_a_loaded_schedule_continues(name, arguments):
    opt = optimizer(momentum=0.9)
    schedule = make(tl, name, arguments, opt)
    for _ in range(8):
        step(opt, schedule)
    twin = optimizer(momentum=0.9)
    twin_schedule = make(tl, name, arguments, twin)
    twin.load_state_dict(opt.state_dict())
    state = schedule.state_dict()
    assert "optimizer" not in state
    twin_schedule.load_state_dict(
        state if "scale_fn" in arguments else pickle.loads(pickle.dumps(state))
    )
    for _ in range(8):
        assert step(opt, schedule) == step(twin, twin_schedule)


@pytest.mark.parametrize(
    "name", ["StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR"]
)
def test_going_to_an_epoch_uses_the_closed_form(name):
    arguments, factor = SCHEDULES[name]
    opt = optimizer()
    schedule = make(tl, name, arguments, opt)
    opt.step()
    with pytest.warns(UserWarning, match="deprecated"):
        schedule.step(11)
    assert schedule.get_last_lr() == pytest.approx([lr * factor(11) for lr in LRS])


def test_resuming_at_an_epoch(torch):
    for name in ("StepLR", "ExponentialLR", "CosineAnnealingLR", "LinearLR", "PolynomialLR"):
        results = []
        for lib in (tl, torch):
            opt = optimizer(lib)
            for group in opt.param_groups:
                group["initial_lr"] = group["lr"]
            schedule = make(lib, name, {**SCHEDULES[name][0], "last_epoch": 4}, opt)
            results.append([observed(opt)] + [step(opt, schedule) for _ in range(8)])
        for ours, theirs in zip(*results, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-10), name
    with pytest.raises(KeyError, match="initial_lr"):
        tl.optim.lr_scheduler.StepLR(optimizer(), 3, last_epoch=4)


def build_sequential(lib, opt):
    sched = lib.optim.lr_scheduler
    parts = [
        sched.LinearLR(opt, start_factor=0.1, total_iters=5),
        sched.CosineAnnealingLR(opt, T_max=10),
        sched.ExponentialLR(opt, gamma=0.9),
    ]
    return sched.SequentialLR(opt, parts, milestones=[5, 15])


def build_chained(lib, opt):
    sched = lib.optim.lr_scheduler
    parts = [sched.ConstantLR(opt, factor=0.1, total_iters=2), sched.ExponentialLR(opt, gamma=0.9)]
    return sched.ChainedScheduler(parts, optimizer=opt)


def test_sequential_warms_up_then_anneals():
    opt = optimizer()
    schedule = build_sequential(tl, opt)
    for t in range(15):
        linear, cosine = 0.1 + 0.9 * t / 5, (1 + math.cos(math.pi * (t - 5) / 10)) / 2
        factor = linear if t < 5 else cosine
        assert schedule.get_last_lr() == pytest.approx([lr * factor for lr in LRS]), f"epoch {t}"
        step(opt, schedule)


def test_chained_factors_multiply():
    opt = optimizer()
    schedule = build_chained(tl, opt)
    for t in range(6):
        factor = 0.9**t * (0.1 if t < 2 else 1.0)
        assert schedule.get_last_lr() == pytest.approx([lr * factor for lr in LRS])
        step(opt, schedule)


@pytest.mark.parametrize("build", [build_sequential, build_chained])
def test_combinations_equal_torch_and_can_be_loaded(build, torch):
    ours, theirs, twin = optimizer(), optimizer(torch), optimizer()
    schedules = [build(tl, ours), build(torch, theirs), build(tl, twin)]
    for t in range(EPOCHS):
        assert step(ours, schedules[0]) == pytest.approx(step(theirs, schedules[1]), rel=1e-10)
        if t < 7:
            step(twin, schedules[2])
        if t == 10:
            twin.load_state_dict(ours.state_dict())
            schedules[2].load_state_dict(pickle.loads(pickle.dumps(schedules[0].state_dict())))
        if t > 10:
            assert step(twin, schedules[2]) == observed(ours)


def test_combinations_check_their_parts():
    sched = tl.optim.lr_scheduler
    opt, other = optimizer(), optimizer()
    part = sched.ExponentialLR(opt, 0.9)
    with pytest.raises(ArgumentError, match="same optimizer"):
        sched.SequentialLR(opt, [part, sched.ExponentialLR(other, 0.9)], [3])
    with pytest.raises(ArgumentError, match="milestone"):
        sched.SequentialLR(opt, [part], [3])
    with pytest.raises(ArgumentError, match="ReduceLROnPlateau"):
        sched.ChainedScheduler([part, sched.ReduceLROnPlateau(opt)])
    with pytest.raises(ArgumentError, match="at least one"):
        sched.ChainedScheduler([])


PLATEAUS = [
    {"patience": 2},
    {"patience": 0, "cooldown": 2, "factor": 0.5, "mode": "max"},
    {"patience": 1, "threshold": 0.3, "threshold_mode": "abs", "min_lr": [0.01, 0.2]},
    {"patience": 1, "threshold": 0.2, "mode": "max", "threshold_mode": "rel"},
]
METRICS = [1.0, 0.9, 0.95, 0.92, 0.91, 0.8, 0.85, 0.86, 0.87, 0.88, 1.2, 1.25, 1.24, 1.2, 0.5, 0.6]


def test_plateau():
    opt = optimizer()
    schedule = tl.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=1)
    rates = []
    for metric in [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5]:
        schedule.step(tl.tensor(metric))
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize("options", PLATEAUS)
def test_plateau_equals_torch(options, torch):
    ours, theirs = optimizer(), optimizer(torch)
    schedules = [
        lib.optim.lr_scheduler.ReduceLROnPlateau(opt, **options)
        for lib, opt in ((tl, ours), (torch, theirs))
    ]
    for metric in METRICS:
        for schedule in schedules:
            schedule.step(metric)
        assert observed(ours) == pytest.approx(observed(theirs), rel=1e-12)
        assert schedules[0].num_bad_epochs == schedules[1].num_bad_epochs
    twin = tl.optim.lr_scheduler.ReduceLROnPlateau(optimizer(), **options)
    twin.load_state_dict(pickle.loads(pickle.dumps(schedules[0].state_dict())))
    assert twin.best == schedules[1].best


class Decay:
    """A callable object, whose state is saved with the schedule."""

    def __init__(self, base):
        self.base = base

    def __call__(self, epoch):
        return self.base**epoch


def test_callable_objects_are_saved_and_functions_are_not():
    schedule = tl.optim.lr_scheduler.LambdaLR(optimizer(), [Decay(0.5), halve])
    state = schedule.state_dict()
    assert state["lr_lambdas"] == [{"base": 0.5}, None]
    other = tl.optim.lr_scheduler.LambdaLR(optimizer(), [Decay(0.1), halve])
    other.load_state_dict(state)
    assert other.lr_lambdas[0].base == 0.5


def test_a_tensor_rate_stays_a_tensor():
    lr = tl.tensor(1.0)
    p = tl.zeros(1, requires_grad=True)
    opt = tl.optim.SGD([p], lr=lr)
    schedule = tl.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    opt.step()
    schedule.step()
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_the_order_of_steps_is_watched():
    opt = optimizer()
    schedule = tl.optim.lr_scheduler.StepLR(opt, 2)
    with pytest.warns(UserWarning, match="before optimizer"):
        schedule.step()


def test_errors():
    sched = tl.optim.lr_scheduler
    with pytest.raises(ArgumentTypeError, match="not an Optimizer"):
        sched.StepLR(object(), 3)
    for name, arguments in [
        ("ConstantLR", {"factor": 1.5}),
        ("LinearLR", {"start_factor": 0.0}),
        ("LinearLR", {"end_factor": 2.0}),
        ("LambdaLR", {"lr_lambda": [halve]}),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}),
        ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 0}),
        ("OneCycleLR", {"max_lr": 0.1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": -1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 5, "anneal_strategy": "no"}),
        ("OneCycleLR", {"max_lr": [0.1], "total_steps": 5}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "mode": "no"}),
        ("ReduceLROnPlateau", {"factor": 1.0}),
        ("ReduceLROnPlateau", {"mode": "no"}),
    ]:
        with pytest.raises(ArgumentError):
            make(tl, name, arguments, optimizer(momentum=0.9))
    with pytest.raises(ArgumentError, match="momentum"):
        sched.CyclicLR(optimizer(name="Adagrad"), 0.1, 0.2)
    opt = optimizer(momentum=0.9)
    one_cycle = sched.OneCycleLR(opt, 0.1, total_steps=3)
    with pytest.raises(ArgumentError, match="total steps"):
        for _ in range(4):
            step(opt, one_cycle)
