#!/usr/bin/env bash
# Makes an arm64 user-space with the bare runtime in it, for tests/runtime/test_arm64.py.
# Usage: tests/arm64_root.sh DIRECTORY   (needs root, qemu-user-static and debootstrap)
set -euo pipefail
root=$1
here=$(cd "$(dirname "$0")/.." && pwd)
for tool in debootstrap qemu-aarch64-static; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed" >&2; exit 1; }
done
if [ ! -x "$root/usr/bin/python3.11" ]; then
    rm -rf "$root"  # what an interrupted attempt left behind
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$root" >/dev/null
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi
# wheels for arm64 beside it; importing newer versions of ONNX Runtime crashes qemu 7.2
"$here/.uv/bin/uv" pip install --quiet --target "$root/opt/packages" --python-platform aarch64-manylinux_2_28 \
    --python-version 3.11 --only-binary :all: numpy pillow cryptography 'onnxruntime<1.23'
echo "$root"
