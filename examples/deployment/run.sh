#!/usr/bin/env bash
# A whole deployment on one machine: provision, start all parties over TLS, train, lose a bank
# and the coordinator on the way (kill -9), finish, check every ledger.
#
#   examples/deployment/run.sh [FOLDER]          needs a folder that is empty or not there
#
# Roughly ten to twenty minutes on two cores, which five parties share.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
python=${PYTHON:-$here/../../.venv/bin/python}
[[ -x $(command -v "$python") ]] || { echo "no $python: run make install, or name an interpreter in PYTHON" >&2; exit 2; }
data=${FEDLLM_DATA:-$here/../../../shared/data}
port=${PORT:-9443}
name=deployed-banks
sites=(bank-a bank-b bank-c)
export FEDLLM_DATA=$data OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fedllm() { "$python" -m fedllm "$@"; }
kit() { echo "$out/operator/kits/$1"; }
say() { printf '\n== %s\n' "$*"; }

declare -A process
start() { # PARTY: the command becomes the process itself, so that kill -9 meets the right one
  local role=client policy=()
  case $1 in coordinator) role=server ;; authority) role=authority ;; *) policy=(--policy "$here/bank.toml") ;; esac
  FEDLLM_SITE_RECORDS=$out/records/$1.jsonl \
    "$python" -m fedllm "$role" start --kit "$(kit "$1")" ${policy[@]+"${policy[@]}"} 2>>"$out/$1.log" &
  process[$1]=$!
}
stop_all() {
  trap - EXIT
  for party in "${!process[@]}"; do kill "${process[$party]}" 2>/dev/null || true; done
  wait
}
trap stop_all EXIT
wait_for() { # SECONDS COMMAND...: until the command succeeds
  local left=$1; shift
  until "$@" >/dev/null 2>&1; do
    ((left-- > 0)) || { echo "not in time: $*" >&2; tail -n 5 "$out"/*.log >&2; exit 1; }
    sleep 1
  done
}
connected() { # COUNT: so many parties are connected
  "$python" -c 'import json, sys
nodes = json.load(open(sys.argv[1]))["nodes"]
sys.exit(sum(n["online"] for n in nodes) < int(sys.argv[2]))' \
    "$(kit coordinator)/state/status.json" "$1"
}
rounds=$(sed -n 's/^count = //p' "$here/run.toml")
finished_round() { # the last one; before there is any, 0
  local lines
  lines=$(grep -c '^{"round": [1-9]' "$(kit coordinator)/state/runs/$name/metrics.jsonl" 2>/dev/null) || true
  echo "${lines:-0}"
}
wait_for_round() { # ROUND: says how far the run is after each round, and every half minute
  local seconds=0 said=-1 now
  while now=$(finished_round); ((now < $1)); do
    if ((now != said || seconds % 30 == 0)); then
      echo "$((SECONDS / 60)) min: $now of $rounds rounds are finished, waiting for round $1"
      said=$now
    fi
    ((seconds++ < 1500)) || { echo "not in time: round $1" >&2; tail -n 5 "$out"/*.log >&2; exit 1; }
    sleep 1
  done
}

echo "This takes roughly ten to twenty minutes on two free cores, longer on slower or busy ones: each"
echo "of $rounds rounds is computed by all three banks, on the same cores. Ctrl-C stops everybody."
say "provision a federation of three banks in $out"
mkdir -p "$out/records"
sed "/^hosts/a port = $port" "$here/banks.toml" >"$out/federation.toml"
fedllm provision "$out/federation.toml" --out "$out/operator" >/dev/null
ls "$out/operator/kits"
"$python" "$here/divide.py" "$data/banking77/train.jsonl.gz" "$out/records" "${sites[@]}"

say "start coordinator, key authority and three banks"
start coordinator
wait_for 60 test -e "$(kit coordinator)/state/status.json"
for party in authority "${sites[@]}"; do start "$party"; done
wait_for 120 connected 4
fedllm server status --kit "$(kit coordinator)"

say "hand over the run"
fedllm run "$here/run.toml" --kit "$(kit coordinator)" --detach
wait_for_round 3

say "kill -9 bank-c in the middle of the run"
kill -9 "${process[bank-c]}"; wait "${process[bank-c]}" 2>/dev/null || true
wait_for_round 6
say "bank-c comes back"
start bank-c
wait_for_round 9

say "kill -9 the coordinator, and start it again"
kill -9 "${process[coordinator]}"; wait "${process[coordinator]}" 2>/dev/null || true
start coordinator

say "come back to the run and watch it to its end"
fedllm run "$here/run.toml" --kit "$(kit coordinator)" --follow --json >"$out/summary.json"
"$python" -c 'import json, sys
s = json.load(open(sys.argv[1]))
print("accuracy {:.4f} -> {:.4f}, epsilon {} promised, {} rounds".format(
    s["metrics_before"]["accuracy"], s["metrics"]["accuracy"], s["privacy"]["promised"], s["rounds"]))' \
  "$out/summary.json"

say "check every ledger, and the key authority's log"
for site in "${sites[@]}"; do
  key=$("$python" -c 'import json, sys
from pathlib import Path
from fedllm.identity.kits import read_kit
print(read_kit(Path(sys.argv[1]), "site").identity.public_bytes().hex())' "$(kit "$site")")
  fedllm ledger verify "$(kit "$site")/state/ledger.sqlite" --public-key "$key" | head -n 1
  fedllm ledger show "$(kit "$site")/state/ledger.sqlite" --json | "$python" -c 'import json, sys
for account in json.load(sys.stdin)["accounts"]:
    print("    epsilon {:.3f} of {} spent".format(account["epsilon"], account["ceiling"]["epsilon"]))'
done
fedllm authority log --kit "$(kit authority)" | tail -n 1

say "release the model; every bank fetches and checks it over the same connection"
fedllm server release "$name" --kit "$(kit coordinator)"
for site in "${sites[@]}"; do
  FEDLLM_SITE_RECORDS=$out/records/$site.jsonl fedllm client models fetch "$name" --kit "$(kit "$site")" \
    --policy "$here/bank.toml" --out "$out/models/$site" 2>/dev/null
done

say "stop everybody"
stop_all
left=$(pgrep -f "$out/operator" || true)
[[ -z $left ]] || { echo "left behind: $left" >&2; exit 1; }
echo "no process is left; everything is in $out"
