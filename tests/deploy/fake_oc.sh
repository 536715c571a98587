#!/usr/bin/env bash
# `oc` for the tests: kubectl does the work, against whatever server KUBECONFIG names.
#
# Only what kubectl does not have is answered here. FAKE_CALLS names a file that gets one line a call,
# FAKE_IMAGE_PULLABLE (True or False) says whether an image can be pulled, FAKE_VERSION what is built.
# In shell, since setup.sh asks some thirty times and a Python would take as long as kubectl to start.
set -eu
printf '%s\n' "$*" >> "$FAKE_CALLS"
case ${1:-} in
  --namespace | -n) place=("$1" "$2") words=("${@:3}") ;;
  *) place=() words=("$@") ;;
esac
case "${words[*]}" in
  "image info"*) [ "$FAKE_IMAGE_PULLABLE" = True ] ;;
  start-build*)
    printf '{"apiVersion": "image.openshift.io/v1", "kind": "ImageStreamTag", "metadata": {"name": "atelier:%s"}}' \
      "$FAKE_VERSION" | kubectl "${place[@]}" create -f -
    ;;
  *) exec kubectl "$@" ;;
esac
