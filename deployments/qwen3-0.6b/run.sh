#!/usr/bin/env bash
# The whole guide in one command: checks what is there, starts the retriever, waits for it, trains, stops it.
#
#   ./run.sh                    Qwen3-0.6B on a GPU
#   MODEL=tiny ./run.sh         the same with a model that is part of the package: no GPU, no network
#   ./run.sh --resume           go on from the last checkpoint
#
# Takes the flags and settings of start_retriever.sh and train_qwen3_0.6b.sh; all others go to searchrl
# train. READY_SECONDS (600) is how long the retriever may take. Logs: logs/retriever.log, logs/training.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./settings.sh
read_flags "$@"

retriever='' trainer=''

# Whatever ends this script ends what it started, and waits for it.
# shellcheck disable=SC2329
stop() {
  local code=$? child
  trap '' INT TERM HUP
  for child in $trainer $retriever; do
    kill -TERM "$child" 2> /dev/null || true
    wait "$child" || true
  done
  exit "$code"
}

start_retriever() {
  need_free_port
  ./start_retriever.sh --retriever "$RETRIEVER" ${ENCODER:+--encoder "$ENCODER"} > /dev/null 2>&1 &
  retriever=$!
  local patience=$((SECONDS + READY_SECONDS))
  until is_ready; do
    kill -0 "$retriever" 2> /dev/null || die "the retriever did not start: $(tail -n 1 logs/retriever.log)" 75
    ((SECONDS < patience)) || die "the retriever is not ready after $READY_SECONDS s: see logs/retriever.log" 75
    sleep 0.2
  done
  echo "retriever: ready on port $PORT"
}

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
find_searchrl
check_training
echo "searchrl $("$SEARCHRL" --version), model $MODEL, retriever $RETRIEVER, run checkpoints/$RUN_NAME"
! serves_index || start_retriever
./train_qwen3_0.6b.sh "$@" &
trainer=$!
code=0
wait -n "$trainer" ${retriever:+"$retriever"} || code=$?
if kill -0 "$trainer" 2> /dev/null; then
  die "the retriever ended while training ran: see logs/retriever.log, then ./run.sh --resume" 75
fi
exit "$code"
