#!/bin/sh
# Debian packages that tests of what is around the server use, beyond `make test`. As root; again does no harm.
#   prometheus (with promtool): make metrics-test
set -eu

# Else a package would start its own service, on a port that is somebody's.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends prometheus
