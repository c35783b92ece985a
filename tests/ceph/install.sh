#!/bin/sh
# Debian's Ceph (monitor, object store, gateway) unpacked into the folder given: nothing is installed, no service starts.
set -eu
mkdir -p "$1/packages" "$1/root"
cd "$1/packages"
# The C library and the compiler's are the machine's own; all other libraries come along, whatever is installed.
libraries=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
	--no-enhances radosgw ceph-mon ceph-osd ceph-common | grep -E '^lib[a-z0-9.+-]+$' |
	grep -Ev '^lib(c6|gcc|stdc|crypt1|perl|python|pam)|systemd' | sort -u)
# shellcheck disable=SC2086
apt-get -qq download radosgw ceph-mon ceph-osd ceph-common ceph-base $libraries 2>/dev/null ||
	{ echo "Ceph's packages cannot be fetched: it needs Debian or Ubuntu, and apt-get update once"; exit 1; }
for package in *.deb; do dpkg -x "$package" ../root; done
cd .. && rm -rf packages
