"""Reads what a run's trackers wrote with their own libraries, and compares all of it with `metrics.jsonl`.

    python scripts/trackers.py RUN      RUN was killed and resumed, with all trackers on and previews

Exits with 1 at the first difference. wandb's client uploads to a server in this process, on the loopback device: no account
and no network are needed, and nothing leaves the machine.
"""

import gzip
import hashlib
import http.server
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

BLOCK = 32768


def fail(text):
    print(f"error: {text}")
    sys.exit(1)


def same(left, right):
    return left == right or (math.isnan(left) and math.isnan(right))


def number(value):
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value, value) if isinstance(value, str) else value


def metrics(run):
    """The lines of `metrics.jsonl`, numbers as numbers."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: number(value) for name, value in json.loads(line).items()} for line in lines]


def by_samples(lines):
    """All names of one number of samples in one row."""
    rows = {}
    for line in lines:
        rows.setdefault(line["samples"], {}).update(line)
    return rows


def check_csv(run, lines):
    import pandas

    table = pandas.read_csv(run / "metrics.csv")
    if len(table) != len(lines):
        fail(f"metrics.csv has {len(table)} rows, and metrics.jsonl {len(lines)} lines")
    names = list(dict.fromkeys(name for line in lines for name in line))
    if list(table.columns) != names:
        fail(f"metrics.csv has the columns {list(table.columns)}, and the names came as {names}")
    for (_, row), line in zip(table.iterrows(), lines):
        for name in names:
            # The seconds of a line are the tracker's own.
            if name != "seconds" and not same(float(row[name]), float(line.get(name, math.nan))):
                fail(f"metrics.csv, {line['samples']} samples: {name} is {row[name]} instead of {line.get(name)}")
    print(f"pandas {pandas.__version__}: {len(table)} rows, {len(names)} columns, the same")


def check_tensorboard(run, lines):
    import tensorboard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    wanted = {}
    for line in lines:
        for name in line.keys() - {"samples", "seconds"}:
            wanted.setdefault(name, []).append((line["samples"], struct.unpack("f", struct.pack("f", line[name]))[0]))
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if found.keys() != wanted.keys():
        fail(f"TensorBoard shows {sorted(found)} instead of {sorted(wanted)}")
    for name, values in wanted.items():
        if len(values) != len(found[name]) or not all(
            a[0] == b[0] and same(a[1], b[1]) for a, b in zip(values, found[name])
        ):
            fail(f"TensorBoard shows {name} as {found[name]} instead of {values}")
    images = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    if not images or not all(shot.encoded_image_string[:4] == b"\x89PNG" for shots in images.values() for shot in shots):
        fail(f"TensorBoard shows the images {sorted(images)}")
    print(f"tensorboard {tensorboard.version.VERSION}: {len(wanted)} scalars the same; images {sorted(images)}")
    return {(tag, shot.step): shot.encoded_image_string for tag, shots in images.items() for shot in shots}


def records(path):
    """The records of a transaction log, parsed with wandb's own protobuf classes."""
    from google.protobuf.unknown_fields import UnknownFieldSet
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    if data[:7] != b":W&B" + struct.pack("<HB", 0xBEE1, 0):
        fail(f"{path}: the header is {data[:7]}")
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        if len(part) != length or zlib.crc32(bytes([kind]) + part) != checksum:
            fail(f"{path}: the fragment at byte {at} is damaged")
        whole, at = whole + part, at + 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            own = getattr(record, record.WhichOneof("record_type"))
            if len(UnknownFieldSet(record)) + len(UnknownFieldSet(own)):
                fail(f"{path}: fields that wandb does not know")
            whole = b""
            yield record


def history(record):
    row = {}
    for item in record.history.item:
        keys = list(item.nested_key) or [item.key]
        place = row
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = json.loads(item.value_json)
    return row


def check_rows(rows, lines, images, files, what):
    """Rows of numbers and images, as dictionaries with `_step`, against the lines and TensorBoard's images."""
    wanted = by_samples(lines)
    shown = {}
    for tag, step in images:
        shown.setdefault(step, set()).add(tag)
    steps = [row["_step"] for row in rows]
    if steps != sorted(set(wanted) | set(shown)):
        fail(f"{what}: the steps are {steps} instead of {sorted(wanted)}")
    for row in rows:
        step = row["_step"]
        numbers = {name: value for name, value in row.items() if not name.startswith("_") and not isinstance(value, dict)}
        line = {name: value for name, value in wanted.get(step, {}).items() if name not in ("samples", "seconds")}
        if numbers.keys() != line.keys() or not all(same(float(numbers[name]), float(line[name])) for name in line):
            fail(f"{what}: step {step} is {numbers} instead of {line}")
        tags = {name: value for name, value in row.items() if isinstance(value, dict) and not name.startswith("_")}
        if tags.keys() != shown.get(step, set()):
            fail(f"{what}: step {step} shows {sorted(tags)} instead of {sorted(shown.get(step, set()))}")
        for tag, image in tags.items():
            content = files(image["path"])
            good = content == images[tag, step] and image["sha256"] == hashlib.sha256(content).hexdigest()
            if not good or image["_type"] != "image-file" or image["size"] != len(content):
                fail(f"{what}: the image {tag} of step {step} is another one")


def check_wandb_files(run, lines, images):
    import wandb

    folders = sorted((run / "wandb").glob("offline-run-*"))
    ids = {folder.name.rsplit("-", 1)[1] for folder in folders}
    if len(ids) != 1 or len(folders) < 2:
        fail(f"a run that was resumed has the folders {folders}")
    (name,) = ids
    rows, found = [], {}
    for folder in folders:
        kinds = []
        for number, record in enumerate(records(folder / f"run-{name}.wandb"), 1):
            kinds.append(record.WhichOneof("record_type"))
            if record.num != number:
                fail(f"{folder}: record {number} says that it is {record.num}")
            if kinds[-1] == "history":
                rows.append(history(record))
            if kinds[-1] == "run" and record.run.resume != (folder != folders[0]):
                fail(f"{folder}: `resume` is {record.run.resume}")
        if kinds[:2] != ["header", "run"]:
            fail(f"{folder}: begins with {kinds[:2]}")
        found.update({str(path.relative_to(folder / "files")): path for path in (folder / "files").rglob("*") if path.is_file()})
    check_rows(rows, lines, images, lambda path: found[path].read_bytes(), "the transaction logs")
    print(f"wandb {wandb.__version__}, its protobuf classes: {len(rows)} rows in {len(folders)} folders, the same")
    return folders, name


class Server(http.server.ThreadingHTTPServer):
    """As much of W&B's server as `wandb sync` asks for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.rows, self.files, self.config, self.exits = [], {}, {}, 0
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """The client leaves connections open and cuts them at its end."""

    def bucket(self, variables):
        name = variables.get("name") or "run"
        project = {"id": "project", "name": variables.get("project"), "entity": {"id": "entity", "name": "entity"}}
        return {"id": "bucket", "name": name, "displayName": name, "description": "", "config": json.dumps(self.config),
                "sweepName": None, "project": project, "historyLineCount": len(self.rows)}

    def answer(self, query, variables):
        if "upsertBucket" in query:
            self.config.update(json.loads(variables.get("config") or "{}"))
            return {"upsertBucket": {"bucket": self.bucket(variables), "inserted": not self.rows}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
        if "bucket(name" in query and self.rows:
            tail = json.dumps([json.dumps(self.rows[-1])])
            run = self.bucket(variables) | {"summaryMetrics": "{}", "logLineCount": 0, "eventsLineCount": 0, "tags": [],
                                            "historyTail": tail, "eventsTail": "[]", "notes": "", "wandbConfig": "{}"}
            return {"model": {"id": "project", "name": variables.get("project"), "entity": {"id": "e", "name": "entity"},
                              "bucket": run}}
        if "bucket(name" in query:
            return {"model": None}
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def content(self):
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(content) if self.headers.get("content-encoding") == "gzip" else content

    def reply(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.reply({})

    def do_PUT(self):
        with self.server.lock:
            self.server.files[self.path.removeprefix("/upload/")] = self.content()
        self.reply({})

    def do_POST(self):
        body = json.loads(self.content() or b"{}")
        with self.server.lock:
            if self.path.endswith("/file_stream"):
                lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                self.server.rows.extend(json.loads(line) for line in lines)
                self.server.exits += body.get("complete") is not None
                return self.reply({})
            return self.reply({"data": self.server.answer(body.get("query", ""), body.get("variables") or {})})


def check_wandb_sync(folders, name, lines, images):
    import urllib.parse

    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "HOME": home,
                                    "WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off"}
        command = [str(pathlib.Path(sys.executable).parent / "wandb"), "sync", "--yes", *map(str, folders)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=home)
    if done.returncode != 0:
        fail(f"wandb sync ends with {done.returncode}:\n{done.stdout}{done.stderr}")
    server.shutdown()
    files = {urllib.parse.unquote(path): content for path, content in server.files.items()}
    check_rows(server.rows, lines, images, lambda path: files[path], "what wandb sync uploads")
    recipe = (folders[0].parents[1] / "recipe.toml").read_bytes()
    if files.get("recipe.toml") != recipe:
        fail(f"wandb sync uploads {sorted(files)}, without the recipe")
    if server.config.get("kind", {}).get("value") is None:
        fail(f"wandb sync sends the configuration {server.config}")
    print(f"wandb sync: {len(server.rows)} rows of the run {name} and {len(files)} files, the same")


def main():
    run = pathlib.Path(sys.argv[1])
    lines = metrics(run)
    check_csv(run, lines)
    images = check_tensorboard(run, lines)
    folders, name = check_wandb_files(run, lines, images)
    check_wandb_sync(folders, name, lines, images)


main()
