#!/usr/bin/env bash
# Debian splits the venv module from Python: install it as root, else print the command.
set -u
version=$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
command="apt-get install -y --no-install-recommends $version-venv"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq </dev/null && $command </dev/null
else
  echo "Python's venv module is missing or broken: run \`sudo $command\` and call make again." >&2
  exit 1
fi
