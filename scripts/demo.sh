#!/bin/sh
# Speaks a question with espeak-ng, has the model in the package listen and answer, and says what and when.
set -eu
cd "$(dirname "$0")/.."

question=${DEMO_QUESTION:-"How many months are in a year?"}

mkdir -p demo
espeak-ng -v en-us -s 150 -w demo/question.wav "$question"
.venv/bin/python -m moshi_mlx.local ${DEMO_MODEL:+--model "$DEMO_MODEL"} --seed 1 --tail 3 --input demo/question.wav --output demo/answer.wav \
    --transcript demo/answer.json
echo
.venv/bin/python - demo/answer.json "$question" <<'END'
import json, sys
answer = json.load(open(sys.argv[1]))
spoken = [piece for piece in answer["pieces"] if piece["text"].strip()]
print(f"Asked:      {sys.argv[2]}")
if spoken:
    print(f"Moshi said: {answer['text'].strip()}")
    print(f"            from {spoken[0]['time']:.1f} s to {spoken[-1]['time']:.1f} s of {answer['seconds']:.1f} s")
else:
    print("Moshi said nothing.")
END
echo "The question:          demo/question.wav  (\"$question\")"
echo "The answer:            demo/answer.wav"
echo "Its words with times:  demo/answer.json"
