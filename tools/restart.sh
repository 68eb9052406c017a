#!/bin/sh
# Starts a command again as long as it was only interrupted: sh tools/restart.sh WORKDIR COMMAND...
#
# 70 and 134: another process of the run is gone; 71: one was stuck; 75: it was asked to stop and has
# saved. After any other end somebody has to look. Three starts in a row without a new checkpoint end
# it too. SIGTERM or Ctrl-C to this script makes the next end the last. A workdir in a bucket is listed
# with `gcloud storage`; there a checkpoint that is finished holds commit_success.txt.
workdir=$1
shift
case $workdir in
  *://*)
    bucket=$(echo "$workdir" | cut -d / -f 1-3)
    if ! gcloud storage ls "$bucket" >/dev/null; then
      echo "error: gcloud cannot list $bucket, so new checkpoints could not be told: install it, or log in" >&2
      exit 2
    fi
    ;;
esac
newest() {
  case $workdir in
    *://*) gcloud storage ls "$workdir/checkpoints/*/commit_success.txt" 2>/dev/null ;;
    *) ls "$workdir/checkpoints" 2>/dev/null ;;
  esac | sed 's:/commit_success.txt$::; s:.*/::' | grep -E '^[0-9]+$' | sort -n | tail -n 1
}
vain=0
code=75
stop=
trap 'stop=1' INT TERM
while :; do
  before=$(newest)
  [ -z "$stop" ] || exit $code
  "$@"
  code=$?
  case $code in
    70 | 71 | 75 | 134) ;;
    *) exit $code ;;
  esac
  [ -z "$stop" ] || exit $code
  if [ "$(newest)" = "$before" ]; then vain=$((vain + 1)); else vain=0; fi
  if [ $vain -ge 3 ]; then
    echo "error: started three times without a new checkpoint in $workdir; it is not started again" >&2
    exit $code
  fi
  sleep "${PAUSE:-60}" &
  wait $!
done
