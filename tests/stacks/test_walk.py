"""What holds for every stack: the report, and that a replaced model goes on being the model that it was."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastflow
from fastflow.stacks import AccelerateError, accelerate, convs, flowavenet, revert, vits
from fastflow.stacks.block import Block
from fastflow.stacks.gated import GatedBlock
from tests.stacks.checks import close, masked, randomise, run
from tests.stacks.vits_twin import NORMS, WN, ResidualCouplingBlock


def flow(norm: str = "hooks", gin: int = 0, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return randomise(ResidualCouplingBlock(6, 8, layers, 1, gin, norm=norm)).eval()


X, MASK = torch.randn(2, 6, 21, generator=torch.Generator().manual_seed(0)), masked(21, 13)


def test_report_says_what_was_done_and_undoes_it() -> None:
    model = nn.ModuleDict({"flow": flow(), "other": nn.Linear(2, 2)})
    classes = [type(part) for part in model.modules()]
    report = fastflow.accelerate(model)
    assert [(e.path, e.cls.rpartition(".")[2], e.stack, e.op) for e in report] == [
        ("flow.flows.0", "ResidualCouplingLayer", "VITS", "affine_coupling"),
        ("flow.flows.0.enc", "WN", "VITS, Glow-TTS", "wn"),
    ]
    assert len(report) == 2 and report.replaced == report.entries and not report.left
    text = str(report)
    assert "2 of 2 known blocks" in text and "flow.flows.0.enc" in text and f"wn on {report.entries[1].backend}" in text
    assert isinstance(model.flow.flows[0].enc, (WN, Block)) and repr(model) == repr(model)
    for _ in range(2):
        report.revert()
        assert [type(part) for part in model.modules()] == classes


def test_replaced_module_looks_as_before() -> None:
    model, plain = flow(), flow()
    accelerate(model, strict=True)
    assert repr(model) == repr(plain) and isinstance(model.flows[0].enc, WN)
    assert type(model.flows[0].enc).__qualname__ == "WN" and type(model.flows[0].enc).__module__ == WN.__module__
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]


def test_strict_names_what_is_in_the_way_and_changes_nothing() -> None:
    with pytest.raises(AccelerateError, match="there is nothing to replace"):
        accelerate(nn.Linear(2, 2), strict=True)
    model = nn.ModuleList([flow(), flow()])
    model[1].flows[0].enc.in_layers[0] = nn.Conv1d(8, 16, 5, padding=2, groups=2)
    classes = [type(part) for part in model.modules()]
    with pytest.raises(
        AccelerateError, match=r"1\.flows\.0\.enc \(tests\..*WN\): `in_layers\.0` has stride 1, 2 groups"
    ):
        accelerate(model, strict=True)
    assert [type(part) for part in model.modules()] == classes
    report = accelerate(model)
    assert len(report.replaced) == 3 and [e.path for e in report.refused] == ["1.flows.0.enc"]


def test_no_known_block() -> None:
    report = accelerate(nn.Linear(2, 2))
    assert not report.entries and str(report) == "fastflow.accelerate: no known block"
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module; got str"):
        accelerate("model")  # type: ignore[arg-type]


def test_second_call_replaces_nothing_and_reverts_nothing() -> None:
    model = flow()
    first, second = accelerate(model), accelerate(model)
    assert {e.reason for e in second} == {"replaced by an earlier call"} and not second.replaced
    second.revert()
    assert isinstance(model.flows[0].enc, Block)
    first.revert()
    assert type(model.flows[0].enc) is WN


class Scaled(WN):
    """A fork with the same names and another formula."""

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().forward(x, x_mask, g) * self.n_layers**-0.5


class Broken(WN):
    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, **kwargs: Any) -> Tensor:
        raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("fork", "reason"),
    [(Scaled, "its forward computes something else: off by"), (Broken, "its own forward fails on an example: Run")],
)
def test_fork_that_computes_something_else_is_left(fork: type[WN], reason: str) -> None:
    module = fork(8, 5, 1, 2).train()
    (entry,) = accelerate(module)
    assert entry.refused and entry.reason.startswith(reason) and type(module) is fork and module.training


def test_without_values_there_is_nothing_to_compare() -> None:
    with torch.device("meta"):
        module = WN(8, 5, 1, 2)
    (entry,) = accelerate(module)
    assert entry.refused and entry.reason == "it has no values yet: load the weights first"
    module = WN(8, 5, 1, 2)
    with torch.no_grad():
        module.in_layers[1].bias[3] = torch.nan
    (entry,) = accelerate(module)
    assert entry.refused and entry.reason == "`in_layers.1.bias` is not finite: load the weights first"
    module = WN(8, 5, 1, 2)
    nn.init.constant_(module.res_skip_layers[1].bias, 3e38)
    nn.init.constant_(module.res_skip_layers[0].bias, 3e38)
    (entry,) = accelerate(module)
    assert entry.refused and "nothing finite" in entry.reason


class Other(nn.Module):
    """With the names of a block of FloWaveNet, or of Glow-TTS, and parts of its own."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def reverse(self, output: Tensor) -> Tensor:
        return output


class OtherCoupling(Other):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x


class OtherActNorm(Other):
    def forward(self, x: Tensor) -> Tensor:
        return x


class OtherGlow(Other):
    def forward(self, x: Tensor, x_mask: Any = None, reverse: bool = False, **kwargs: Any) -> Tensor:
        return x


def test_lookalikes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowavenet, "on_cpu", lambda module: False)
    part = nn.Linear(2, 2)
    model = nn.ModuleDict(
        {
            "knows": OtherActNorm(loc=1.0, scale=1.0, initialized=True, logdet=True),
            "objection": OtherGlow(start=part, end=part, wn=part, sigmoid_scale=False, in_channels=2),
            "example": OtherCoupling(net=part, affine=True),
            "replacement": OtherActNorm(loc=torch.ones(1, 2, 1), scale=1.0, initialized=True, logdet=True),
        }
    )
    report = accelerate(model)
    assert not report.replaced and {e.path: e.reason.partition(":")[0] for e in report.refused} == {
        "objection": "it has not the parts that its names promise",
        "example": "no example can be made for it",
        "replacement": "its replacement fails on an example",
    }
    assert type(model["replacement"]) is OtherActNorm and "_fastflow" not in model["replacement"].__dict__


def test_forward_patched_on_an_instance_is_not_lost() -> None:
    for path, reason in (
        ("", "it has a `forward` of its own, which would not run"),
        ("in_layers.1", "`in_layers.1` in it has a `forward` of its own, which would not run"),
        ("drop", "`drop` in it has a `forward` of its own, which would not run"),
    ):
        module = WN(8, 5, 1, 2)
        part = module.get_submodule(path)
        part.forward = lambda *args, part=part: 2 * type(part).forward(part, *args)  # type: ignore[method-assign]
        (entry,) = accelerate(module)
        assert entry.refused and entry.reason == reason
    conv = nn.Conv1d(4, 4, 1)
    conv.forward = lambda x: x  # type: ignore[method-assign]
    assert convs.objection(conv, "conv") == "`conv` has a `forward` of its own, which would not run"


def test_scripted_blocks_are_not_known() -> None:
    class Plain(WN):
        def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, **kwargs: Any) -> Tensor:
            return x * x_mask

    scripted = torch.jit.trace(Plain(8, 5, 1, 2), (torch.randn(1, 8, 9), torch.ones(1, 1, 9)), check_trace=False)
    with mock.patch.object(vits.WN, "knows", return_value=True):
        assert not accelerate(scripted).entries


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: m.in_layers[1].register_forward_hook(lambda *_: None), "`in_layers.1` has hooks"),
        (lambda m: m.in_layers.pop(1), "it has 1 `in_layers` for 2 layers"),
        (lambda m: nn.utils.spectral_norm(m.res_skip_layers[0]), "`res_skip_layers.0` has hooks"),
        (
            lambda m: nn.utils.parametrizations.spectral_norm(m.cond_layer),
            "`cond_layer` has a parametrization other than weight norm over dimension 0",
        ),
        (
            lambda m: nn.utils.parametrizations.weight_norm(m.cond_layer, dim=1),
            "`cond_layer` has a parametrization other than weight norm over dimension 0",
        ),
        (lambda m: setattr(m.in_layers[0], "padding", (1,)), "`in_layers.0` pads (1,) where its kernel of 5 reaches 4"),
        (lambda m: m.res_skip_layers.__setitem__(0, nn.Conv1d(8, 8, 1)), "`res_skip_layers.0` is Conv1d(8, 8, "),
        (lambda m: m.res_skip_layers.__setitem__(0, nn.Conv1d(8, 16, 1, bias=False)), "`res_skip_layers.0` is Conv1d"),
    ],
)
def test_parts_that_are_not_plain_are_named(spoil: Any, reason: str) -> None:
    module = WN(8, 5, 1, 2, 3, norm="plain")
    spoil(module)
    (entry,) = accelerate(module)
    assert entry.refused and entry.reason.startswith(reason)


def test_looking_leaves_no_trace() -> None:
    """Modes, random numbers and gradients are as before; a part in another mode stays in it."""
    model = flow().train()
    model.flows[0].enc.drop.eval()
    modes = [part.training for part in model.modules()]
    torch.manual_seed(3)
    random.seed(3)
    state = torch.get_rng_state()
    accelerate(model).revert()
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("norm", ["hooks", "plain"])
def test_pickle_holds_the_original(norm: str) -> None:
    model = flow(norm)
    expected, plain = model(X, MASK), pickle.dumps(model)
    accelerate(model, strict=True)
    for again in (pickle.loads(pickle.dumps(model)), pickle.loads(plain)):
        assert type(again.flows[0].enc) is WN and "_fastflow" not in again.flows[0].enc.__dict__
        assert torch.equal(again(X, MASK), expected)
    buffer = io.BytesIO()
    torch.save({"model": model}, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)["model"](X, MASK), expected)
    assert b"fastflow.stacks" not in pickle.dumps(model)


@pytest.mark.parametrize("norm", ["parametrizations", "plain"])
def test_deep_copy_is_replaced_too_and_apart(norm: str) -> None:
    model = flow(norm)
    accelerate(model, strict=True)
    with torch.no_grad():
        expected = model(X, MASK)
        copied = copy.deepcopy(model)
        assert isinstance(copied.flows[0].enc, Block) and isinstance(copied.flows[0].enc, WN)
        assert torch.equal(copied(X, MASK), expected)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(copied(X, MASK), expected) and not torch.equal(model(X, MASK), expected)
    revert(copied)
    assert not any(isinstance(part, Block) for part in copied.modules()) and isinstance(model.flows[0].enc, Block)


@pytest.fixture
def always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on a CPU is the original's: here the replacement's, as on a GPU."""
    monkeypatch.setattr(GatedBlock, "_worth_it", lambda *_: True)


@pytest.mark.parametrize("norm", NORMS)
def test_training_goes_as_before(norm: str, always_fast: None) -> None:
    """Five steps of an optimiser that was made before; g and v are what is learned."""
    ends = []
    for replaced in (False, True):
        model = flow(norm).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        if replaced:
            accelerate(model, strict=True)
        for _ in range(5):
            optimizer.zero_grad()
            model(X, MASK).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            ends.append([*model.state_dict().values(), model.eval()(X, MASK)])
    close(ends[1], ends[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_packed_weights_follow_every_change(norm: str) -> None:
    model, twin = flow(norm), flow(norm)
    accelerate(model, strict=True)

    def same() -> None:
        with torch.no_grad():
            close([model(X, MASK)], [twin(X, MASK)])

    same()
    for m in (model, twin):
        with torch.no_grad():
            for p in m.parameters():
                p.mul_(1.5)
    same()
    for m in (model, twin):
        m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()})
    same()
    for m in (model, twin):
        for p in m.parameters():  # leaves no trace but is noticed with the next change of mode
            p.data.mul_(1.5)
        m.train()
        m.eval()
    same()
    if norm == "hooks":
        for m in (model, twin):
            for layer in (*m.flows[0].enc.in_layers, *m.flows[0].enc.res_skip_layers):
                nn.utils.remove_weight_norm(layer)
        same()


def test_weight_norm_removed_before() -> None:
    """Which leaves a buffer where a parametrization was removed without gradients, as Coqui's `store_inverse` does."""
    model = flow("parametrizations")
    enc = model.flows[0].enc
    for layer in (*enc.in_layers, *enc.res_skip_layers):
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    with torch.no_grad():
        expected = model(X, MASK)
        accelerate(model, strict=True)
        close([model(X, MASK)], [expected])


def test_weight_of_the_hooks_is_never_read() -> None:
    """It is as old as the last forward."""
    model, twin = flow("hooks"), flow("hooks")
    accelerate(model, strict=True)
    for layer in model.flows[0].enc.in_layers:
        layer.weight = torch.full_like(layer.weight, torch.nan)
    with torch.no_grad():
        close([model(X, MASK)], [twin(X, MASK)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["parametrizations", "plain"])
def test_half_precision_errs_no_more_than_twice_the_original(norm: str, dtype: torch.dtype) -> None:
    wide, plain, model = flow(norm), flow(norm).to(dtype), flow(norm)
    accelerate(model, strict=True)
    model.to(dtype)
    x, mask = X.to(dtype), MASK.to(dtype)
    with torch.no_grad():
        for low, w in zip(plain.parameters(), wide.parameters(), strict=True):
            w.copy_(low)
        expected = wide(x.float(), MASK)
        error, theirs = ((m(x, mask).float() - expected).norm() for m in (model, plain))
    assert model(x, mask).dtype == dtype and error <= 2 * theirs


def test_double_precision_and_back() -> None:
    model, twin = flow(), flow().double()
    accelerate(model, strict=True)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(model(X.double(), MASK.double()), twin(X.double(), MASK.double()))
        close([model.float()(X, MASK)], [twin.float()(X, MASK)])


def test_autocast_has_the_originals_dtype_and_error() -> None:
    wide, plain, model = flow(gin=3), flow(gin=3), flow(gin=3)
    accelerate(model, strict=True)
    g = torch.randn(2, 3, 1)
    with torch.no_grad():
        expected = wide(X, MASK, g)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = model(X, MASK, g), plain(X, MASK, g)
    assert ours.dtype == theirs.dtype
    assert (ours - expected).norm() <= 2 * (theirs - expected).norm()


def test_torch_compile_has_no_graph_breaks() -> None:
    torch.compiler.reset()
    model = flow("parametrizations", gin=3, layers=1)
    g = torch.randn(2, 3, 1)
    accelerate(model, strict=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    expected = run(model, lambda: model(X, MASK, g, reverse=True), [])
    outputs, grads = run(model, lambda: compiled(X, MASK, g, reverse=True), [])
    close(outputs, expected[0])
    close(grads, expected[1])
    x, mask = torch.randn(2, 6, 30), masked(30, 13)
    with torch.compiler.set_stance("fail_on_recompile"):
        close([compiled(x, mask, g, reverse=True)], [model(x, mask, g, reverse=True)])


def test_model_compiled_before_is_replaced_too() -> None:
    torch.compiler.reset()
    model = flow("parametrizations")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = compiled(X, MASK)
        report = accelerate(compiled, strict=True)
        close([compiled(X, MASK)], [expected])
        report.revert()
        assert torch.equal(compiled(X, MASK), expected)


@pytest.fixture
def process_group() -> Any:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("before", [False, True])
def test_ddp_gathers_the_same_gradients(process_group: Any, before: bool, always_fast: None) -> None:
    twin, model = flow().train(), flow().train()
    if before:
        accelerate(model, strict=True)
    wrapped = nn.parallel.DistributedDataParallel(model)
    if not before:
        accelerate(wrapped, strict=True)
    for m in (twin, wrapped):
        m(X, MASK).square().mean().backward()
    close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])  # type: ignore[misc]


def test_gradients_in_evaluation_mode_reach_g_and_v() -> None:
    model = flow()
    accelerate(model, strict=True)
    with torch.no_grad():
        model(X, MASK)  # packs
    model(X, MASK).sum().backward()
    norms = [p for n, p in model.named_parameters() if n.endswith(("weight_g", "weight_v"))]
    assert norms and all(p.grad is not None and p.grad.any() for p in norms)
