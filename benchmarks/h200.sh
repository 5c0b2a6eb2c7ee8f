#!/usr/bin/env bash
# The figures of benchmarks/h200, in about eight minutes on one H200 with flash-attn-4: benchmarks/h200.sh OUTPUT
# Each part has a time limit, and keeps the rows that it has when the limit comes.
set -u
out=${1:?give a folder for the results}
bench() { local limit=$1; shift; timeout "$limit" swaa bench "$@" --config qwen3-4b --window 2k --sinks 128 --output "$out"; }

bench 150 decode -n 32k,128k --batches 1 -r sinks,sinks-odd,full --caches static --new-tokens 64
bench 80 decode -n 32k --batches 8 -r sinks,sinks-odd --caches static --new-tokens 64
bench 45 decode -n 32k --batches 1 -r sinks --caches dynamic --new-tokens 24
bench 60 attention -n 128k --passes forward
bench 60 attention -n 32k --passes forward+backward -i triton,flex,flex-on-triton,flex-as-it-comes,flash-attn-4-full
bench 110 prefill -n 128k -r sinks --repeats 3 --baselines 'no attention'
bench 60 prefill -n 128k -r full --no-compile --repeats 1 --baselines ''
bench 60 memory -n 4k,32k,128k -r sinks,full
