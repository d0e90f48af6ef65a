#!/usr/bin/env bash
# What is measured and tested on a GPU, step by step, from the repository's root:
#
#   benchmarks/gpu.sh OUT STEP...       a failing step does not stop the others; each prints its last lines and seconds;
#                                       the exit status is 1 if one failed
#
# Steps, and what they read:
#   kernels          tests of the kernels                                TORCH_PYTHON, MASKRCNN_KERNELS
#   kernel-times     benchmarks.kernels                                  TORCH_PYTHON, MASKRCNN_KERNELS
#   plugins          every operator inside TensorRT                      TRT_PYTHON, MASKRCNN_PLUGINS
#   fp16 int8 any-size    benchmarks.engines                             TRT_PYTHON, MODELS, DATASET, REFERENCE
#   pipeline         benchmarks.pipeline_parts                           TRT_PYTHON, engines of fp16 and int8, DATASET
#   renders          benchmarks.renders                                  TRT_PYTHON, engines of fp16 and int8
#   cpp              the C++ library beside Python's                     TRT_PYTHON, PROGRAMS, an engine of step fp16
#   serve            HTTP beside the pipeline                            TRT_PYTHON, an engine of step fp16, DATASET
#   grafts-fp16 grafts    other detectors in TensorRT                    TRT_PYTHON, GRAFTS
#   grafts-baseline       their networks in onnxruntime-gpu and NumPy    ORT_PYTHON, GRAFTS
#   onnxruntime           benchmarks.onnxruntime_cuda                    ORT_PYTHON, MODELS, DATASET
#   engines          tests of engines                                    TRT_PYTHON with pytest
#
# TRT_PYTHON     a Python with TensorRT, cuda-python, NumPy, OpenCV, pycocotools, onnx, rich (default: python3)
# TORCH_PYTHON   one with PyTorch, torchvision, mmdet, pytest-xdist (default: python3)
# ORT_PYTHON     one with onnxruntime-gpu (default: python3)
# MODELS         folder with r50.onnx (--size 800 1216), r50d.onnx (--dynamic-size), r50i8.onnx (export.quantize of the
#                first), and where engines and the timing cache `tc` go (default: out)
# REFERENCE      .npz of export.reference, of the first (default: none)
# DATASET        folder with annotations.json and the images
# GRAFTS         folder of benchmarks.grafts prepare, with photos/ in it
# PROGRAMS       folder of maskrcnn_detect and maskrcnn_benchmark, built with TensorRT
# STEP_SECONDS   after which a step is ended, with all that it started (default: 0, never)
# TACTICS        --tactic-sources of every build, names with commas between them, "none" for TensorRT's own kernels
#                alone (default: the release's)
set -u
only=
if [ "$1" = --only ]; then  # a step in a process of its own, which can be ended
  only=1
  shift
fi
OUT=$1
shift
mkdir -p "$OUT"
TRT_PYTHON=${TRT_PYTHON:-python3} TORCH_PYTHON=${TORCH_PYTHON:-python3} ORT_PYTHON=${ORT_PYTHON:-python3}
MODELS=${MODELS:-out}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TRT_PYTHONPATH=$PWD

engines() { # a variant of benchmarks.engines; what is there of others stays
  "$TRT_PYTHON" -m benchmarks.engines "$MODELS/r50.onnx" --int8 "$MODELS/r50i8.onnx" --any-size "$MODELS/r50d.onnx" \
    --dataset "$DATASET" ${REFERENCE:+--reference "$REFERENCE"} --variants "$1" --folder "$MODELS" --repeat 15 \
    --timing-cache "$MODELS/tc" ${TACTICS:+--tactic-sources "$TACTICS"} --out "$MODELS/variants.json"
  local code=$?
  cp "$MODELS/variants.json" "$MODELS/tc" "$OUT/" && return $code
}

grafts() { # measure, with more options
  local tactics=() names=${TACTICS:-}
  [ -z "$names" ] || tactics=(--tactic-sources)
  [ "$names" = none ] || tactics+=(${names//,/ })
  "$TRT_PYTHON" -m benchmarks.grafts measure "$GRAFTS" "$GRAFTS" --runtimes tensorrt "${tactics[@]}" \
    --output "$OUT/grafts.json" "$@"
}

run() {
  case $1 in
    kernels) "$TORCH_PYTHON" -m pytest -q -n 8 -p no:cacheprovider -m gpu tests/gpu --ignore=tests/gpu/engines \
      --ignore=tests/gpu/cpp -k 'kernel and not past_32_bits' --junitxml "$OUT/kernels.xml" ;;
    kernel-times) "$TORCH_PYTHON" -m benchmarks.kernels --out "$OUT/kernels.json" ;;
    plugins) "$TRT_PYTHON" -m tests.gpu.plugins_report --json "$OUT/plugins.json" ;;
    fp16 | int8) engines "$1" ;;
    any-size) engines fp16_any_size ;;
    cpp) "$TRT_PYTHON" -m benchmarks.cpp_engine "$MODELS/r50_fp16.engine" --programs "$PROGRAMS" --images "$DATASET" \
      --out "$OUT/cpp_engine.json" ;;
    pipeline)
      for name in fp16 int8; do
        "$TRT_PYTHON" -m benchmarks.pipeline_parts "$MODELS/r50_$name.engine" "$DATASET" \
          --output "$OUT/pipeline_$name.json" || return
      done
      ;;
    renders) "$TRT_PYTHON" -m benchmarks.renders "fp16=$MODELS/r50_fp16.engine" "int8=$MODELS/r50_int8.engine" \
      --backend tensorrt --batch 8 --output "$OUT/renders.json" ;;
    serve) "$TRT_PYTHON" -m benchmarks.serve_pipeline "$MODELS/r50_fp16.engine" "$DATASET" --backend tensorrt \
      --server-processes 4 --seconds 6 --output "$OUT/serve_pipeline.json" ;;
    grafts-fp16) grafts --precisions fp16 ;;
    grafts) grafts --precisions fp32 int8 --no-times ;;
    grafts-baseline) "$ORT_PYTHON" -m benchmarks.graft_baseline "$GRAFTS" "$GRAFTS" --output "$OUT/baseline.json" ;;
    onnxruntime) "$ORT_PYTHON" -m benchmarks.onnxruntime_cuda "$MODELS/r50.onnx" "$DATASET" --out "$OUT" ;;
    engines) "$TRT_PYTHON" -m pytest -q -p no:cacheprovider -m tensorrt tests/gpu/engines \
      --junitxml "$OUT/engines.xml" ;;
    *) echo "no step $1" && return 2 ;;
  esac
}

if [ -n "$only" ]; then
  run "$1"
  exit
fi
status=0
for step in "$@"; do
  begin=$SECONDS
  # A variable that is not set ends the step; the log names it.
  timeout --kill-after 10 "${STEP_SECONDS:-0}" bash "$0" --only "$OUT" "$step" > "$OUT/$step.log" 2>&1
  code=$?
  [ $code -eq 0 ] || status=1
  tail -n "${LINES_SHOWN:-12}" "$OUT/$step.log" | cut -c1-600
  echo "== $step: exit $code, $((SECONDS - begin)) s"
done
exit $status
