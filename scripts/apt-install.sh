#!/bin/sh
# Installs Debian packages, asking nothing: apt-install.sh PACKAGE... Needs root.
# A fresh machine often updates itself just then: apt-get waits for that, five minutes at most.
exec env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "$@" </dev/null
