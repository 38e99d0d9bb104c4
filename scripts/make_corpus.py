"""Makes the speech that the bundled model learns from and is judged by: espeak-ng reading public-domain text.

    python scripts/make_corpus.py OUT [--minutes 50] [--heldout-minutes 3] [--seed 0] [--overwrite]

writes OUT/train/*.flac and OUT/heldout/*.flac (22,050 Hz, mono, 16 bit) and OUT/corpus.json, which says who speaks each
file, how, and which sentence. The held-out files use voice variants and sentences that no training file uses. The
same seed and the same espeak-ng give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

SAMPLING_RATE = 22050
TEXT = Path(__file__).with_name("corpus.txt")
# The variants (vocal tract, pitch, breathiness) make the voices different; the accents change the phonemes.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
TRAIN_VARIANTS = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m6",
    "m7",
    "f1",
    "f2",
    "f4",
    "croak",
    "Alex",
    "Andy",
    "Annie",
    "Denis",
    "Hugo",
    "Lee",
    "linda",
    "Michael",
    "steph",
    "Gene",
    "belinda",
    "grandma",
    "grandpa",
    "victor",
)
HELDOUT_VARIANTS = ("m5", "m8", "f3", "f5", "Jacky", "aunty")
HELDOUT_EVERY = 8  # every 8th sentence of the text is kept for the held-out set


class CorpusError(RuntimeError):
    """espeak-ng is missing, too old, or failed."""


@dataclass(frozen=True)
class Utterance:
    """One file to be made."""

    name: str
    accent: str
    variant: str
    words_per_minute: int
    pitch: int
    rms_db: float
    text: str


def read_sentences(path: Path) -> list[str]:
    """The sentences of a text file, one per line; lines that start with # are headings."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def run_espeak(*arguments: str) -> bytes:
    """What espeak-ng prints for these arguments."""
    try:
        done = subprocess.run(["espeak-ng", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise CorpusError("espeak-ng is not installed; on Debian or Ubuntu: apt-get install espeak-ng") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise CorpusError(f"espeak-ng {' '.join(arguments)}: {reason}")
    return done.stdout


def check_variants() -> None:
    """Raise CorpusError unless this espeak-ng has every variant named here (an unknown one is ignored silently)."""
    listed = run_espeak("--voices=variant").decode(errors="replace")
    # The file column reads "!v/NAME"; names with spaces are not used here.
    known = {word[3:] for word in listed.split() if word.startswith("!v/")}
    missing = [variant for variant in TRAIN_VARIANTS + HELDOUT_VARIANTS if variant not in known]
    if missing:
        raise CorpusError(f"this espeak-ng lacks the voice variants {', '.join(missing)}; use 1.50 or newer")


def speak(utterance: Utterance) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The audio of an utterance: float32 [T], level set, long silence at either end cut."""
    raw = run_espeak(
        "-v", f"{utterance.accent}+{utterance.variant}", "-s", str(utterance.words_per_minute),
        "-p", str(utterance.pitch), "-z", "--stdout", utterance.text,
    )  # fmt: skip
    # A stream's WAV header has no valid length, so the samples are taken after its 44 bytes.
    if raw[:4] != b"RIFF" or int.from_bytes(raw[24:28], "little") != SAMPLING_RATE:
        raise CorpusError(f"espeak-ng gave no {SAMPLING_RATE} Hz WAV for {utterance.name}")
    audio = np.frombuffer(raw[44 : len(raw) - len(raw) % 2], dtype="<i2").astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(audio) > 1e-3)
    if loud.size == 0:
        raise CorpusError(f"espeak-ng gave silence for {utterance.name}")
    margin = SAMPLING_RATE // 10
    audio = audio[max(0, loud[0] - margin) : loud[-1] + margin]
    gain = 10 ** (utterance.rms_db / 20) / math.sqrt(float(np.mean(audio**2)))
    return np.asarray(audio * min(gain, 0.95 / float(np.max(np.abs(audio)))), dtype=np.float32)


def plan(sentences: list[str], variants: tuple[str, ...], prefix: str, rng: random.Random) -> list[Utterance]:
    """One pass over the sentences in random order, voices in turn: every variant gets about equally many."""
    order = sentences[:]
    rng.shuffle(order)
    voices = [variants[i % len(variants)] for i in range(len(order))]
    rng.shuffle(voices)
    return [
        Utterance(
            name=f"{prefix}-{i:04d}",
            accent=rng.choice(ACCENTS),
            variant=voice,
            words_per_minute=rng.randint(130, 190),
            pitch=rng.randint(25, 75),
            rms_db=rng.uniform(-23.0, -18.0),
            text=text,
        )
        for i, (text, voice) in enumerate(zip(order, voices, strict=True))
    ]


def make_set(
    folder: Path, sentences: list[str], variants: tuple[str, ...], minutes: float, rng: random.Random
) -> tuple[list[Utterance], float]:
    """Fill a folder until it holds `minutes` of speech; returns what was made and how many minutes it is."""
    folder.mkdir(parents=True)
    made: list[Utterance] = []
    seconds = 0.0
    passes = 0
    with ThreadPoolExecutor() as pool:
        while seconds < 60 * minutes:
            batch = plan(sentences, variants, f"{folder.name}-{passes}", rng)
            passes += 1
            for utterance, audio in zip(batch, pool.map(speak, batch), strict=True):
                if seconds >= 60 * minutes:
                    break
                soundfile.write(folder / f"{utterance.name}.flac", audio, SAMPLING_RATE, subtype="PCM_16")
                made.append(utterance)
                seconds += audio.size / SAMPLING_RATE
    return made, seconds / 60


def make_corpus(out: Path, minutes: float, heldout_minutes: float, seed: int) -> dict[str, Any]:
    """Make both sets under `out` and return what corpus.json says."""
    sentences = read_sentences(TEXT)
    heldout = sentences[HELDOUT_EVERY - 1 :: HELDOUT_EVERY]
    train = [text for text in sentences if text not in set(heldout)]
    facts: dict[str, Any] = {
        "seed": seed,
        "espeak_ng": run_espeak("--version").decode(errors="replace").split("Data at")[0].strip(),
        "text": "scripts/corpus.txt (public domain)",
    }
    for name, texts, variants, length in (
        ("train", train, TRAIN_VARIANTS, minutes),
        ("heldout", heldout, HELDOUT_VARIANTS, heldout_minutes),
    ):
        made, total = make_set(out / name, texts, variants, length, random.Random(f"{seed} {name}"))
        facts[name] = {
            "minutes": round(total, 2),
            "files": len(made),
            "voices": list(variants),
            "sentences": len({u.text for u in made}),
            "utterances": [asdict(u) for u in made],
        }
        print(f"{out / name}: {len(made)} files, {total:.1f} minutes, {len(variants)} voice variants")
    (out / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the espeak-ng speech corpus.")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--minutes", type=float, default=50.0, help="length of the training set (default 50)")
    parser.add_argument("--heldout-minutes", type=float, default=3.0, help="length of the held-out set (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="delete OUT/train and OUT/heldout first")
    arguments = parser.parse_args()
    for name in ("minutes", "heldout_minutes"):
        if not 0 < getattr(arguments, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be more than 0 and finite; got {getattr(arguments, name)}")
    for name in ("train", "heldout"):
        if (arguments.out / name).exists() and not arguments.overwrite:
            parser.error(f"{arguments.out / name} exists; give --overwrite to replace it")
    try:
        check_variants()  # before anything is deleted
        for name in ("train", "heldout"):
            if (arguments.out / name).exists():
                shutil.rmtree(arguments.out / name)
        make_corpus(arguments.out, arguments.minutes, arguments.heldout_minutes, arguments.seed)
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
