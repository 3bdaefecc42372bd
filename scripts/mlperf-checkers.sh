#!/usr/bin/env bash
# Compares Calotype's checks of MLPerf logs, reference points and packages with MLCommons' own (mlperf-logging).
#
#   scripts/mlperf-checkers.sh                       writes every case of crates/mlperf, has the official checkers judge them, and
#                                                    ends with 1 if a verdict is not the golden one, which the crate's tests hold ours to
#   scripts/mlperf-checkers.sh --write               the same, and writes the golden file
#   scripts/mlperf-checkers.sh --log FILE RULESET    the official verdict on a log beside ours; ends with 1 if they differ
#   scripts/mlperf-checkers.sh --tree FOLDER RULESET the same for a submission's tree (FOLDER holds systems/ and results/)
#   scripts/mlperf-checkers.sh --python              prints the path of the Python that has the checkers
#
# CALOTYPE_MLPERF_PYTHON names a Python that has mlperf-logging 4.1.68 already; otherwise a virtual environment is made in
# target/mlperf-checkers, once. CALOTYPE_MLPERF_CASES names the built example `cases` of crates/mlperf; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
golden=crates/mlperf/tests/golden/verdicts.json

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
python="${CALOTYPE_MLPERF_PYTHON:-}"
if [ -z "$python" ]; then
    folder=target/mlperf-checkers
    if [ ! -e "$folder/complete" ]; then
        python3 -m venv "$folder" >&2
        "$folder/bin/python" -m pip install --quiet mlperf-logging==4.1.68 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 pyyaml==6.0.4 >&2
        touch "$folder/complete"
    fi
    python="$PWD/$folder/bin/python"
fi
if [ "${1:-}" = "--python" ]; then
    echo "$python"
    exit 0
fi
cases="${CALOTYPE_MLPERF_CASES:-}"
if [ -z "$cases" ]; then
    cargo build --release -q -p calotype-mlperf --example cases >&2
    cases="${CARGO_TARGET_DIR:-target}/release/examples/cases"
fi
export PYTHONDONTWRITEBYTECODE=1

# both KIND PLACE RULESET: the two verdicts.
both() {
    local official ours
    official="$("$python" scripts/mlperf-golden.py "--$1" "$2" "$3")"
    ours="$("$cases" "$1" "$2" "$3")"
    printf '%s\n' "$ours" | sed '$d'
    ours="$(printf '%s\n' "$ours" | tail -n 1)"
    echo "$2 by the rules of $3: $official by mlperf-logging, $ours by Calotype"
    [ "$official" = "$ours" ]
}

case "${1:-}" in
--log | --tree)
    if [ $# -ne 3 ]; then
        echo "error: $1 takes a path and a ruleset, such as 5.0.0" >&2
        exit 2
    fi
    both "${1#--}" "$2" "$3"
    exit
    ;;
"" | --write) ;;
*)
    echo "error: $1 is not known; say --help" >&2
    exit 2
    ;;
esac

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$cases" write "$work/cases"
"$python" scripts/mlperf-golden.py "$work/cases" >"$work/verdicts.json"
if [ "${1:-}" = "--write" ]; then
    cp "$work/verdicts.json" "$golden"
fi
diff "$golden" "$work/verdicts.json" >"$work/difference" && result=ok || result=FAILED
cat "$work/difference"
# Of cases that differ, both sides name the case.
failed="$(sed -n 's/^[<>] *\("[^"]*"\): .*/\1/p' "$work/difference" | sort -u | wc -l)"
passed=$(($(grep -c '"verdict"' "$golden") - failed))
echo "test result: $result. $passed passed; $failed failed"
if [ "$result" != ok ]; then
    echo "the official checkers' verdicts are not those of $golden"
    exit 1
fi
