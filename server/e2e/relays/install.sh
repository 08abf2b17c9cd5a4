#!/usr/bin/env bash
# Installs the two mail servers these tests use as relays: Postfix as a package, and Exim, which excludes Postfix, unpacked into a folder of its own.
# As root, on Debian, without input; starts no service; a second run does nothing. The tests find Exim by
# MAILDISPATCH_TEST_EXIM=FOLDER/exim4.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: install.sh FOLDER" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
root=$1
mkdir -p "$root"
root=$(cd "$root" && pwd)

apt() { apt-get -q -o DPkg::Lock::Timeout=300 -o APT::Sandbox::User=root "$@" </dev/null; }

# The lists are fetched only when they are needed: missing, or so old that they name packages which are gone.
updated=
refreshed() {
  "$@" && return
  [ -z "$updated" ] || return 1
  apt update
  updated=1
  "$@"
}

# --no-remove: a machine that has a mail server of its own keeps it, and this fails. Without a system configuration nothing could be started by mistake; policy-rc.d keeps the package's own service down on machines with an init.
postfix() {
  local policy=
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
  local rc=0
  refreshed apt install -y --no-install-recommends --no-remove postfix || rc=$?
  [ -z "$policy" ] || rm -f "$policy"
  return "$rc"
}

# Exim, the libraries it lacks on this machine, and a script that runs it with them. The binary is not setuid: it would ignore LD_LIBRARY_PATH, and a
# private relay needs no root. It does want the user it was built for.
exim() {
  local debs=$root/debs
  rm -rf "$debs" "$root/exim" "$root/lib"
  mkdir "$debs" "$root/lib"
  cd "$debs"
  refreshed apt download exim4-daemon-light
  dpkg -x exim4-daemon-light_*.deb "$root/exim"
  chmod u-s "$root/exim/usr/sbin/exim4"
  if [[ $(ldd "$root/exim/usr/sbin/exim4") == *'not found'* ]]; then
    local plain=(--no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances) direct all lib missing=()
    direct=$(apt-cache depends "${plain[@]}" exim4-daemon-light | sed -n 's/^ *|\?Depends: \(lib.*\)/\1/p')
    # shellcheck disable=SC2086 # a list
    all=$(apt-cache depends --recurse "${plain[@]}" $direct | grep '^lib' | sort -u)
    for lib in $all; do
      [ "$(dpkg-query -W -f '${db:Status-Status}' "$lib" 2>/dev/null)" = installed ] || missing+=("$lib")
    done
    refreshed apt download "${missing[@]}"
    for deb in lib*.deb; do dpkg -x "$deb" libs; done
    find libs -name '*.so*' -exec cp -d {} "$root/lib/" \;
  fi
  cd /
  rm -rf "$debs"
  getent passwd Debian-exim >/dev/null || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin Debian-exim
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$root/lib" "$root/exim/usr/sbin/exim4" >"$root/exim4"
  chmod 755 "$root/exim4"
}

[ -x /usr/sbin/postfix ] || postfix
"$root/exim4" -C /dev/null -bV >/dev/null 2>&1 || exim
/usr/sbin/postconf -dh mail_version | sed 's/^/Postfix version /'
"$root/exim4" -C /dev/null -bV 2>/dev/null | sed -n 's/ #.*//;1p'
