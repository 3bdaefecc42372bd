"""Measures the rows of scripts/cpu-table.sh, which says how to call it."""

import argparse
import dataclasses
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a red fox in the snow"
# Model, name, and the sides of its usual picture.
MODELS = {"sd1": ("SD 1.5", 512), "sd2": ("SD 2", 512), "sdxl": ("SDXL base", 1024)}
NO_STUDENT = "none: needs the student's weights"
NOT_MEASURED = "not measured"


@dataclasses.dataclass
class Row:
    """A way to draw: its name, its options, the steps of a picture (none: --steps), and steps between whole passes."""

    name: str
    options: list
    steps: int | None = None
    interval: int = 1
    models: tuple = ("sd1", "sd2", "sdxl")
    int8: bool = False

    def whole(self, steps):
        """Steps that compute the whole network."""
        return math.ceil(steps / self.interval)


def cached(interval, branch=0):
    options = ["--cache-interval", str(interval), "--cache-branch", str(branch)]
    return Row(f"cached {interval}", options, interval=interval)


ROWS = [
    Row("bf16", []),
    Row("int8", [], int8=True),
    cached(2),
    cached(3),
    cached(5),
    Row("lcm-lora", ["--preset", "lcm-lora"], 4),
    Row("turbo", ["--preset", "turbo"], 1, models=("sd2", "sdxl")),
    Row("lightning-4", ["--preset", "lightning-4"], 4, models=("sdxl",)),
    Row("hyper-sd-8", ["--preset", "hyper-sd-8"], 8, models=("sd1", "sdxl")),
]


def main():
    arguments = parse()
    print(f"{date()}, {processor()}, {arguments.threads} threads", file=sys.stderr)
    out = Path(arguments.out or tempfile.mkstemp(suffix=".jsonl", prefix="cpu-table-")[1])
    measured, lines, commands = {}, [], []
    quality = qualities(arguments) if arguments.quickstart else {}
    for model in MODELS:
        for row in [row for row in ROWS if model in row.models and arguments.has(row.name)]:
            path = (arguments.int8 if row.int8 else arguments.model).get(model)
            if path is None:
                continue
            result = measure(arguments, model, path, row, measured)
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            measured[model, row.name] = result
            lines.append(line(arguments, model, row, result, measured, quality))
            commands.append(f"{MODELS[model][0]}, {row.name}: {result['command']}")
    table = ["| model | way | steps | seconds a picture | a step | times bf16 | memory | quality |"]
    table += ["|---|---|---|---|---|---|---|---|", *lines]
    print("\n".join(table), "\n\nCommands:\n\n    " + "\n    ".join(commands), sep="")
    print(f"measurements: {out}", file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(prog="scripts/cpu-table.sh")
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--int8", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--rows", default="", metavar="NAME,NAME")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--short", type=int, metavar="N")
    parser.add_argument("--quickstart", metavar="DIR")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", metavar="FILE")
    arguments = parser.parse_args()
    for flag in ["model", "int8"]:
        named = dict(text.partition("=")[::2] for text in getattr(arguments, flag))
        for name, folder in named.items():
            if name not in MODELS or not Path(folder).exists():
                parser.error(f"--{flag} {name}={folder}: name one of {', '.join(MODELS)} and a checkpoint that is there")
        setattr(arguments, flag, named)
    wanted = [name for name in arguments.rows.split(",") if name]
    if unknown := set(wanted) - {row.name for row in ROWS}:
        parser.error(f"--rows: {', '.join(unknown)}: rows are {', '.join(row.name for row in ROWS)}")
    arguments.has = lambda name: not wanted or name in wanted
    if arguments.steps < 1 or (arguments.short or 2) < 2:
        parser.error("--steps is at least 1, --short at least 2")
    if not arguments.model:
        parser.error("--model NAME=DIR is needed")
    return arguments


def measure(arguments, model, path, row, measured):
    """One row: seconds, steps, memory, and the command of the whole picture."""
    steps = row.steps or arguments.steps
    short = min(steps, arguments.short or steps)
    side = str(MODELS[model][1])
    options = ["--model", path, "--width", side, "--height", side, "--precision", "bf16", *row.options]
    command = ["calotype", "generate", PROMPT, *options, *([] if row.steps else ["--steps", str(steps)])]
    folder = tempfile.mkdtemp(prefix="cpu-table-")
    # A list of timesteps has its own number of steps.
    drawn = ["generate", PROMPT, *options, "--steps", str(short), "--json", "--out", folder]
    run = [arguments.calotype, "--threads", str(arguments.threads), *drawn]
    begun = time.monotonic()
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    shutil.rmtree(folder, ignore_errors=True)
    if status != 0:
        sys.exit(f"error: {shlex.join(run)} failed")
    timings = json.loads(told)
    result = dict(model=model, row=row.name, command=shlex.join(command), steps=steps, measured_steps=short, wall=wall)
    result |= {key: timings[key] for key in ["load", "text", "sample", "decode"]}
    result["peak_gib"] = usage.ru_maxrss / 2**20
    result["sample_all"] = sample_seconds(row, result, measured.get((model, "bf16")))
    result["picture"] = result["text"] + result["sample_all"] + result["decode"]
    return result


def sample_seconds(row, result, plain):
    """Seconds of all steps, from those that were measured: whole passes as long as without caching, the others alike."""
    steps, short = result["steps"], result["measured_steps"]
    if short == steps:
        return result["sample"]
    if row.interval == 1:
        return result["sample"] / short * steps
    if plain is None:
        sys.exit("error: --short measures cached rows beside bf16: add that to --rows")
    whole = plain["sample"] / plain["measured_steps"]
    shallow = max(result["sample"] - row.whole(short) * whole, 0.0) / max(short - row.whole(short), 1)
    return row.whole(steps) * whole + (steps - row.whole(steps)) * shallow


def line(arguments, model, row, result, measured, quality):
    plain = measured.get((model, "bf16"))
    ratio = f"{plain['picture'] / result['picture']:.2f}x" if plain else "–"
    name, side = MODELS[model]
    steps = str(result["steps"])
    if result["measured_steps"] != result["steps"]:
        steps += f" ({result['measured_steps']} measured)"
    figure = quality.get(row.name, NO_STUDENT if row.steps else NOT_MEASURED)
    seconds = f"{result['picture']:.1f} | {result['sample_all'] / result['steps']:.2f}"
    return f"| {name}, {side}x{side} | {row.name} | {steps} | {seconds} | {ratio} | {result['peak_gib']:.1f} GiB | {figure} |"


def qualities(arguments):
    """What cached blocks cost: distance and CLIP score of the quickstart's own pictures, by row."""
    found = {}
    for row in [row for row in ROWS if row.steps is None and not row.int8 and arguments.has(row.name)]:
        folder = tempfile.mkdtemp(prefix="cpu-table-")
        settings = [f"model={arguments.quickstart!r}", "images=256", "sampler.guidance=[2.0]", f"sampler.steps={arguments.steps}"]
        if row.interval > 1:
            settings += [f"sampler.caching={{interval={row.interval},branch=0}}"]
        run = [arguments.calotype, "--threads", str(arguments.threads), "evaluate", "stable_diffusion/fid_clip_mini"]
        run += [*settings, "--out", folder]
        done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"error: {shlex.join(run)} failed:\n{done.stderr}")
        figures = {}
        for path in sorted(Path(folder).rglob("*.json")):
            collect(json.loads(path.read_text()), figures)
        shutil.rmtree(folder, ignore_errors=True)
        found[row.name] = ", ".join(f"{name} {value:.4g}" for name, value in sorted(figures.items())) or NOT_MEASURED
    return found


def collect(value, figures):
    """Figures of a result, wherever they stand in it: objects with the name of a metric and a value."""
    if isinstance(value, dict):
        name, number = value.get("metric"), value.get("value")
        if isinstance(name, str) and isinstance(number, (int, float)):
            figures[name.partition(":")[0]] = number
        for inner in value.values():
            collect(inner, figures)
    elif isinstance(value, list):
        for inner in value:
            collect(inner, figures)


def processor():
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.processor()


def date():
    return time.strftime("%d %B %Y").lstrip("0")


if __name__ == "__main__":
    main()
