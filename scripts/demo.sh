#!/bin/sh
# Speaks a question with espeak-ng, has the model listen and answer, and says where the answer is.
set -eu
cd "$(dirname "$0")/.."

# The trained model inside the package where there is one, else a random one, which makes noise.
model=untrained
[ -e python/moshi_mlx/nano/model.safetensors ] && model=nano
model=${DEMO_MODEL:-$model}
question=${DEMO_QUESTION:-"Hello, who are you?"}

mkdir -p demo
espeak-ng -v en-us -s 150 -w demo/question.wav "$question"
.venv/bin/python -m moshi_mlx.local --model "$model" --seed 1 --tail 3 --input demo/question.wav --output demo/answer.wav \
    --transcript demo/answer.json
echo
echo "The question:          demo/question.wav  (\"$question\")"
echo "The answer:            demo/answer.wav"
echo "Its words with times:  demo/answer.json"
