# What the scripts beside this one share: settings, flags, refusals in one line, logs, signals.
# It is sourced from this directory and never run. Settings come from the environment, then flags.
# shellcheck shell=bash disable=SC2034

MODEL="${MODEL:-${BASE_MODEL:-Qwen/Qwen3-0.6B}}"
CORPUS="${CORPUS:-data/sample_corpus.jsonl}"
TRAIN_DATA="${TRAIN_DATA:-data/sample_train.jsonl}"
TEST_DATA="${TEST_DATA:-data/sample_test.jsonl}"
PORT="${PORT:-8000}"
READY_SECONDS="${READY_SECONDS:-600}"
DEVICE="${DEVICE:-}"
if [[ $MODEL == tiny ]]; then
  RUN_NAME="${RUN_NAME:-search-r1-tiny-demo}"
else
  RUN_NAME="${RUN_NAME:-search-r1-qwen3-0.6b-demo}"
fi

ALGORITHM=grpo
RETRIEVER=bm25
ENCODER=
RERANK=
REST=()

# Bad input ends with 2, a failed service with 75, as searchrl itself does.
die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# The comment at the head of the script that was started.
show_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

# Reads the flags that the scripts know; what is left is in REST, for the command behind the script.
read_flags() {
  while (($#)); do
    case "$1" in
      -h | --help) show_help ;;
      --algorithm | --retriever | --encoder | --rerank)
        [[ -n ${2:-} ]] || die "$1 wants a value; see ${0##*/} --help"
        case "$1" in
          --algorithm) ALGORITHM="$2" ;;
          --retriever) RETRIEVER="$2" ;;
          --encoder) ENCODER="$2" ;;
          --rerank) RERANK="$2" ;;
        esac
        shift 2
        ;;
      *)
        REST+=("$1")
        shift
        ;;
    esac
  done
  case "$RETRIEVER" in
    bm25 | dense | hybrid | web:?* | http://* | https://*) ;;
    *) die "--retriever $RETRIEVER: expected bm25, dense, hybrid, web:SERVICE or the URL of a server" ;;
  esac
  case "$RETRIEVER" in
    dense | hybrid) [[ -n $ENCODER ]] || die "--retriever $RETRIEVER: name its --encoder" ;;
  esac
  case "$ALGORITHM" in
    grpo | ppo) ;;
    *) die "--algorithm $ALGORITHM: expected grpo or ppo" ;;
  esac
  [[ $PORT =~ ^[1-9][0-9]{0,4}$ ]] || die "PORT=$PORT: expected a number from 1 to 65535"
}

# Whether the scripts serve an index of their own.
serves_index() {
  [[ $RETRIEVER =~ ^(bm25|dense|hybrid)$ ]]
}

# The program: of the active environment, or else of the one that install.sh made.
find_searchrl() {
  if command -v searchrl > /dev/null; then
    SEARCHRL=searchrl
  elif [[ -x venv/bin/searchrl ]]; then
    SEARCHRL="$PWD/venv/bin/searchrl"
  else
    die "searchrl is not installed: run ./install.sh, then source venv/bin/activate"
  fi
}

need_file() {
  [[ $2 != *\'* ]] || die "$1=$2: a path with an apostrophe cannot be handed on; rename it"
  [[ -f $2 ]] || die "$1=$2: no such file"
}

# What can be known to be wrong before a model is loaded.
check_training() {
  if [[ -f checkpoints/$RUN_NAME/config.json && " ${REST[*]} " != *" --resume "* ]]; then
    die "checkpoints/$RUN_NAME holds a run already: add --resume, or name another one with RUN_NAME=..."
  fi
  need_file CORPUS "$CORPUS"
  need_file TRAIN_DATA "$TRAIN_DATA"
  need_file TEST_DATA "$TEST_DATA"
  case "$MODEL" in
    tiny) return ;;
    models/* | ./* | ../* | /*)
      [[ -d $MODEL ]] || die "MODEL=$MODEL: no such directory; put the model there or name one of the hub"
      ;;
  esac
  if [[ ${DEVICE:-cuda} == cuda* ]] && ! nvidia-smi -L > /dev/null 2>&1; then
    die "no NVIDIA GPU here (nvidia-smi): MODEL=tiny tries the guide without one, DEVICE=cpu trains slowly"
  fi
}

# Whether somebody listens on the port.
is_taken() {
  (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null
}

need_free_port() {
  ! is_taken || die "port $PORT is taken: see lsof -i :$PORT, or choose another one with PORT=8001"
}

# Whether the retriever answers queries by now.
is_ready() {
  local status=''
  {
    exec 3<> "/dev/tcp/127.0.0.1/$PORT" || return 1
    printf 'GET /health/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
    read -r -t 5 _ status _ <&3
    exec 3>&-
  } 2> /dev/null
  [[ $status == 200 ]]
}

# From here on all output goes to a log as well; the log outlives signals, and is whole at the end.
start_log() {
  mkdir -p "${1%/*}"
  exec 3>&1 4>&2
  exec > >(
    trap '' INT TERM HUP
    exec tee -a "$1"
  ) 2>&1
  LOGGER=$!
  trap end_log EXIT
}

end_log() {
  trap '' INT TERM HUP
  exec >&3 2>&4
  wait "$LOGGER" || true
}

# Runs a command, passes signals on to it, and returns its exit code after its end; 130 where a
# signal came and the command made nothing of it.
supervise() {
  local child='' code=0 stopped=''
  trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2> /dev/null || true' INT TERM HUP
  "$@" &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2> /dev/null || true
  wait "$child" || code=$?
  # A signal ends a wait early.
  while kill -0 "$child" 2> /dev/null; do
    code=0
    wait "$child" || code=$?
  done
  # Not reset: a bash that was started to ignore Ctrl-C, as those in the background are, would take it again and die of it.
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  [[ -z $stopped || $code != 0 ]] || code=130
  return "$code"
}
