#!/usr/bin/env bash
# Trains the model by reinforcement learning; the retriever has to be running. See logs/training.log.
#
#   ./train_qwen3_0.6b.sh                                   GRPO, the recipe qwen3-0.6b-grpo
#   ./train_qwen3_0.6b.sh --algorithm ppo                   the recipe qwen3-0.6b-ppo
#   ./train_qwen3_0.6b.sh --set learning.learning_rate=1e-6 --set run.steps=500
#   ./train_qwen3_0.6b.sh --resume                          go on from the last checkpoint
#   ./train_qwen3_0.6b.sh --rerank cross-encoder/ms-marco-MiniLM-L12-v2
#   ./train_qwen3_0.6b.sh --retriever web:brave             or the URL of another server of /retrieve
#
# Other flags: searchrl train --help. Settings: MODEL (or BASE_MODEL), a directory, a name on the hub, or
# tiny; DEVICE, CORPUS, TRAIN_DATA, TEST_DATA, PORT, RUN_NAME, CUDA_VISIBLE_DEVICES.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./settings.sh
read_flags "$@"

find_searchrl
check_training

files="kind='files', corpus='$CORPUS'"
sets=(
  --set "data.train={$files, questions='$TRAIN_DATA'}"
  --set "data.test={$files, questions='$TEST_DATA'}"
)
case "$RETRIEVER" in
  bm25 | dense | hybrid) sets+=(--set "retriever={kind='http', url='http://127.0.0.1:$PORT/retrieve'}") ;;
  web:*) sets+=(--set "retriever={kind='web', provider='${RETRIEVER#web:}'}") ;;
  *) sets+=(--set "retriever={kind='http', url='$RETRIEVER'}") ;;
esac
[[ -z $RERANK ]] || sets+=(--set "rerank.model=$RERANK")
[[ -z $DEVICE ]] || sets+=(--set "searcher.device=$DEVICE" --set "generator.device=$DEVICE")
if [[ $MODEL == tiny ]]; then
  recipe="tiny-search-r1-$ALGORITHM"
  sets+=(--set reward.kind=per_question --set rollout.questions_per_step=4 --set rollout.group_size=2)
else
  recipe="qwen3-0.6b-$ALGORITHM"
  sets+=(--set "searcher.model=$MODEL" --set "generator.model=$MODEL")
fi

run="checkpoints/$RUN_NAME"
start_log logs/training.log
if [[ ${CUDA_VISIBLE_DEVICES:-} == *,* && $MODEL != tiny && " ${REST[*]} " != *" --backend verl "* ]]; then
  echo "note: without --backend verl, training uses the first of CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
fi
supervise "$SEARCHRL" train "$recipe" --out "$run" "${sets[@]}" "${REST[@]}"
if [[ -d $run/checkpoints/final ]]; then
  ln -sfn checkpoints/final "$run/final"
  echo "ask it: python3 infer.py --model_path $run/final --prompt \"...\""
fi
