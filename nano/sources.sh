#!/bin/sh
# Fetches the packages that facts.py reads (licences: ../NOTICE) into nano/build/sources. Needs npm, pip, apt-get, dpkg-deb.
set -eu
mkdir -p "$(dirname "$0")/build/sources" && cd "$(dirname "$0")/build/sources"
npm pack --silent country-json@2.3.0 countries-list@3.4.1
for name in country-json countries-list; do
    mkdir -p "$name" && tar xzf "$name"-*.tgz -C "$name" --strip-components 1
done
python3 -m pip download --quiet --no-deps mendeleev==1.3.0
python3 -m zipfile -e mendeleev-1.3.0-*.whl mendeleev
apt-get download wordnet-base=1:3.0-37
dpkg-deb -x wordnet-base_*.deb wordnet
