#!/bin/sh -e
# Pictures a second on 1 and 2 GPUs at the same batch of 256, and whether the losses (train/val) of the epochs agree:
#   benchmarks/several_gpus.sh FOLDER OUT [flags of `ubend fit`]      OUT must not be there yet
data=$1 out=$2; shift 2
for run in 1-live 2-live 2-synchronised; do  # GPUs, and batch norm
  python -m ubend fit "$data" --out "$out/$run" --size 128 --batch 256 --epochs 20 "$@" --gpus "${run%-*}" \
    --set train.sync_batch_norm="$(test "${run#*-}" = live && echo false || echo true)" >/dev/null
  python -c 'import json, statistics, sys; m, t = ([json.loads(line) for line in open(sys.argv[1] + f)] for f in ("/metrics.jsonl", "/timing.jsonl"))
print(sys.argv[1], round(statistics.median(r["images_per_s"] for r in t[1:])), "img/s", *("%.3f/%.3f" % (r["train_loss"], r["val_loss"]) for r in m))' "$out/$run"
done
