#!/usr/bin/env bash
# The checksums in a transaction log of wandb 0.31.0 are neither LevelDB's nor masked.
#
# `run-ID.wandb` is framed as LevelDB's logs are: blocks of 32 KiB, a checksum, a length and a type in front of each fragment. LevelDB's
# checksum is a CRC-32C, rotated and with a constant added ("masked"); wandb's is the plain CRC-32 of zlib over type and data, so that a
# reader or writer that is made after LevelDB's documentation finds every fragment damaged. The file's header of seven bytes (`:W&B`, 0xBEE1,
# a version) is a part of the first block. Names of metrics stand in `nested_key`, also those without any nesting, and `key` is empty.
#
#   findings/wandb_log_checksum.sh
#
# installs pinned packages in a temporary folder, and fails if the client writes otherwise. FINDINGS_PYTHON names a Python that has
# wandb 0.31.0 already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q wandb==0.31.0
fi
cat >"$folder/write.py" <<'PYTHON'
import pathlib
import struct
import sys
import zlib

import wandb
from wandb.proto import wandb_internal_pb2

folder = pathlib.Path(sys.argv[1])
settings = wandb.Settings(x_disable_stats=True, console="off")
with wandb.init(project="p", mode="offline", dir=folder, id="finding1", settings=settings) as run:
    for step in range(400):
        run.log({"a/b": step}, step=step)
(log,) = folder.glob("wandb/offline-run-*/run-finding1.wandb")
content = log.read_bytes()
assert content[:7] == b":W&B\xe1\xbe\x00", content[:7]
assert len(content) > 2 * 32768
at, whole, keys = 7, b"", set()
while at < len(content):
    left = 32768 - at % 32768
    if left < 7:
        at += left
        continue
    checksum, length, kind = struct.unpack("<IHB", content[at : at + 7])
    data = content[at + 7 : at + 7 + length]
    assert zlib.crc32(bytes([kind]) + data) == checksum, at
    whole, at = whole + data, at + 7 + length
    if kind in (1, 4):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        whole = b""
        keys |= {(item.key, *item.nested_key) for item in record.history.item if "a/b" in item.nested_key}
assert keys == {("", "a/b")}, keys
print("CRC-32 in all of", len(content) // 32768 + 1, "blocks")
PYTHON
"$python" "$folder/write.py" "$folder" 2>/dev/null | tee "$folder/out"
grep -q '^CRC-32 in all of' "$folder/out"
