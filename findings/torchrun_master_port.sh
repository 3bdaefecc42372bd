#!/usr/bin/env bash
# torchrun of PyTorch 2.15.0 listens on MASTER_PORT itself.
#
# MASTER_ADDR and MASTER_PORT tell the processes where rank 0 is to be found, and a program that is no PyTorch would have rank 0 listen there.
# Under torchrun the port is taken: the agent that starts the processes keeps a store on it, and says so only by
# TORCHELASTIC_USE_AGENT_STORE=True. PyTorch's own processes connect to that store. Others have to agree on another port; the next ones are
# as good as any. TORCHELASTIC_RUN_ID is "none" for every run that nobody gave a name, so that it does not tell two runs apart.
#
#   findings/torchrun_master_port.sh
#
# installs pinned packages in a temporary folder, and fails if torchrun behaves otherwise. FINDINGS_PYTHON names a Python that has
# PyTorch 2.15.0 already, which saves its download.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 numpy
fi
cat >"$folder/rank.py" <<'PYTHON'
import errno
import os
import socket

port = int(os.environ["MASTER_PORT"])
assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
try:
    socket.socket().bind(("", port))
    bound = "free"
except OSError as error:
    assert error.errno == errno.EADDRINUSE, error
    bound = "taken"
print("rank", os.environ["RANK"], "port", bound, "run", os.environ["TORCHELASTIC_RUN_ID"])
PYTHON
"$python" -m torch.distributed.run --nproc-per-node 2 --master-port 29717 "$folder/rank.py" 2>/dev/null | sort | tee "$folder/out"
printf 'rank %d port taken run none\n' 0 1 | diff - "$folder/out"
