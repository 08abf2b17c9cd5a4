#!/usr/bin/env bash
# Runs every test, on a machine with nothing but Go.
#
# ./test.sh         every test
# ./test.sh --race  every test under the race detector, as .ci/run does: two to four times the work
#
# The tests need PostgreSQL, and the race detector needs a C compiler. What is missing is installed
# when this runs as root on Debian, else the line that installs it is printed.
#
# Some tests mount disks, which takes root. They run where mounting works, and a line says so where it
# does not. Further arguments go to go test, as in: ./test.sh -run TestDemo
set -euo pipefail
cd "$(dirname "$0")"

command -v go >/dev/null || { echo "Go is missing: https://go.dev/doc/install" >&2; exit 1; }
need=(initdb=postgresql git=git,ca-certificates dkimverify=python3-dkim)
race=()
if [ "${1:-}" = --race ]; then
  shift
  need+=(cc=gcc,libc6-dev)
  mapfile -t race < <(.ci/race)
fi
.ci/need "${need[@]}"

disks=()
if [ "$(id -u)" = 0 ] && [ -e /dev/loop-control ] && unshare --mount mount -t tmpfs none /mnt 2>/dev/null; then
  disks=(-tags root)
else
  echo "without the tests that mount disks: this user may not mount"
fi
# .ci/lint vets all of this, and more.
exec go test "${race[@]}" -vet=off -shuffle=on -timeout 45m "${disks[@]}" "$@" ./...
