#!/bin/sh
# Speaks a question with espeak-ng, has the model in the package listen and answer, and says what and when.
set -eu
cd "$(dirname "$0")/.."

question=${DEMO_QUESTION:-"How many months are in a year?"}

mkdir -p demo
espeak-ng -v en-us -s 150 -w demo/question.wav "$question"
# Someone who asks falls silent then, for as long as an answer takes.
.venv/bin/python - <<'END'
import numpy as np
from moshi_mlx.sound import load_sound, write_wav
write_wav("demo/question.wav", np.pad(load_sound("demo/question.wav"), (12_000, 72_000)))
END
said=$(.venv/bin/python -m moshi_mlx.local ${DEMO_MODEL:+--model "$DEMO_MODEL"} --input demo/question.wav --output demo/answer.wav)
echo
echo "Asked:      $question"
said=${said# }
echo "Moshi said: ${said:-nothing}"
echo "The question, and silence after it:  demo/question.wav"
echo "The answer, in time with it:         demo/answer.wav"
