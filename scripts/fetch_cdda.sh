#!/bin/sh
# Downloads and unpacks Debian 12's package cataclysm-dda-data for the data set `cdda`; no root needed once apt's lists
# are there.  Usage: scripts/fetch_cdda.sh FOLDER; prints the folder to give as dataset.folder=.
set -eu
mkdir -p "$1"
cd "$1"
version=0.F-3-9
deb=cataclysm-dda-data_${version}_all.deb
[ -f "$deb" ] || apt-get download -qq "cataclysm-dda-data=$version" >&2 \
  || { apt-get update -qq >&2 && apt-get download -qq "cataclysm-dda-data=$version" >&2; }
dpkg-deb -x "$deb" cdda
pwd | sed 's|$|/cdda|'
