"""The examples in docs/ run, with twins in place of packages and checkpoints; its table is that of the stored rows."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

from benchmarks import stacks
from fastflow.cli.main import main
from fastflow.models import WaveGlow
from tests.models.squeezewave_twin import SqueezeWave
from tests.stacks import waveglow_twin
from tests.stacks.checks import randomise
from tests.stacks.diffwave_twin import DiffWave
from tests.stacks.flowavenet_twin import Flowavenet
from tests.stacks.glow_tts_twin import WN as GlowTtsWN
from tests.stacks.parallel_wavegan_twin import ParallelWaveGANGenerator, WaveNetResidualBlock
from tests.stacks.vits_twin import NORMS, WN

DOCS = Path(__file__).parents[1] / "docs"
INDEX = (DOCS / "README.md").read_text(encoding="utf-8")
Stand = Callable[..., None]
Names = dict[str, Any]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Holder(nn.Module):
    """Any model that has a WN inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.flow = randomise(WN(8, 3, 1, 2))


class GlowTts(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.decoder = randomise(GlowTtsWN(8, 8, 3, 1, 2, 0, 0.0, "hooks"))
        self.decoder.store_inverse = lambda: None


def wavegan(*args: Any) -> nn.Module:
    return randomise(ParallelWaveGANGenerator(WaveNetResidualBlock, NORMS["hooks"]))


def of_waveglow(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    def model(form: str) -> nn.Module:
        return randomise(waveglow_twin.WaveGlow(form, NORMS["hooks"]))

    monkeypatch.setattr(torch, "load", lambda path, weights_only: {"model": model("glow")})
    monkeypatch.setattr(torch.hub, "load", lambda repository, entry: model("entry"))
    tiny = WaveGlow(80, 2, 8, 4, 2, {"n_layers": 1, "n_channels": 8, "kernel_size": 3})
    torch.save({"state_dict": tiny.state_dict()}, "waveglow_256channels.pt")
    return {}


def of_flowavenet(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    def model(*args: Any, **kwargs: Any) -> nn.Module:
        return randomise(Flowavenet(NORMS["hooks"], mels=2, blocks=2, flows=1, layers=2, width=4))

    stand("model", Flowavenet=model)
    monkeypatch.setattr(torch, "load", lambda path: {"state_dict": model().state_dict()})
    return {}


def of_squeezewave(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    return {"squeezewave": SqueezeWave(5, 2, 128, 2, 16, 2, 8)}


def of_parallel_wavegan(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    stand("parallel_wavegan.utils", download_pretrained_model=str, load_model=wavegan)
    return {}


def of_diffwave(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    models: dict[str, nn.Module] = {}

    def predict(spectrogram: Any, directory: str, fast_sampling: bool) -> tuple[None, int]:
        models[directory] = randomise(DiffWave())
        return None, 22050

    stand("diffwave.inference", predict=predict, models=models)
    return {"spectrogram": None}


def of_glow_tts(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    data = types.SimpleNamespace(n_mel_channels=80)
    hps = types.SimpleNamespace(data=data, model={"hidden_channels": 192})
    stand("models", FlowGenerator=GlowTts)
    stand("text", symbols="abc")
    stand("utils", get_hparams_from_file=lambda path: hps, load_checkpoint=lambda path, model: None)
    return {}


def of_vits(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    data = types.SimpleNamespace(filter_length=1024, hop_length=256)
    hps = types.SimpleNamespace(data=data, train=types.SimpleNamespace(segment_size=8192), model={"n_layers": 6})
    stand("models", SynthesizerTrn=Holder)
    stand("text.symbols", symbols="abc")
    stand("utils", get_hparams_from_file=lambda path: hps, load_checkpoint=lambda path, model, optimizer: None)
    return {}


def of_transformers(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    stand("transformers", VitsModel=types.SimpleNamespace(from_pretrained=Holder))
    return {}


def of_coqui(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    synthesizer = types.SimpleNamespace(tts_model=Holder())
    stand("TTS.api", TTS=lambda name: types.SimpleNamespace(synthesizer=synthesizer))
    return {}


def of_espnet(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Names:
    made = types.SimpleNamespace(model=Holder(), vocoder=wavegan())
    stand("espnet2.bin.tts_inference", Text2Speech=types.SimpleNamespace(from_pretrained=lambda tag: made))
    return {}


GUIDES = {
    "waveglow": of_waveglow,
    "flowavenet": of_flowavenet,
    "squeezewave": of_squeezewave,
    "parallel-wavegan": of_parallel_wavegan,
    "diffwave": of_diffwave,
    "glow-tts": of_glow_tts,
    "vits": of_vits,
    "transformers": of_transformers,
    "coqui": of_coqui,
    "espnet": of_espnet,
}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Put a module of these attributes in the place of one that may not be there, or may be."""

    def put(name: str, **attributes: Any) -> None:
        parent: types.ModuleType | None = None
        parts = name.split(".")
        for i, part in enumerate(parts):
            module = types.ModuleType(".".join(parts[: i + 1]))
            module.__path__ = []  # a package
            monkeypatch.setitem(sys.modules, module.__name__, module)
            if parent is not None:
                setattr(parent, part, module)
            parent = module
        vars(sys.modules[name]).update(attributes)

    return put


@pytest.mark.parametrize("guide", GUIDES)
def test_examples_run(guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand: Stand) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = GUIDES[guide](monkeypatch, stand)
    reports = []
    examples = blocks((DOCS / "stacks" / f"{guide}.md").read_text(encoding="utf-8"), "python")
    assert examples
    for example in examples:
        exec(compile(example, f"{guide}.md", "exec"), names)
        reports.append(names["report"])
    for report in reports:
        assert report.refused if guide == "squeezewave" else report.replaced


def test_examples_of_the_index_run() -> None:
    names: Names = {"model": Holder()}
    for example in blocks(INDEX, "python"):
        exec(compile(example, "docs/README.md", "exec"), names)
    assert names["report"].replaced and names["make"]()[0] is names["model"]


def test_commands_of_the_index_parse() -> None:
    lines = [line for block in blocks(INDEX, "console") for line in block.splitlines()]
    assert lines
    for line in lines:
        _, name, *arguments = shlex.split(line)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, arguments)


def test_every_guide_is_in_the_index_and_every_link_leads_somewhere() -> None:
    assert {path.stem for path in (DOCS / "stacks").glob("*.md")} == set(GUIDES)
    assert {Path(link).stem for link in re.findall(r"\]\((stacks/[^)]+)\)", INDEX)} == set(GUIDES)
    for path in (*(DOCS / "stacks").glob("*.md"), DOCS / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_table_is_that_of_the_stored_rows() -> None:
    assert stacks.generated(INDEX) == INDEX, "python -m benchmarks.stacks --write docs/README.md"
