#!/usr/bin/env bash
# Makes the environment in which pipelines are compiled and their steps run: kfp on top of the environment that is active.
#
# kfp pins requests and urllib3 to single versions and holds the Kubernetes client below 31; a serving image must not be tied
# to them. So kfp gets a folder of its own, and everything else, pip too, is seen through from the base.
#
# usage: pipelines/atelier_training/environment.sh FOLDER [PYTHON]
set -euo pipefail
folder=${1:?usage: pipelines/atelier_training/environment.sh FOLDER [PYTHON]}
base=${2:-python3}
site=$("$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$base" -m venv --without-pip "$folder"
own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# site.addsitedir also reads the base's .pth files, among them that of an editable installation.
echo "import site; site.addsitedir('$site')" > "$own/base.pth"
# Compiled pipelines name their kfp, and a test compares them with what is checked in.
"$folder/bin/python" -m pip install --quiet --no-compile kfp==2.17.0 kfp-kubernetes==2.17.0
"$folder/bin/python" -m pip check
