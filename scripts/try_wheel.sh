#!/usr/bin/env bash
# Usage: try_wheel.sh WHEEL
# Installs a wheel in two bare environments, the client's and the embedded server's, and predicts a real slide with it: the
# network that ships is exported first, which needs torch; the client itself has none.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv client
client/bin/python -m pip install --quiet -c "$repository/constraints/client.txt" "m2ost-triton[client] @ file://$wheel"
python3 -m venv .triton
.triton/bin/python -m pip install --quiet -c "$repository/constraints/server.txt" "m2ost-triton[server] @ file://$wheel"
.triton/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
client/bin/python -c 'import importlib.util as u, sys; sys.exit("torch came with the client" if u.find_spec("torch") else 0)'
client/bin/python -m pip install --quiet -c "$repository/constraints/client.txt" "m2ost-triton[client,export] @ file://$wheel"
client/bin/python "$repository/scripts/fetch_demo_slide.py" slide.svs
M2OST_SERVER_ENV=.triton client/bin/m2ost predict slide.svs --pitch-um 300 --out result
client/bin/m2ost info result/*.h5ad
