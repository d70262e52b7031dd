"""lm-evaluation-harness on the golden's bases and adapters; writes expected.json. In its own environment (README):

HF_HUB_OFFLINE=1 python peer.py
"""

import json
import subprocess
import tempfile
from pathlib import Path

CASES = ("lora-xcopa", "lora-xnli", "lora-mgsm", "ia3-xcopa", "ia3-xnli")


def run(case: str, output: str) -> None:
    command = f"""
        lm_eval run --model hf --model_args pretrained=base,peft={case},dtype=float32
        --tasks adamergex_{case.partition("-")[2]} --include_path . --device cpu --batch_size 8
        --output_path {output} --log_samples
    """
    subprocess.run(command.split(), check=True)


def item(sample: dict) -> dict:
    """An item's scores, and the log-likelihoods of its choices (nats) or the text that was written."""
    scores = {name: sample[name] for name in sample["metrics"]}
    if sample["metrics"] == ["exact_match"]:
        said = {"written": sample["resps"][0][0]}
    else:
        said = {"loglikelihoods": [float(response[0][0]) for response in sample["resps"]]}
    return {"id": sample["doc"]["id"], **said, **scores}


expected = {}
for case in CASES:
    with tempfile.TemporaryDirectory() as output:
        run(case, output)
        results = json.loads(next(Path(output).rglob("results_*.json")).read_text())
        lines = next(Path(output).rglob("samples_*.jsonl")).read_text().splitlines()
    (scores,) = results["results"].values()
    named = {key.partition(",")[0]: value for key, value in scores.items() if "," in key and "stderr" not in key}
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    expected[case] = {**named, "items": [item(sample) for sample in samples]}
Path("expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
