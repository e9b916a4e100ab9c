#!/usr/bin/env bash
# What the tests of the deployment need of Debian, and in an environment of its own of PyPI. Run as root, at any time again.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! hash buildah mmdebstrap podman runc 2>/dev/null; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends buildah catatonit mmdebstrap podman runc
fi

tools=build/deploy/tools
[ -x "$tools/bin/python" ] || python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check -r constraints/deploy.txt

# The base that stands in for NGC's image, which no registry gives us here: Debian with Python and a tini.
base=build/deploy/base.tar
[ -s "$base" ] || {
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,libpython3.11,python3,python3-venv,tini bookworm "$base.part"
  mv "$base.part" "$base"
}
