"""The real server on a GPU, over HTTP: published shapes with random weights, one or more arms.

    python -m benchmarks.gpu_served --model sd35-medium --seconds 300 \\
        --arm '' --arm 'ENABLE_CUDA_GRAPHS=false COMPILE=off' --folder /tmp/models

An arm is a set of environment variables. For each, in one run: start to ready; a picture alone and
four waves of eight at once at 1024 and 512; a four-step picture beside four of fifty steps; a size
never seen, twice, and the longest step of another request meanwhile; the memory that the plan
promised and that is in use. One JSON line a figure. A run ends when its seconds are over, whatever
is left to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.arms import server_process
from benchmarks.random_models import SUBJECTS
from tests.tiny_pipelines import clip_tokenizer

STEPS = {"sdxl": 30}
USUAL_STEPS = 28
WAVES = 4
CALLS = {
    "atelier_step_seconds_sum": "seconds",
    "atelier_step_seconds_count": "calls",
    "atelier_batch_rows_sum": "rows",
}


def build(name: str, root: Path) -> Path:
    """The checkpoint as a folder: the published shapes, CLIP encoders in their published widths,
    no T5."""
    folder = root / name
    if folder.exists():
        return folder
    pipeline = SUBJECTS[name]("cuda", torch.bfloat16).pipeline
    first = CLIPTextModelWithProjection if name == "sd35-medium" else CLIPTextModel
    parts = dict(pipeline.components)
    parts["text_encoder"] = _clip(768, 12, 12, first)
    parts["tokenizer"] = clip_tokenizer()
    if name != "flux1-dev":
        parts["text_encoder_2"] = _clip(1280, 32, 20, CLIPTextModelWithProjection)
        parts["tokenizer_2"] = clip_tokenizer()
    else:
        parts |= _t5()
    type(pipeline)(**parts).save_pretrained(folder, safe_serialization=True)
    torch.cuda.empty_cache()
    return folder


def _clip(width: int, layers: int, heads: int, cls: Any) -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
    )
    with torch.device("cuda"):
        return cls(config).to(torch.bfloat16).eval()


def _t5() -> dict[str, Any]:
    """A T5 of one layer in T5-XXL's width: FLUX cannot do without, and prompts are cached."""
    from transformers import T5Config, T5EncoderModel

    from tests.tiny_pipelines import t5_tokenizer

    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64
    )
    with torch.device("cuda"):
        encoder = T5EncoderModel(config).to(torch.bfloat16).eval()
    return {"text_encoder_2": encoder, "tokenizer_2": t5_tokenizer()}


class ServedClient:
    """Draws through one server, and says what it took."""

    def __init__(
        self, url: str, steps: int, told: dict[str, Any], ends: float, at_once: int
    ) -> None:
        self.url, self.steps, self.told, self.ends = url, steps, told, ends
        self.at_once = at_once
        self._http = httpx.Client(timeout=300)  # making one takes 30 ms, which no picture takes

    def say(self, **figures: Any) -> None:
        print(json.dumps(self.told | figures), flush=True)

    def left(self, needed: float) -> bool:
        return time.monotonic() + needed < self.ends

    def draw(self, seed: int, side: int = 512, height: int = 0, steps: int = 0) -> float:
        """Seconds of one picture."""
        instance = {
            "prompt": f"picture {seed} of a boat",
            "seed": seed,
            "width": side,
            "height": height or side,
            "num_inference_steps": steps or self.steps,
        }
        began = time.monotonic()
        answer = self._http.post(
            f"{self.url}/v1/models/model:predict", json={"instances": [instance]}
        )
        answer.raise_for_status()
        return time.monotonic() - began

    def together(self, count: int, side: int, steps: int = 0) -> tuple[float, list[float]]:
        """Seconds until all are there, and of each."""
        began = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            each = list(pool.map(lambda seed: self.draw(seed, side, steps=steps), range(count)))
        return time.monotonic() - began, sorted(each)

    def sizes(self) -> None:
        for side in (1024, 512):
            first = self.draw(100, side)
            alone = statistics.median(self.draw(seed, side) for seed in range(3))
            self.say(side=side, first_s=round(first, 2), alone_s=round(alone, 3))
            if self.at_once > 1:
                self.waves(side)

    def waves(self, side: int) -> None:
        """Several times `at_once` pictures together: in the first ones row counts are tried,
        compiled or recorded. Of each what its calls kept the device busy with, and their rows."""
        for wave in range(WAVES):
            if not self.left(30):
                return
            before = self.calls()
            wall, each = self.together(self.at_once, side)
            spent = {name: value - before.get(name, 0.0) for name, value in self.calls().items()}
            figures = {"each_s": wall / self.at_once, "mean_s": statistics.mean(each)} | {
                f"{stage}_s": spent.get(f"{stage}_seconds", 0.0) / self.at_once
                for stage in ("encode", "denoise", "decode")
            }
            figures["rows_a_call"] = spent["denoise_rows"] / max(1, spent["denoise_calls"])
            rounded = {name: round(value, 3) for name, value in figures.items()}
            self.say(side=side, at_once=self.at_once, wave=wave, **rounded)

    def calls(self) -> dict[str, float]:
        """Seconds, number and rows of the calls of each stage so far, from the metrics."""
        found: defaultdict[str, float] = defaultdict(float)
        text = self._http.get(f"{self.url}/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if name := CALLS.get(sample.name):
                    found[f"{sample.labels['stage']}_{name}"] += sample.value
        return found

    def short_beside_long(self) -> None:
        alone = statistics.median(self.draw(seed, steps=4) for seed in range(3))
        with ThreadPoolExecutor(4) as pool:
            long = [pool.submit(self.draw, seed, steps=50) for seed in range(4)]
            time.sleep(0.5)
            beside = self.draw(9, steps=4)
            for each in long:
                each.result()
        self.say(short_alone_s=round(alone, 3), short_beside_long_s=round(beside, 3))

    def odd_size(self) -> None:
        """A size that nobody drew before, beside a request that is followed step by step."""
        usual = self.draw(1)
        with ThreadPoolExecutor(1) as pool:
            followed = pool.submit(self.steps_of, 120)
            time.sleep(0.3)
            first = self.draw(5, 832, 1216)
            longest, median = followed.result()
        second = self.draw(6, 832, 1216)
        self.say(
            odd_first_s=round(first, 2), odd_second_s=round(second, 2), usual_s=round(usual, 2)
        )
        self.say(longest_step_s=round(longest, 3), median_step_s=round(median, 4))

    def thirty_sizes(self) -> None:
        """Random sizes, each asked for by one to four at once: the first time against the median of
        three later ones. Nobody may wait for more than three times what their work takes."""
        random = Random(30)
        sides = range(384, 1088, 64)
        ratios = []
        for _ in range(30):
            if not self.left(10):
                break
            width, height, count = random.choice(sides), random.choice(sides), random.randint(1, 4)
            walls = [self._of_size(width, height, count) for _ in range(4)]
            ratios.append(walls[0] / statistics.median(walls[1:]))
            if ratios[-1] > 2:
                own = {"size": f"{width}x{height}", "count": count}
                self.say(**own, first_s=round(walls[0], 3), ratio=round(ratios[-1], 2))
        rounded = sorted(round(one, 2) for one in ratios)
        self.say(sizes=len(rounded), worst=rounded[-1], median=statistics.median(rounded),
                 beyond_three_times=sum(one > 3 for one in rounded))  # fmt: skip

    def _of_size(self, width: int, height: int, count: int) -> float:
        """Seconds of the slowest of `count` requests at once."""
        with ThreadPoolExecutor(count) as pool:
            draw = partial(self.draw, side=width, height=height, steps=8)
            return max(pool.map(draw, range(count)))

    def steps_of(self, steps: int) -> tuple[float, float]:
        """The longest and the median step of a job at 512, from its events."""
        body = {"instances": [{"prompt": "followed", "num_inference_steps": steps, "width": 512,
                               "height": 512}]}  # fmt: skip
        headers = {"Prefer": "respond-async"}
        url = f"{self.url}/v1/models/model:predict"
        job = httpx.post(url, json=body, headers=headers, timeout=60).json()
        with httpx.stream("GET", self.url + job["events_url"], timeout=300) as events:
            times = [
                time.monotonic()
                for line in events.iter_lines()
                if line.startswith("data: ") and json.loads(line[6:]).get("step")
            ]
        gaps = [after - before for before, after in pairwise(times)]
        return max(gaps), statistics.median(gaps)

    def memory(self) -> None:
        used = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        about = httpx.get(f"{self.url}/v2/models/model", timeout=30).json()["properties"]
        plan = about["memory_plan"]
        planned = (plan["weights_bytes"] + plan["activation_bytes"]) / 2**20
        self.say(used_mib=used, planned_mib=round(planned))


@contextmanager
def arm(folder: Path, variables: dict[str, str], told: dict[str, Any]) -> Iterator[str]:
    began = time.monotonic()
    given = {"model_id": str(folder), "cache_dir": str(folder.parent / "cache")}
    with server_process(**(given | variables)) as url:
        print(json.dumps(told | {"ready_s": round(time.monotonic() - began, 1)}), flush=True)
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd35-medium", choices=list(SUBJECTS))
    parser.add_argument("--arm", action="append", help="'NAME=value NAME=value'; may be empty")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--at-once", type=int, default=8, help="1: lone pictures alone")
    parser.add_argument("--sizes", action="store_true", help="thirty random sizes, nothing else")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    folder = build(options.model, options.folder)
    for text in options.arm or [""]:
        variables = dict(each.split("=", 1) for each in text.split())
        told = {"model": options.model, "arm": text}
        with arm(folder, variables, told) as url:
            steps = STEPS.get(options.model, USUAL_STEPS)
            client = ServedClient(url, steps, told, ends, options.at_once)
            together = [client.short_beside_long, client.odd_size] if options.at_once > 1 else []
            figures = (client.sizes, *together, client.memory)
            for work in (client.thirty_sizes,) if options.sizes else figures:
                if client.left(20):
                    work()


if __name__ == "__main__":
    main()
