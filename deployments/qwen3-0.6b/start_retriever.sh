#!/usr/bin/env bash
# Serves the corpus on http://127.0.0.1:8000/retrieve until Ctrl-C; what it says is in logs/retriever.log.
#
#   ./start_retriever.sh                                                     BM25
#   ./start_retriever.sh --retriever dense --encoder intfloat/e5-base-v2     or hybrid
#   CORPUS=data/mine.jsonl PORT=8001 ./start_retriever.sh --topk 5           other flags: searchrl serve --help
#
# The index is built under indexes/ where there is none, or where the corpus is newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./settings.sh
read_flags "$@"

serves_index || die "--retriever $RETRIEVER needs no server here: give it to run.sh or train_qwen3_0.6b.sh"
need_file CORPUS "$CORPUS"
find_searchrl
need_free_port

name="${CORPUS##*/}"
index="indexes/${name%%.jsonl*}-$RETRIEVER${ENCODER:+-${ENCODER//\//_}}"
start_log logs/retriever.log
if [[ ! -d $index || $CORPUS -nt $index ]]; then
  encoder=()
  [[ -z $ENCODER ]] || encoder=(--encoder "$ENCODER" ${DEVICE:+--device "$DEVICE"})
  supervise "$SEARCHRL" index build --kind "$RETRIEVER" --corpus "$CORPUS" --out "$index" "${encoder[@]}"
fi
# What infer.py searches without a server.
ln -sfn "${index#indexes/}" indexes/served
# Being told to end is how a server ends well.
supervise "$SEARCHRL" serve --index "$index" --port "$PORT" "${REST[@]}" || [[ $? == 130 ]]
