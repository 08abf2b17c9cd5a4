#!/usr/bin/env bash
# Checks ownership.pml exhaustively, and that planted faults are found. Needs spin and a C compiler.
# check.sh [FAULTS [FAULTS_ALONE]]: how many faults for both mails together, and for each alone.
set -euo pipefail
model=$(cd "$(dirname "$0")" && pwd)/ownership.pml
both=${1:-2} alone=${2:-3}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

# search NAME SPIN_FLAGS...: leaves what the search says in NAME.out.
search() {
  local name=$1
  shift
  spin "$@" -a "$model" >"$name.spin"
  gcc -w -O1 -DSAFETY -DNOREDUCE -DMEMLIM=16000 -o pan pan.c
  ./pan -m100000 >"$name.out"
}

# holds NAME FLAGS...: every state was visited, and none breaks the promise.
holds() {
  search "$@"
  if ! grep -q 'errors: 0' "$1.out" || grep -qE 'not completed|too small|out of memory' "$1.out"; then
    cat "$1.out"
    [ ! -f ownership.pml.trail ] || { cp "$model" . && spin "${@:2}" -p -t ownership.pml | tail -60; }
    echo "model: $1: the promise does not hold, or the search did not end"
    exit 1
  fi
  echo "model: $1: holds in all $(sed -n 's/ *\([0-9e+.]*\) states, stored/\1/p' "$1.out") states"
}

# found HOW NAME: a fault that was planted is found, as this kind of error.
found() {
  search "$2" "-D$2" -DFAULTS=2
  if ! grep -q "^pan:1: $1" "$2.out"; then
    cat "$2.out"
    echo "model: the planted fault $2 was not found as '$1': the model proves nothing"
    exit 1
  fi
  rm -f ./*.trail
  echo "model: $2: found ($1)"
}

holds "two mails, $both faults" "-DFAULTS=$both"
holds "the bulk mail, $alone faults" "-DFAULTS=$alone" -DBORN=sent
holds "the invoice, $alone faults" "-DFAULTS=$alone" -DQUEUED=sent
found 'assertion violated' OWNER_ONLY
found 'assertion violated' SAME_TOKEN
found 'assertion violated' NO_MARK
found 'invalid end state' KNOWN_DEAD
