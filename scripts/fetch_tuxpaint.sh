#!/bin/sh
# Downloads (161 MB) and unpacks Debian 12's package tuxpaint-stamps-default for the data set `tuxpaint_stamps`; no root
# needed once apt's lists are there.  Usage: scripts/fetch_tuxpaint.sh FOLDER; prints the folder to give as
# dataset.folder=.
set -eu
mkdir -p "$1"
cd "$1"
version=2022.06.04-1
deb=tuxpaint-stamps-default_${version}_all.deb
[ -f "$deb" ] || apt-get download -qq "tuxpaint-stamps-default=$version" >&2 \
  || { apt-get update -qq >&2 && apt-get download -qq "tuxpaint-stamps-default=$version" >&2; }
dpkg-deb -x "$deb" tuxpaint
pwd | sed 's|$|/tuxpaint|'
