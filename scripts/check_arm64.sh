#!/usr/bin/env bash
# Run the core and server tests on emulated ARM64, and compare 225 answers with those of this x86 machine.
#
#     scripts/check_arm64.sh [FOLDER]      (default: build/arm64)
#
# Needs root on an x86 Debian or Ubuntu with network, and Python with edgevlm's runtime: PYTHON, or .venv of `make ask`.
# FOLDER keeps the ARM64 system, the packages and the results, so the next run takes fewer minutes; delete it to start
# anew. MIRROR names another Debian mirror. The tools that apt-get installs stay. All mounts and processes are in
# namespaces of this script and end with it.
#
# The exit code is 0 if all tests pass and the answers agree (scripts/compare_evaluations.py says how far).
# Emulation says nothing about speed.

set -euo pipefail

REPOSITORY=$(cd "$(dirname "$0")/.." && pwd)
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SUITE=bookworm
PYTHON_VERSION=3.11  # of that suite
GLIBC_MINOR=36  # as well
# The core of a Raspberry Pi 5, with the instructions of a Jetson Orin.
ARM_CPU=cortex-a76
ARM_ARCH=armv8.2-a+dotprod+fp16
TOOLS=(debootstrap debian-archive-keyring qemu-user-static gcc-aarch64-linux-gnu g++-aarch64-linux-gnu)
TEST_PACKAGES=(hypothesis jsonschema langchain-openai onnx openai "pillow<13" pillow-heif pytest pytest-rerunfailures
  schemathesis)
TESTS=(tests/core tests/inputs tests/engine tests/runtimes tests/cli tests/server)
PER_TASK=3  # questions for each of the 25 tasks, each with its images, other images and grey ones: 225 answers
BINFMT=/proc/sys/fs/binfmt_misc
ENTRY=edgevlm-aarch64

say() { printf '\n== %s\n' "$*"; }
fail() { echo "check_arm64: $*" >&2; exit 2; }

# ---- what it needs

[ $# -le 1 ] || fail "usage: scripts/check_arm64.sh [FOLDER]"
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "this is $(uname -s) on $(uname -m); run it on Linux on x86_64"
[ "$(id -u)" = 0 ] || fail "it needs root for chroot and mounts; run it with sudo"
command -v apt-get >/dev/null || fail "it needs apt-get; run it on Debian or Ubuntu"
PYTHON=$(command -v "${PYTHON:-$REPOSITORY/.venv/bin/python}") ||
  fail "no ${PYTHON:-$REPOSITORY/.venv/bin/python}; run 'make ask' first, or set PYTHON"
export PYTHONPATH=$REPOSITORY HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
"$PYTHON" -c 'import edgevlm, llama_cpp, onnxruntime' ||
  fail "$PYTHON has not all that edgevlm needs; run 'make ask' first, or set PYTHON"

if [ -z "${EDGEVLM_NAMESPACE-}" ]; then
  mkdir -p "${1:-$REPOSITORY/build/arm64}"
  exec env EDGEVLM_NAMESPACE=1 PYTHON="$PYTHON" unshare --mount --propagation private --pid --fork --kill-child \
    --mount-proc nice bash "$0" "$(cd "${1:-$REPOSITORY/build/arm64}" && pwd)"
fi

WORK=$1
ROOT=$WORK/root
WHEELS=$WORK/wheels
mkdir -p "$WHEELS"

if ! dpkg-query --show "${TOOLS[@]}" >/dev/null 2>&1; then
  say "Installing ${TOOLS[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${TOOLS[@]}" >/dev/null
fi

# ---- the kernel starts ARM64 programs with qemu, in the chroot too (flag F)

emulates_arm64() {
  grep -qs '^enabled' "$BINFMT/$1" && grep -qs '^flags:.*F' "$BINFMT/$1"
}
[ -e "$BINFMT/register" ] || mount -t binfmt_misc none "$BINFMT" ||
  fail "binfmt_misc cannot be mounted; qemu alone cannot start the programs that a program starts"
trap 'exit 130' INT
trap 'exit 143' TERM
if ! emulates_arm64 qemu-aarch64; then
  trap 'echo -1 >"$BINFMT/$ENTRY"' EXIT
  if ! emulates_arm64 $ENTRY; then
    zero='\x00' any='\xff'
    magic="\x7fELF\x02\x01\x01$zero$zero$zero$zero$zero$zero$zero$zero$zero\x02$zero\xb7$zero"
    mask="$any$any$any$any$any$any$any$zero$any$any$any$any$any$any$any$any\xfe$any$any$any"
    echo ":$ENTRY:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" >"$BINFMT/register"
  fi
fi

# ---- an ARM64 Debian

if [ ! -d "$ROOT" ]; then
  say "Debian $SUITE for ARM64 in $ROOT (about 4 minutes)"
  rm -rf "$ROOT.partial"
  debootstrap --arch=arm64 --foreign --variant=minbase \
    --include=python3,python3-venv,python3-pip,libgomp1,ca-certificates \
    "$SUITE" "$ROOT.partial" "$MIRROR" >"$WORK/debootstrap.log"
  chroot "$ROOT.partial" /debootstrap/debootstrap --second-stage >>"$WORK/debootstrap.log"
  mv "$ROOT.partial" "$ROOT"
fi
mount --rbind /proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs none "$ROOT/tmp"
# qemu shows this machine's x86 /proc/cpuinfo and /sys, with which ONNX Runtime's look at the CPU crashes.
mount -t tmpfs none "$ROOT/sys"
mkdir -p "$ROOT/sys/devices/system/cpu"
echo "0-$(($(nproc --all) - 1))" | tee "$ROOT"/sys/devices/system/cpu/{possible,present,online} >/dev/null
for ((core = 0; core < $(nproc --all); core++)); do
  cat <<CORE
processor	: $core
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1

CORE
done >"$WORK/cpuinfo"
mount --bind "$WORK/cpuinfo" "$ROOT/proc/cpuinfo"

arm64() {  # run a command in the tree on ARM64
  chroot "$ROOT" /usr/bin/env -i QEMU_CPU=$ARM_CPU HOME=/root LANG=C.UTF-8 HF_HUB_OFFLINE=1 PATH=/venv/bin:/usr/bin:/bin \
    PYTHONPATH=/edgevlm sh -c 'cd /edgevlm && exec "$@"' sh "$@"
}

# ---- packages: edgevlm of this tree, llama.cpp cross-compiled, all else of the versions that x86 has

requirement=$("$PYTHON" -c 'import sys; sys.path[:0] = ["scripts"]; import install_llama_cpp as i; print(i.requirement())')
llama=$WHEELS/llama_cpp_python-${requirement#*==}-py3-none-linux_aarch64.whl
if [ ! -e "$llama" ]; then
  say "Compiling $requirement for ARM64 ($ARM_ARCH)"
  rm -rf "$WORK/built"
  CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
-DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=$ARM_ARCH -DLLAVA_BUILD=OFF \
'-DCMAKE_PROJECT_llama.cpp_INCLUDE=$REPOSITORY/scripts/llama_cpp_library.cmake'" \
    "$PYTHON" -m pip wheel --quiet --no-cache-dir --no-deps --no-binary llama-cpp-python \
    --wheel-dir "$WORK/built" "$requirement"
  mv "$WORK"/built/llama_cpp_python-*.whl "$llama"  # pip reads the platform in the name, which is this machine's
fi

say "Packages for ARM64"
rm -rf "$WORK/tree" "$ROOT/edgevlm" "$WHEELS"/edgevlm-*.whl
mkdir -p "$WORK/tree"
git -C "$REPOSITORY" ls-files -z --cached --others --exclude-standard |
  tar -C "$REPOSITORY" --create --null --files-from=- --ignore-failed-read 2>/dev/null | tar -C "$WORK/tree" --extract
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$WHEELS" "$WORK/tree"
rm -rf "$WORK/tree/build" "$WORK"/tree/*.egg-info
mv "$WORK/tree" "$ROOT/edgevlm"
"$PYTHON" -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==[^+]+$' >"$WORK/versions.txt"
platforms=(--platform linux_aarch64 --platform manylinux2014_aarch64)
for ((minor = GLIBC_MINOR; minor >= 17; minor--)); do
  platforms+=(--platform "manylinux_2_${minor}_aarch64")
done
edgevlm=("$WHEELS"/edgevlm-*.whl)
"$PYTHON" -m pip download --quiet --only-binary=:all: --python-version "$PYTHON_VERSION" --implementation cp \
  --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none "${platforms[@]}" --constraint "$WORK/versions.txt" \
  --find-links "$WHEELS" --dest "$WHEELS" "${edgevlm[0]}[cpu,serve]" "${TEST_PACKAGES[@]}"
rm -rf "$ROOT/wheels" "$ROOT/questions"
cp -r "$WHEELS" "$ROOT/wheels"
[ -x "$ROOT/venv/bin/pip" ] || chroot "$ROOT" python3 -m venv /venv
arm64 pip install --quiet --no-index --force-reinstall --no-deps "/wheels/${edgevlm[0]##*/}"
arm64 pip install --quiet --no-index --find-links /wheels "/wheels/${edgevlm[0]##*/}[cpu,serve]" "${TEST_PACKAGES[@]}"

# ---- the answers

say "Questions on x86"
rm -rf "$WORK/questions"
"$PYTHON" -m edgevlm eval --write "$WORK/questions" --items "$PER_TASK"
"$PYTHON" -m edgevlm eval --questions "$WORK/questions/questions.jsonl" --json "$WORK/x86.json" >/dev/null
say "The same on ARM64"
cp -r "$WORK/questions" "$ROOT/questions"
arm64 python -m edgevlm eval --questions /questions/questions.jsonl --json /arm64.json >/dev/null
mv "$ROOT/arm64.json" "$WORK/arm64.json"

# ---- the tests

say "Tests on ARM64: ${TESTS[*]}"
tests=passed
# OpenVINO compiles code for the CPU, and dies of SIGSEGV under qemu 7.2. The other two read the last line of a process
# that crashes, where qemu writes one of its own.
GUARD=tests/runtimes/test_llama_cpp_guard.py
arm64 python -m pytest -q --core -p no:cacheprovider -k "not openvino" \
  --deselect "$GUARD::test_a_crash_turns_the_fast_kernels_off" \
  --deselect "$GUARD::test_two_crashes_are_an_error_with_the_fix" "${TESTS[@]}" | tee "$WORK/tests.log" || tests=FAILED

say "Result"
answers=agree
"$PYTHON" -m scripts.compare_evaluations "$WORK/x86.json" "$WORK/arm64.json" || answers=DIFFER
echo
echo "tests on ARM64:  $tests: $(tail -n 1 "$WORK/tests.log")"
echo "answers:         $answers"
[ "$tests $answers" = "passed agree" ]
