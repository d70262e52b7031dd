#!/bin/sh
# The browser test needs Chromium. Where it is missing and this is a Debian with apt-get and root (or sudo that asks for
# no password), Debian's own package is installed; everywhere else one line says why not, and the test skips itself.
# Never fails: CI must run on machines without apt.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
root=""
log=$(mktemp) || exit 0
trap 'rm -f "$log"' EXIT
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || { echo "browser test: no Chromium, and no right to install it: it skips"; exit 0; }
    root="sudo -n"
fi
command -v apt-get >/dev/null 2>&1 || { echo "browser test: no Chromium, and no apt-get: it skips"; exit 0; }
echo "browser test: installing Debian's chromium"
get() { DEBIAN_FRONTEND=noninteractive timeout 240 $root apt-get -qq -o DPkg::Lock::Timeout=60 "$@" >"$log" 2>&1; }
get install -y --no-install-recommends chromium fonts-dejavu-core ||
    { get update && get install -y --no-install-recommends chromium fonts-dejavu-core; } ||
    { echo "browser test: chromium was not installed: $(tail -n 1 "$log"): it skips"; }
exit 0
