#!/usr/bin/env bash
# Installs what the tests use beside Python: Debian's redis-server, Chromium, Node.js, curl, openssl, iproute2 and
# libfaketime, and the JavaScript SDK.
# Where it may not, the tests say what is missing.
set -u
cd "$(dirname "$0")/.."

packages=()
command -v redis-server >/dev/null || packages+=(redis-server)
command -v chromium >/dev/null || packages+=(chromium)
command -v node >/dev/null || packages+=(nodejs)
command -v npm >/dev/null || packages+=(npm)
command -v curl >/dev/null || packages+=(curl)
command -v openssl >/dev/null || packages+=(openssl)
command -v ip >/dev/null && command -v tc >/dev/null || packages+=(iproute2)
compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || packages+=(libfaketime)

if [ ${#packages[@]} -gt 0 ] && [ -f /etc/debian_version ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo -n"
  if [ -z "$sudo" ] || sudo -n true 2>/dev/null; then
    echo "Installing for the tests: ${packages[*]}"
    # A new redis-server package would start a service; a policy that is already there is left alone.
    policy=/usr/sbin/policy-rc.d
    made=""
    if [ ! -e $policy ]; then
      printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null && $sudo chmod +x $policy && made=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    { $sudo apt-get update && $sudo apt-get install -y --no-install-recommends "${packages[@]}"; } >/tmp/omnistate-apt.log 2>&1 \
      || { echo "apt-get failed; the tests will say what is missing:"; tail -n 3 /tmp/omnistate-apt.log; }
    [ -n "$made" ] && $sudo rm -f $policy
  fi
fi

sdk=tests/gateway/sdk
if command -v npm >/dev/null && [ -f $sdk/package-lock.json ] && [ ! -d $sdk/node_modules/centrifuge ]; then
  (cd $sdk && npm ci --no-audit --no-fund --silent) || echo "npm ci failed in $sdk; the JavaScript SDK's tests will say so"
fi
exit 0
